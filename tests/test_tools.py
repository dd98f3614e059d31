"""tools/train.py and tools/test.py, for detection and segmentation, on a few images."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
import torch
from mmdet.models import DetTTAModel
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.visualization import Visualizer
from mmseg.visualization import SegLocalVisualizer
from real_images import last_metrics, needs_coco, write_config

ROOT = Path(__file__).parents[1]
DETECTOR = str(ROOT / 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py')
SEGMENTOR = str(ROOT / 'configs/demo/sem-fpn_resnet26-acmix_shapes.py')


def as_own_process(main):
    """Let each run create its own visualizer, as in a new process.

    mmengine keeps visualizers by name, so a second run would write to the folder of the first.
    """

    def run(argv):
        for visualizer in (Visualizer, DetLocalVisualizer, SegLocalVisualizer):
            visualizer._instance_dict.clear()
        return main(argv)

    return run


@pytest.fixture(scope='module')
def train(tool):
    return as_own_process(tool('train.py').main)


@pytest.fixture(scope='module')
def test(tool):
    return as_own_process(tool('test.py').main)


def in_process(split, **kwargs):
    """Return options for a data loader without worker processes."""
    options = dict(num_workers=0, persistent_workers=False, batch_size=4, **kwargs)
    return [f'{split}_dataloader.{key}={value}' for key, value in options.items()]


@pytest.fixture(scope='module')
def small(shapes):
    """Return --cfg-options for a short run on the small data set."""
    loaders = [option for split in ('train', 'val', 'test') for option in in_process(split)]
    return ['--cfg-options', f'data_root={shapes}', *loaders]


@pytest.fixture(scope='module')
def detector(train, small, tmp_path_factory):
    """Train a detector for one epoch, and return its work dir and options.

    The score threshold is 0, so that even this model has detections to compare.
    """
    work_dir = tmp_path_factory.mktemp('detector')
    options = [*small, 'model.test_cfg.rcnn.score_thr=0.0']
    dump = f'val_evaluator.outfile_prefix={work_dir}/trained'
    train([DETECTOR, '--work-dir', str(work_dir), *options, 'train_cfg.max_epochs=1',
           'train_cfg.val_interval=1', dump])  # fmt: skip
    return work_dir, options


def test_test_repeats_the_evaluation_of_training(detector, test, tmp_path):
    work_dir, options = detector
    metrics = test([
        DETECTOR, f'{work_dir}/epoch_1.pth', '--work-dir', str(tmp_path),
        '--out', f'{tmp_path}/out.pkl', '--show-dir', f'{tmp_path}/pictures',
        *options, f'test_evaluator.outfile_prefix={tmp_path}/tested',
    ])  # fmt: skip
    trained = last_metrics(work_dir)
    assert len(metrics) == 12
    assert metrics == {name: trained[name] for name in metrics}
    for kind in ('bbox', 'segm'):
        predictions = (tmp_path / f'tested.{kind}.json').read_bytes()
        assert predictions == (work_dir / f'trained.{kind}.json').read_bytes()
        assert len(json.loads(predictions)) > 4
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 4


def test_tta_sees_every_image_twice(detector, test, tmp_path, monkeypatch):
    work_dir, options = detector
    views = []
    merge = DetTTAModel.merge_preds
    monkeypatch.setattr(
        DetTTAModel,
        'merge_preds',
        lambda self, samples: (
            [views.append([v.flip for v in s]) for s in samples] and merge(self, samples)
        ),
    )
    metrics = test([
        DETECTOR, f'{work_dir}/epoch_1.pth', '--work-dir', str(tmp_path), '--tta', *options,
        'model.roi_head.mask_head=None', 'model.roi_head.mask_roi_extractor=None',
        'test_evaluator.metric=bbox',
    ])  # fmt: skip
    assert views == [[True, False]] * 4
    assert 'coco/bbox_mAP' in metrics


def test_resume_goes_on_from_the_latest_checkpoint(detector, train, tmp_path):
    work_dir, options = detector
    shutil.copy(f'{work_dir}/epoch_1.pth', tmp_path)
    short = [*options, 'train_cfg.max_epochs=2', 'train_cfg.val_interval=3',
             'default_hooks.logger.interval=1']  # fmt: skip
    runner = train([DETECTOR, '--work-dir', str(tmp_path), '--resume', *short])
    assert runner.epoch == 2
    assert runner.iter == 4
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    steps = [json.loads(line) for line in log.open()]
    assert [step['iter'] for step in steps if 'iter' in step] == [3, 4]
    named = tmp_path / 'named'
    train([DETECTOR, '--work-dir', str(named), '--resume', f'{work_dir}/epoch_1.pth', *short])
    one, other = (torch.load(folder / 'epoch_2.pth', weights_only=False)['state_dict']
                  for folder in (tmp_path, named))  # fmt: skip
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_segmentation(train, test, small, tmp_path):
    short = [*small, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
             'default_hooks.checkpoint.interval=2']  # fmt: skip
    work_dir = tmp_path / 'run'
    train([SEGMENTOR, '--work-dir', str(work_dir), *short])
    trained = last_metrics(work_dir)
    metrics = test([
        SEGMENTOR, f'{work_dir}/iter_2.pth', '--work-dir', f'{tmp_path}/test',
        '--out', f'{tmp_path}/maps', '--show-dir', f'{tmp_path}/pictures', *short,
    ])  # fmt: skip
    assert set(metrics) == {'aAcc', 'mIoU', 'mAcc'}
    assert metrics == {name: trained[name] for name in metrics}
    assert len(list((tmp_path / 'maps').glob('*.png'))) == 4
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4


@needs_coco
@pytest.mark.parametrize(
    ('library', 'base', 'checkpoint'),
    [
        ('mmdet', 'mask_rcnn_acmix.py', 'epoch_1.pth'),
        ('mmseg', 'resnet_acmix/sem-fpn_resnet50-acmix_8xb4-40k_ade20k-512x512.py', 'iter_2.pth'),
    ],
    ids=['detector', 'segmentor'],
)
def test_real_images(train, test, tmp_path, library, base, checkpoint):
    config = tmp_path / 'real.py'
    write_config(config, f"_base_ = '{ROOT}/configs/{base}'", library)
    options = ['--cfg-options', 'model.backbone.init_cfg=None']
    work_dir = tmp_path / 'run'
    train([str(config), '--work-dir', str(work_dir), *options])
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    step, *_ = map(json.loads, log.read_text().splitlines())
    assert 0 < step['loss'] < 100
    metrics = test([
        str(config), str(work_dir / checkpoint), '--work-dir', str(tmp_path / 'test'), *options,
    ])  # fmt: skip
    trained = last_metrics(work_dir)
    assert len(metrics) == dict(mmdet=12, mmseg=3)[library]
    assert metrics == {name: trained[name] for name in metrics}


def test_missing_data_is_one_message_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        str(ROOT / 'tools/train.py'),
        str(ROOT / 'configs/mask_rcnn_acmix.py'),
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    for part in ('data/coco/annotations/instances_train2017.json', 'data/coco/val2017/',
                 'cocodataset.org', 'make demo'):  # fmt: skip
        assert part in result.stderr
    assert not list(tmp_path.iterdir()), 'nothing was begun'


def test_missing_checkpoints(train, test, small, tmp_path):
    init_cfg = [
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/closed.pth',
    ]
    to = ['--work-dir', str(tmp_path / 'run')]
    with pytest.raises(SystemExit, match=r'missing\.pth'):
        test([DETECTOR, 'missing.pth', *to, *small])
    with pytest.raises(SystemExit, match=r'missing\.pth'):
        train([DETECTOR, '--resume', 'missing.pth', *to, *small])
    with pytest.raises(SystemExit, match=r'missing\.pth'):
        train([DETECTOR, *to, *small, 'load_from=missing.pth'])
    with pytest.raises(SystemExit, match=r'closed\.pth.*refused'):
        train([DETECTOR, *to, *small, *init_cfg])
    assert not (tmp_path / 'run').exists()


def test_options_that_a_run_cannot_have(tool, train, test, small, monkeypatch):
    with pytest.raises(SystemExit, match='boxes only'):
        test([DETECTOR, 'x.pth', '--tta', *small])
    with pytest.raises(SystemExit, match='tta_pipeline'):
        tool('test.py').use_tta(Config(dict(default_scope='mmseg')))
    with pytest.raises(SystemExit, match=r'\.pkl'):
        test([DETECTOR, 'x.pth', '--out', 'out.json', *small])
    with pytest.raises(SystemExit, match='visualization hook'):
        test([DETECTOR, 'x.pth', '--show', *small, 'default_hooks=[]'])
    with pytest.raises(SystemExit, match='base_batch_size'):
        train([SEGMENTOR, '--auto-scale-lr', *small])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match='--amp'):
            train([DETECTOR, '--amp', *small])


@pytest.mark.parametrize(('option', 'code'), [('--help', 0), ('--epochs', 2)])
def test_demo_does_not_start_with_other_options(tool, capsys, option, code):
    with pytest.raises(SystemExit, match=str(code)):
        tool('demo.py').main([option])
    output = capsys.readouterr()
    assert 'usage: ' in output.out + output.err


def test_demo_table(tool):
    metrics = {
        f'coco/{kind}_mAP{at}': 0.5 for kind in ('bbox', 'segm') for at in ('', '_50', '_75')
    }
    metrics['coco/segm_mAP_50'] = 0.875
    table = tool('demo.py').ap_table(metrics)
    assert table.splitlines()[2].split() == ['masks', '0.500', '0.875', '0.500']


@pytest.mark.parametrize('attack', [hostile.eval_call, hostile.getattr_walk_without_calls])
@pytest.mark.parametrize('entry', ['test', 'resume', 'load_from', 'Pretrained'])
def test_hostile_checkpoints(train, test, small, tmp_path, attack, entry):
    path, marker = tmp_path / 'hostile.pth', tmp_path / 'code-ran'
    hostile.write_checkpoint(path, attack(f'touch {marker}'))
    argv = [SEGMENTOR, '--work-dir', str(tmp_path / 'run')]
    options = {
        'load_from': [f'load_from={path}'],
        'Pretrained': [
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={path}',
        ],
    }.get(entry, [])
    argv[1:1] = dict(test=[str(path)], resume=['--resume', str(path)]).get(entry, [])
    with pytest.raises(SystemExit, match=r'hostile\.pth.* (refused|not a checkpoint)'):
        (test if entry == 'test' else train)([*argv, *small, *options])
    assert not marker.exists()


def test_resume_takes_up_what_is_whole(train, small, tmp_path, capsys):
    argv = [SEGMENTOR, '--work-dir', str(tmp_path / 'run'), '--resume', *small,
            'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
            'default_hooks.checkpoint.interval=1']  # fmt: skip
    train(argv)
    newest = tmp_path / 'run/iter_2.pth'
    newest.write_bytes(newest.read_bytes()[:1000])
    (tmp_path / 'run/last_checkpoint').write_text('/gone/iter_2.pth')
    assert train(argv).iter == 2
    printed = capsys.readouterr().err
    assert f'No checkpoint to resume from in {tmp_path}/run' in printed
    assert f'Passed over {newest}: {newest} is not a checkpoint written by torch.save' in printed
    assert (tmp_path / 'run/last_checkpoint').read_text() == str(newest)
