"""Mistakes in calls of tools/train.py and tools/test.py: one message, before the work begins."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

ROOT = Path(__file__).parents[1]
DETECTOR = str(ROOT / 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py')
SEGMENTOR = str(ROOT / 'configs/demo/sem-fpn_resnet26-acmix_shapes.py')


@pytest.fixture(scope='module')
def train(tool):
    return tool('train.py').main


@pytest.fixture(scope='module')
def test(tool):
    return tool('test.py').main


@pytest.fixture
def small(shapes, tmp_path):
    """Return options of a short run on the small data set."""
    loaders = [
        f'{split}_dataloader.{option}'
        for split in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=4')
    ]
    work_dir = ['--work-dir', str(tmp_path / 'run')]
    return [*work_dir, '--cfg-options', f'data_root={shapes}', *loaders]


@pytest.fixture(scope='module')
def state_dict():
    """Return the weights of the segmentor."""
    cfg = Config.fromfile(SEGMENTOR)
    init_default_scope('mmseg')
    return MODELS.build(cfg.model).state_dict()


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a training or a test begins."""

    def begin(*_):
        raise AssertionError('the work has begun')

    monkeypatch.setattr(Runner, 'train', begin)
    monkeypatch.setattr(Runner, 'test', begin)


def message(main, argv):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert isinstance(end.value.code, str)
    return end.value.code


def test_planted_half_of_a_checkpoint(test, small, state_dict, tmp_path):
    half = dict(list(state_dict.items())[: len(state_dict) // 2])
    torch.save(dict(state_dict=half), tmp_path / 'half.pth')
    argv = [SEGMENTOR, str(tmp_path / 'half.pth'), *small]
    says = message(test, argv)
    assert 'half.pth does not fit the model: ' in says
    assert '\n' not in says
    assert 'mIoU' in test([*argv[:2], '--allow-missing', *argv[2:]])


def test_whole_checkpoint(test, small, state_dict, tmp_path):
    torch.save(dict(state_dict=state_dict), tmp_path / 'whole.pth')
    assert 'mIoU' in test([SEGMENTOR, str(tmp_path / 'whole.pth'), *small])


@pytest.mark.parametrize(
    ('config', 'options', 'says'),
    [
        (DETECTOR, ['--out', '/proc/x.pkl'], '--out /proc: nothing can be written there'),
        (DETECTOR, ['--out', ''], '--out must end in .pkl'),
        (SEGMENTOR, ['--out', ''], '--out needs the path of a folder'),
        (SEGMENTOR, ['--out', '/dev/null'], '--out /dev/null: nothing can be written there'),
        (SEGMENTOR, ['--show-dir', '/dev/null/a'], '--show-dir /dev/null/a: nothing can be'),
        (SEGMENTOR, ['--work-dir', '/dev/null/a'], '--work-dir /dev/null/a: nothing can be'),
        (SEGMENTOR, ['--launcher', 'pytorch'], '--launcher pytorch: RANK, '),
    ],
)
@pytest.mark.usefixtures('no_work')
def test_planted_option_of_test(test, small, state_dict, tmp_path, config, options, says):
    torch.save(state_dict, tmp_path / 'a.pth')
    text = message(test, [config, str(tmp_path / 'a.pth'), *small[:2], *options, *small[2:]])
    assert says in text
    assert '\n' not in text


CONTENTS = {
    'no weights': {'epoch': 3},
    'empty state dict': {'state_dict': {}},
    'integer keys': {5: torch.ones(1)},
    'a backbone alone': {'layer1.0.conv2.weight': torch.ones(1)},
    'another backbone': {'layers.0.blocks.0.attn.relative_position_bias_table': torch.ones(9, 3)},
}


@pytest.mark.parametrize('entry', ['test', 'load_from'])
@pytest.mark.parametrize('name', CONTENTS)
@pytest.mark.usefixtures('no_work')
def test_planted_checkpoint(train, test, small, name, entry, tmp_path):
    torch.save(CONTENTS[name], tmp_path / 'a.pth')
    if entry == 'test':
        text = message(test, [SEGMENTOR, str(tmp_path / 'a.pth'), *small])
    else:
        text = message(train, [SEGMENTOR, *small, f'load_from={tmp_path}/a.pth'])
    assert f'The checkpoint {tmp_path}/a.pth ' in text.splitlines()[0]


@pytest.mark.usefixtures('no_work')
def test_planted_pretrained_of_another_family(train, small, tmp_path):
    torch.save(CONTENTS['another backbone'], tmp_path / 'swin.pth')
    init_cfg = [
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={tmp_path}/swin.pth',
    ]
    text = message(train, [SEGMENTOR, *small, *init_cfg])
    assert f'The checkpoint {tmp_path}/swin.pth cannot be loaded (its format is plain Swin' in text


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['model.backbone.depth=27'], 'model.backbone (ACmixResNet): ACmixResNet: depth must'),
        (['model.backbone.drop_path_rate=2.0'], 'drop_path_rate must be at least 0 and less'),
        (['model.backbone.acmix_cfg.kernel_at=3'], 'Did you mean kernel_att?'),
        (['model.backbone.type=ACmixResnet'], "'ACmixResnet is not in the"),
        (['model.bacbone.depth=26'], 'Did you mean model.backbone.depth?'),
        (['model=None'], 'model must be a dict, got None'),
    ],
)
@pytest.mark.usefixtures('no_work')
def test_planted_option_of_train(train, small, options, says):
    text = message(train, [SEGMENTOR, *small, *options])
    assert says in text
    assert '\n' not in text


def test_planted_optimizer(train, small):
    """It is built after the training has begun, but before its first step."""
    text = message(train, [SEGMENTOR, *small, 'optim_wrapper.optimizer.lr=-1'])
    assert 'optim_wrapper' in text
    assert '-1' in text
    assert '\n' not in text
