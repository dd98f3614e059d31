"""tools/reproduce.py trains, resumes and tests a tiny model, and its commands are valid."""

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.fileio import load

ROOT = Path(__file__).parents[2]

# A segmentor that trains for two steps. Its process is killed once, after the first checkpoint.
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['acmix_mm', 'killed_once'])
custom_hooks = [dict(type='KilledOnce', priority='LOWEST')]
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=4)
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
val_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
test_dataloader = val_dataloader
"""
HOOK = """
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KilledOnce(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        killed = Path(runner.work_dir, 'killed')
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope='module')
def reproduce(tool):
    return tool('reproduce.py')


def write_index(folder, **models):
    """Write an index file with one metafile.

    Args:
        folder: Folder of both files.
        **models: Config and additional entries of each model, by its name.
    """
    entries = [
        dict(Name=name, Config=config, Metadata={'Training Data': 'ADE20K'}, **more)
        for name, (config, more) in models.items()
    ]
    (folder / 'metafile.yml').write_text(json.dumps(dict(Models=entries)))
    (folder / 'index.yml').write_text('Import: [metafile.yml]')
    return str(folder / 'index.yml')


def test_killed_and_taken_up_again(reproduce, shapes, tmp_path, monkeypatch, capsys):
    base = str(ROOT / 'configs/demo/sem-fpn_resnet26-acmix_shapes.py')
    (tmp_path / 'tiny.py').write_text(CONFIG.format(base=base, data=str(shapes)))
    (tmp_path / 'killed_once.py').write_text(HOOK)
    broken = CONFIG.format(base=base, data='nowhere')
    (tmp_path / 'broken.py').write_text(broken)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    published = {
        'Published': dict(Source='a paper', Metrics=dict(mIoU=41.9)),
        'Plain Backbone': dict(Source='a figure', Metrics=dict(mIoU=41.5)),
    }
    index = write_index(tmp_path, broken=('broken.py', {}), tiny=('tiny.py', published))
    argv = ['--index', index, '--work-dir', 'runs']

    with pytest.raises(SystemExit, match='2 of 2 models failed') as error:
        reproduce.main(argv)
    assert 'runs/broken/reproduce.log' in str(error.value)
    assert 'nowhere' in Path('runs/broken/reproduce.log').read_text()
    with open('runs/results.csv') as file:
        states = {row['model']: row['state'] for row in csv.DictReader(file)}
    assert states == dict(broken='', tiny='iter_1')

    capsys.readouterr()
    reproduce.main([*argv, 'tiny', '--dry-run'])
    train, test = capsys.readouterr().out.splitlines()
    assert '--resume' in train
    assert '--cfg-options train_dataloader.batch_size=4' in train
    assert 'runs/tiny/iter_2.pth' in test

    reproduce.main([*argv, 'tiny'])
    log = Path('runs/tiny/reproduce.log').read_text()
    assert 'resumed epoch: 0, iter: 1' in log
    (metrics,) = Path('runs/tiny/test').glob('*/[0-9]*.json')
    ours = json.loads(metrics.read_text())['mIoU']
    row = f'| tiny | done | mIoU | {round(ours, 2)} | 41.9 | a paper | 41.5 | a figure |'
    assert row in Path('runs/results.md').read_text()

    reproduce.main([*argv, 'tiny'])
    assert Path('runs/tiny/reproduce.log').read_text() == log, 'nothing was run again'
    out = capsys.readouterr().out
    assert '1/1 tiny: done' in out
    assert row in out


def test_every_model_of_the_metafiles_is_a_row(reproduce):
    models = reproduce.read_models(ROOT / 'model-index.yml')
    listed = [
        entry['Name']
        for metafile in load(ROOT / 'model-index.yml')['Import']
        for entry in load(ROOT / metafile)['Models']
    ]
    assert [model.name for model in models] == listed
    tasks = [model.task for model in models]
    assert {task: tasks.count(task) for task in set(tasks)} == dict(
        detection=30, segmentation=19, imagenet=10
    )
    figures = [figures for model in models for figures in (model.published, model.plain)]
    names = {name for part in figures for name in part.metrics}
    assert len([part for part in figures if part.metrics]) == 19
    assert names <= {name for name, _ in reproduce.METRICS.values()}


@pytest.mark.parametrize(
    ('gpus', 'name', 'options', 'last'),
    [
        (1, 'retinanet_pvt-t-acmix_fpn_1x_coco', dict(batch_size=16), 'epoch_12'),
        (1, 'swin-t-acmix_8xb128_in1k', dict(batch_size=1024), 'epoch_300'),
        (4, 'upernet_swin-t-acmix_8xb2-160k_ade20k-512x512', dict(batch_size=4), 'iter_160000'),
        (8, 'mask-rcnn_resnet50-acmix_fpn_ms-3x_coco', {}, 'epoch_36'),
    ],
)
def test_commands_parse(reproduce, tool, capsys, monkeypatch, gpus, name, options, last):
    monkeypatch.chdir(ROOT)
    reproduce.main([name, '--dry-run', '--gpus', str(gpus), '--work-dir', 'a b'])
    train, test = map(shlex.split, capsys.readouterr().out.splitlines())
    for command, script in ((train, 'train'), (test, 'test')):
        if gpus > 1:
            assert command[:2] == ['bash', f'tools/dist_{script}.sh']
            assert command.pop(3 if script == 'train' else 4) == str(gpus)
        else:
            assert command[:2] == ['python', f'tools/{script}.py']
        assert Path(command[1]).is_file()
    args = tool('train.py').parse_args(train[2:])
    assert Path(args.config).is_file()
    assert args.work_dir == f'a b/{name}'
    assert args.cfg_options == {f'train_dataloader.{key}': n for key, n in options.items()}
    assert args.resume is None
    args = tool('test.py').parse_args(test[2:])
    assert args.checkpoint == f'a b/{name}/{last}.pth'
    assert args.work_dir == f'a b/{name}/test'


