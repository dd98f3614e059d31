"""A project that has nothing of ours but `custom_imports` and `model.backbone`."""

import subprocess
import sys
from pathlib import Path

import mmdet
import mmseg
import pytest

# upstream config -> all that its user writes for the model.
MODELS = {
    Path(mmdet.__file__).parent / '.mim/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': (
        "dict(backbone=dict(type='ACmixResNet'))"
    ),
    Path(mmseg.__file__).parent / '.mim/configs/sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py': (
        "dict(backbone=dict(type='ACmixResNet'))"
    ),
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


@pytest.mark.parametrize(('upstream', 'model'), MODELS.items(), ids=['mmdet', 'mmseg'])
def test_an_upstream_config_with_our_backbone(upstream, model, tmp_path):
    config = tmp_path / 'project.py'
    config.write_text(
        f"_base_ = '{upstream}'\ncustom_imports = dict(imports=['acmix_mm'])\nmodel = {model}\n"
    )
    result = subprocess.run(
        [sys.executable, '-c', CODE, str(config)],
        cwd=Path(__file__).parent, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert 'trained' in result.stdout
