"""The recipe of the README: a config of mmdet or mmseg with our backbone and optimizer constructor.

Two lines suffice to train. The third keeps weight decay off alpha and beta: without options for
individual parameters, mmengine's own constructor passes all parameters to the optimizer as one
group, and nothing in a model or a layer can exempt a parameter from that group's weight decay.
"""

import subprocess
import sys
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from real_images import last_metrics, needs_coco, write_config

UPSTREAM = dict(
    mmdet=f'{mmdet.__path__[0]}/.mim/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    mmseg=f'{mmseg.__path__[0]}/.mim/configs/sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
)
# The lines that a user writes, without and with the optimizer constructor.
PROJECTS = {
    library: f"""
_base_ = {upstream!r}
custom_imports = dict(imports=['acmix_mm'])
model = dict(backbone=dict(type='ACmixResNet', frozen_stages=0))
"""
    for library, upstream in UPSTREAM.items()
}
WITH_CONSTRUCTOR = "optim_wrapper = dict(constructor='ACmixOptimWrapperConstructor')"


@pytest.mark.parametrize('library', PROJECTS)
def test_third_line_exempts_alpha_and_beta_and_nothing_else(library, tmp_path):
    config = tmp_path / 'project.py'
    config.write_text(PROJECTS[library])
    two_lines = Config.fromfile(config)
    config.write_text(PROJECTS[library] + WITH_CONSTRUCTOR)
    three_lines = Config.fromfile(config)
    init_default_scope(library)
    with torch.device('meta'):
        model = MODELS.build(two_lines.model)
    before, after = (settings(model, cfg.optim_wrapper) for cfg in (two_lines, three_lines))

    decay = two_lines.optim_wrapper.optimizer.weight_decay
    exempt = {name for name in before if name.endswith(('mix.alpha', 'mix.beta'))}
    assert len(exempt) == 2 * 16, 'one layer in each block of ResNet-50, and all are trained'
    assert decay > 0
    assert {before[name]['weight_decay'] for name in exempt} == {decay}
    assert after == {
        name: options | (dict(weight_decay=0.0) if name in exempt else {})
        for name, options in before.items()
    }


def settings(model, optim_wrapper):
    """Build an optimizer, and return the settings of each parameter by its name."""
    groups = build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {key: value for key, value in group.items() if key != 'params'}
        for group in groups
        for parameter in group['params']
        if parameter.requires_grad  # a group of all parameters contains frozen ones, too
    }


# In a process of its own, which knows of acmix_mm through the config alone.
CODE = """
import sys
from mmengine.config import Config
from steps import train_and_predict
assert 'acmix_mm' not in sys.modules
cfg = Config.fromfile(sys.argv[1])
# The configs start from ResNet weights on the network; what follows is built without them.
start = cfg.model.get('pretrained') or cfg.model.backbone.init_cfg.checkpoint
from acmix_mm.registry import MODELS
from mmengine.registry import init_default_scope
init_default_scope(cfg.default_scope)
built = MODELS.build(Config.fromfile(sys.argv[1]).model)
assert built.backbone.init_cfg['checkpoint'] == start
cfg.model.pop('pretrained', None)
model, _, losses, predictions = train_and_predict(cfg)
assert type(model.backbone).__module__ == 'acmix_mm.backbones.resnet'
assert len(predictions) == 2 and all(loss.isfinite().all() for loss in losses.values())
assert any(p != 0.5 for n, p in model.named_parameters() if n.endswith('mix.alpha'))
print('trained', type(model).__name__)
"""


@pytest.mark.parametrize('library', PROJECTS)
def test_an_upstream_config_with_our_backbone(library, tmp_path):
    config = tmp_path / 'project.py'
    config.write_text(PROJECTS[library])
    result = subprocess.run(
        [sys.executable, '-c', CODE, str(config)],
        cwd=Path(__file__).parent, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert 'trained' in result.stdout


# The same on real images, by mmengine's own runner.
TRAIN = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
assert 'acmix_mm' not in sys.modules
cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[2]
cfg.model.backbone.init_cfg = None
cfg.model.pop('pretrained', None)
Runner.from_cfg(cfg).train()
"""


@needs_coco
@pytest.mark.parametrize('library', PROJECTS)
def test_an_upstream_config_on_real_images(library, tmp_path):
    config = tmp_path / 'project.py'
    write_config(config, PROJECTS[library], library)
    result = subprocess.run(
        [sys.executable, '-c', TRAIN, str(config), str(tmp_path / 'run')],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-5000:]
    expected = dict(mmdet={'coco/bbox_mAP', 'coco/segm_mAP'}, mmseg={'mIoU', 'aAcc'})
    assert expected[library] <= last_metrics(tmp_path / 'run').keys()


def test_upstream_tool_with_a_config_that_inherits_ours(shapes, tmp_path):
    """mmengine evaluates ``_base_``, which imports the package that gives the name its meaning."""
    config = tmp_path / 'project.py'
    config.write_text(f"""
_base_ = __import__('acmix_mm') and 'acmix_mm::demo/mask-rcnn_resnet26-acmix_fpn_shapes.py'
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root={str(shapes)!r})
)
train_cfg = dict(max_epochs=1)
val_cfg = val_dataloader = val_evaluator = None
""")
    tool = f'{mmdet.__path__[0]}/.mim/tools/train.py'
    result = subprocess.run(
        [sys.executable, tool, str(config), '--work-dir', str(tmp_path / 'run')],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-5000:]
    assert 'Failed to search registry' not in result.stdout + result.stderr
    weights = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)['state_dict']
    assert any(name.endswith('mix.alpha') and (w != 0.5).all() for name, w in weights.items())
