import sys

import pytest
import torch
from mmengine.config import Config

from acmix_mm.registry import MODELS
from acmix_mm.runtime import (
    argument_parser,
    load_config,
    mistakes_are_one_message,
    require_inputs,
    require_outputs,
)
from acmix_mm.runtime.config import move_data_root

TEXT = """
data_root = 'data/coco/'
train_dataloader = dict(
    pin_memory=True,
    dataset=dict(data_root=data_root, ann_file='train.json', pipeline=[dict(path='data/cocoa')]))
val_evaluator = [dict(ann_file=data_root + 'val.json')]
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / 'mask-rcnn.py'
    file.write_text(TEXT)
    return str(file)


def load(*argv):
    return load_config(argument_parser('').parse_args(argv))


def test_work_dir_is_named_after_the_config_unless_said_otherwise(config):
    assert load(config).work_dir == 'work_dirs/mask-rcnn'
    assert load(config, '--cfg-options', 'work_dir=b').work_dir == 'b'
    assert load(config, '--work-dir', 'a', '--cfg-options', 'work_dir=b').work_dir == 'a'


@pytest.mark.parametrize('new', ['/disk/coco', '/disk/coco/'])
def test_data_root_moves_every_path_below_it(config, new):
    cfg = load(config, '--cfg-options', f'data_root={new}', 'train_dataloader.batch_size=3')
    assert cfg.train_dataloader.dataset.data_root == '/disk/coco/'
    assert cfg.val_evaluator[0].ann_file == '/disk/coco/val.json'
    assert cfg.train_dataloader.dataset.pipeline[0].path == 'data/cocoa'
    assert cfg.train_dataloader.batch_size == 3
    assert cfg.filename == config


def test_data_root_needs_one_to_move():
    with pytest.raises(SystemExit, match=r'data_root=x could replace.*train_dataloader'):
        move_data_root(Config(dict(), filename=None), 'x')


@pytest.mark.parametrize('value', ['5', 'None'])
def test_data_root_must_be_a_folder(config, value):
    with pytest.raises(SystemExit, match=f'data_root must be a str, got {value}'):
        load(config, '--cfg-options', f'data_root={value}')


def test_values_that_may_be_none(tmp_path):
    (tmp_path / 'a.py').write_text('data_root = None\nwork_dir = None\nresume = None\n')
    cfg = load(str(tmp_path / 'a.py'))
    assert cfg.work_dir == 'work_dirs/a'
    assert cfg.data_root is None
    with pytest.raises(SystemExit, match=r'no top-level data_root'):
        load(str(tmp_path / 'a.py'), '--cfg-options', 'data_root=b')


@pytest.mark.parametrize('rank', ['0', '1'])
def test_one_process_warns_of_a_key_that_nothing_may_read(config, rank, monkeypatch, capsys):
    monkeypatch.setenv('LOCAL_RANK', rank)
    assert load(config, '--cfg-options', 'my_var=3').my_var == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == [] if rank == '1' else 'Warning: my_var=3: ' in lines[0]
    assert len(lines) == (rank == '0')


def test_memory_is_pinned_for_a_gpu_only(config):
    assert load(config).train_dataloader.pin_memory is torch.cuda.is_available()


def test_missing_config():
    with pytest.raises(SystemExit, match=r'Config file nowhere\.py'):
        load('nowhere.py')


def test_library_whose_configs_are_inherited_is_missing(tmp_path, monkeypatch):
    config = tmp_path / 'resnet.py'
    config.write_text("_base_ = 'mmpretrain::_base_/default_runtime.py'")
    monkeypatch.setattr('mmengine.config.config.is_installed', lambda package: False)
    with pytest.raises(SystemExit, match=r'resnet\.py cannot be read: mmpretrain is not installed'):
        load(str(config))


def test_library_of_the_config_cannot_be_imported(tmp_path, monkeypatch):
    config = tmp_path / 'resnet.py'
    config.write_text("default_scope = 'mmpretrain'")
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    with pytest.raises(SystemExit, match=r'be used: mmpretrain cannot be imported'):
        load(str(config))


def test_one_process_of_a_machine_reports_what_is_missing(monkeypatch):
    cfg = Config(dict())
    monkeypatch.setenv('LOCAL_RANK', '1')
    require_inputs(cfg, [], ['missing.pth'])
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(SystemExit, match=r'missing\.pth'):
        require_inputs(cfg, [], ['missing.pth'])


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['modle.x=1'], 'modle.x=1: the config has no modle'),
        (['load_from=5'], 'load_from must be a str or None, got 5'),
        (['data_root=5'], 'data_root must be a str, got 5'),
        (['train_dataloader.batchsize=3'], 'Did you mean train_dataloader.batch_size?'),
    ],
)
def test_planted_options(config, options, says):
    with pytest.raises(SystemExit) as end:
        load(config, '--cfg-options', *options)
    assert says in str(end.value)
    assert '\n' not in str(end.value)


def test_planted_key_that_is_needed(config):
    args = argument_parser('').parse_args([config])
    with pytest.raises(SystemExit, match=r'mask-rcnn\.py has no model, which this tool needs'):
        load_config(args, ['model'])


def test_planted_syntax_error(tmp_path):
    (tmp_path / 'bad.py').write_text('a = 1\nb = = 2\n')
    with pytest.raises(SystemExit, match=r'bad\.py, line 2 cannot be read: SyntaxError'):
        load(str(tmp_path / 'bad.py'))


def test_planted_launcher(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit, match='--launcher pytorch: RANK, '):
        require_inputs(Config(dict(launcher='pytorch')), [], [])


def test_planted_outputs(tmp_path):
    with pytest.raises(SystemExit, match='--show-dir /dev/null/a: nothing can be written there'):
        require_outputs({'--work-dir': str(tmp_path), '--show-dir': '/dev/null/a', '--out': None})
    with pytest.raises(SystemExit, match='--out needs the path of a file'):
        require_outputs({}, {'--out': str(tmp_path)})


def test_planted_part_that_cannot_be_built():
    cfg = Config(dict(model=dict(type='ACmixSAN', depth=9)))
    with (
        pytest.raises(
            SystemExit, match=r'^this config, model \(ACmixSAN\): ACmixSAN: depth must be in'
        ),
        mistakes_are_one_message(cfg),
    ):
        MODELS.build(cfg.model)