# Runs a command that starts another one, as dist_train.sh does, and neither of them ends.
STARTS_A_TRAINING = """
import runpy, sys
from pathlib import Path
reproduce = runpy.run_path(sys.argv[1])
nothing = reproduce['Figures']({}, '')
model = reproduce['Model']('tiny', 'tiny.py', 'segmentation', nothing, nothing)
run = reproduce['Run'](model, Path('tiny'), 1)
run.state = lambda: 'epoch_1'
command = ['bash', '-c', 'sleep 600 & echo $! > inner; echo $$ > outer; wait']
reproduce['run_all']([(run, [command])], [run], Path('.'))
"""


def wait_for(happens, seconds=60):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.05)


def runs(process: int) -> bool:
    try:
        state = Path(f'/proc/{process}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != 'Z'  # ended, and nobody has asked how


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_ends_it_ends_the_training(tmp_path, number):
    command = [sys.executable, '-c', STARTS_A_TRAINING, str(ROOT / 'tools/reproduce.py')]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        files = [tmp_path / 'inner', tmp_path / 'outer']
        wait_for(lambda: all(file.exists() and file.read_text().strip() for file in files))
        started = [int(file.read_text()) for file in files]
        assert all(map(runs, started))
        process.send_signal(number)
        assert process.wait(60) == 1
        message = process.stderr.read().splitlines()[-1]
    assert message == f'Ended by {number.name}. Run the same command again to continue.'
    wait_for(lambda: not any(map(runs, started)))
    assert '| tiny | epoch_1 |' in (tmp_path / 'results.md').read_text()


def test_a_config_that_cannot_be_read_is_a_failed_row(reproduce, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('syntax.py').write_text('train_cfg = dict(')
    Path('library.py').write_text("_base_ = 'no_such_library::configs/a.py'")
    Path('empty.py').write_text('')
    broken = {name: (f'{name}.py', {}) for name in ('syntax', 'library', 'missing', 'empty')}
    done = {'done': (str(ROOT / 'configs/demo/sem-fpn_resnet26-acmix_shapes.py'), {})}
    index = write_index(tmp_path, **broken, **done)
    argv = ['--index', index, '--work-dir', 'runs']
    with pytest.raises(SystemExit, match='4 of 5 models failed') as error:
        reproduce.main([*argv, '--dry-run'])
    for name in broken:
        assert f'  {name}: {name}.py ' in str(error.value)
    assert 'train.py' in capsys.readouterr().out, 'the commands of the good one'

    test = Path('runs/done/test/a')
    test.mkdir(parents=True)
    (test / '0.json').write_text(json.dumps(dict(mIoU=40)))
    (test / '1.json').write_text('{"mIoU": 4')  # cut off while it was written
    with pytest.raises(SystemExit, match='4 of 5 models failed'):
        reproduce.main(argv)
    assert '| done | done | mIoU | 40 |' in Path('runs/results.md').read_text()
    assert 'runs/done/test/a/1.json is not a file of metrics' in capsys.readouterr().err


@pytest.mark.parametrize('content', ['', '{"mIoU": 4', '[]', '{"mIoU": "x"}', '{"mIoU": null}'])
def test_damaged_metrics_are_no_test(reproduce, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    model = reproduce.Model('a', 'a.py', 'segmentation', {}, '')
    run = reproduce.Run(model, Path('a'), 1)
    Path('a/test/b').mkdir(parents=True)
    Path('a/test/b/1.json').write_text(content)
    assert run.metrics() == {}


def test_results_that_cannot_be_written_are_one_message(reproduce, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('file').touch()
    index = write_index(tmp_path, syntax=('syntax.py', {}))
    with pytest.raises(SystemExit, match=r"'file/results.csv' cannot be written"):
        reproduce.main(['--index', index, '--work-dir', 'file'])


def test_mistakes(reproduce, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r'No model of .* matches --only imagenet nothing'):
        reproduce.main(['nothing', '--only', 'imagenet', '--dry-run'])
    with pytest.raises(SystemExit, match='steps of 16 images'):
        reproduce.main(['retinanet_swin-t*', '--dry-run', '--gpus', '3'])
    for gpus in ('0', '-2', 'x'):
        with pytest.raises(SystemExit, match='2'):
            reproduce.main(['--dry-run', '--gpus', gpus])
    with pytest.raises(SystemExit, match='2'):
        reproduce.main(['--dry-run', '--index', 'nowhere.yml'])
    index = write_index(tmp_path, unknown=('c.py', {}))
    text = (tmp_path / 'metafile.yml').read_text()
    (tmp_path / 'metafile.yml').write_text(text.replace('ADE20K', 'Cats'))
    with pytest.raises(SystemExit, match='Training Data of unknown is Cats'):
        reproduce.main(['--index', index, '--dry-run'])
