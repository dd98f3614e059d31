"""Several processes on the CPU train and evaluate as one process does, and the launchers work."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
from torch.distributed.fsdp import FullyShardedDataParallel

from benchmarks import distributed

ROOT = Path(__file__).parents[1]
DETECTOR = str(ROOT / 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py')
SEGMENTOR = str(ROOT / 'configs/demo/sem-fpn_resnet26-acmix_shapes.py')
FSDP = str(ROOT / 'configs/_base_/strategies/fsdp.py')
TIMEOUT = 120  # seconds after which a job counts as hung
# The cases of benchmarks/distributed.py that are trained, by the number of processes.
JOBS = {2: ['segmentor', 'sharded-segmentor', 'fcos'], 4: ['segmentor']}


@pytest.fixture(scope='module')
def comparisons(tmp_path_factory):
    found = distributed.compare(JOBS, tmp_path_factory.mktemp('comparison'))
    return {(c.processes, c.case): c for c in found}


@pytest.mark.parametrize(
    'job', [(processes, case) for processes, cases in JOBS.items() for case in cases], ids=str
)
def test_several_processes_train_and_evaluate_as_one(comparisons, job):
    found = comparisons[job]
    assert found.same_images
    assert found.last_loss < 0.7 * found.first_loss
    assert found.deviation < 1e-5
    shards = found.processes if 'sharded' in found.case else 1
    assert found.parameters == pytest.approx(1 / shards, rel=0.01)
    assert found.evaluated == 7
    assert found.evaluated_once


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def start(script, *args, cwd, **environment):
    """Start a launcher in a folder, so that it calls the Python that runs the tests."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return subprocess.Popen(
        [str(ROOT / 'tools' / script), *args],
        cwd=cwd, env=os.environ | dict(PATH=path) | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def output_of(process):
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, output[-5000:]
    return output


@pytest.fixture(scope='module')
def options(shapes):
    """Return options for a short run, whose 3 test images are not divisible by 2 processes."""
    loaders = [
        f'{split}_dataloader.{option}'
        for split in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False')
    ]
    images = ['train_dataloader.batch_size=2', 'test_dataloader.batch_size=1',
              'test_dataloader.dataset.indices=3']  # fmt: skip
    return [
        '--cfg-options', f'data_root={shapes}', *loaders, *images, 'train_cfg.max_epochs=1',
        'train_cfg.val_interval=2', 'model.test_cfg.rcnn.score_thr=0.0',
        'default_hooks.logger.interval=1', 'env_cfg.dist_cfg.timeout=60',
    ]  # fmt: skip


def test_launchers(tool, options, tmp_path):
    """Train on two processes; test on one, and on two that are started as if on two machines."""
    train = start('dist_train.sh', DETECTOR, '2', '--work-dir', 'run', *options,
                  cwd=tmp_path, PORT=free_port())  # fmt: skip
    # 8 images in steps of 2 x 2
    assert 'Epoch(train) [1][2/2]' in output_of(train)

    checkpoint = str(tmp_path / 'run/epoch_1.pth')
    dump = 'test_evaluator.outfile_prefix='
    alone = tool('test.py').main([
        DETECTOR, checkpoint, '--work-dir', f'{tmp_path}/test', *options, f'{dump}{tmp_path}/alone',
    ])  # fmt: skip
    port = free_port()
    machines = [
        start('dist_test.sh', DETECTOR, checkpoint, '1', '--work-dir', 'test', *options,
              f'{dump}{tmp_path}/together', cwd=tmp_path, PORT=port, NNODES='2', NODE_RANK=rank)
        for rank in '01'
    ]  # fmt: skip
    outputs = [output_of(machine) for machine in machines]
    assert f'bbox_mAP: {alone["coco/bbox_mAP"]:.4f}' in outputs[0]
    for kind in ('bbox', 'segm'):
        predictions, expected = (
            json.loads((tmp_path / f'{name}.{kind}.json').read_text())
            for name in ('together', 'alone')
        )
        assert predictions == expected
        assert len({prediction['image_id'] for prediction in predictions}) == 3


@pytest.fixture
def lone_job(monkeypatch):
    """Set the variables that torchrun sets for the only process of a job."""
    job = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1')
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('MASTER_PORT', free_port())
    yield
    torch.distributed.destroy_process_group()


def test_fsdp_resumes(tool, shapes, lone_job, tmp_path):
    config = tmp_path / 'sharded.py'
    config.write_text(f'_base_ = [{SEGMENTOR!r}, {FSDP!r}]')
    loader = dict(num_workers=0, persistent_workers=False, batch_size=1)
    loader = [f'train_dataloader.{name}={value}' for name, value in loader.items()]

    def train(iterations, *more):
        runner = tool('train.py').main([
            str(config), '--launcher', 'pytorch', '--work-dir', str(tmp_path), *more,
            '--cfg-options', f'data_root={shapes}', *loader, 'default_hooks.checkpoint.interval=1',
            f'train_cfg.max_iters={iterations}', 'train_cfg.val_interval=9',
        ])  # fmt: skip
        return runner.model, torch.load(tmp_path / f'iter_{iterations}.pth', weights_only=False)

    _, before = train(1)
    model, after = train(2, '--resume')
    units = [module for module in model.modules() if isinstance(module, FullyShardedDataParallel)]
    assert len(units) == 1 + 8  # the model itself and the blocks of ResNet-26
    assert after['meta']['iter'] == 2
    for name, state in after['optimizer']['state'].items():
        assert state['step'] == 2, name
    assert after['state_dict'].keys() == before['state_dict'].keys()


STAND_IN = """#!/bin/sh
for argument; do echo "$argument"; done
"""


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        ([], []),
        (['work'], ['--work-dir', 'work']),
        (['work', '--resume'], ['--work-dir', 'work', '--resume']),
        (['--amp'], ['--amp']),
    ],
)
def test_slurm(tmp_path, monkeypatch, args, expected):
    srun = tmp_path / 'srun'
    srun.write_text(STAND_IN)
    srun.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    job = subprocess.run(
        [str(ROOT / 'tools/slurm_train.sh'), 'part', 'a job', 'config.py', *args],
        env=os.environ | dict(GPUS='4', SRUN_ARGS='--time 1:00 --exclusive'),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert job.stdout.splitlines() == [
        '--partition', 'part', '--job-name', 'a job', '--gres', 'gpu:4', '--ntasks', '4',
        '--ntasks-per-node', '4', '--cpus-per-task', '5', '--kill-on-bad-exit', '1',
        '--time', '1:00', '--exclusive',
        'python', '-u', f'{ROOT}/tools/train.py', 'config.py', '--launcher', 'slurm', *expected,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('script', 'args'),
    [
        ('dist_train.sh', 'CONFIG GPUS'),
        ('dist_test.sh', 'CONFIG CHECKPOINT GPUS'),
        ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG'),
    ],
)
def test_too_few_arguments_show_the_usage(script, args):
    given = ['x'] * args.count(' ')
    job = subprocess.run([str(ROOT / 'tools' / script), *given], capture_output=True, text=True)
    assert job.returncode == 2
    assert job.stderr.startswith('usage: ')
    assert f'{script} {args}' in job.stderr
    assert not job.stdout
