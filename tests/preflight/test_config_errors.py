import argparse

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import acmix_mm  # noqa: F401  registers the backbones
from acmix_mm.preflight.config_errors import (
    ConfigError,
    OptionsAction,
    check_values,
    merge_options,
    one_line_errors,
    read_config_file,
)
from acmix_mm.preflight.libraries import check_scope

DETECTOR = 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py'


@pytest.fixture(scope='module')
def detector():
    cfg = Config.fromfile(DETECTOR)
    check_scope('mmdet')
    init_default_scope('mmdet')
    return cfg


def options(*pairs):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={})
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options


@pytest.mark.parametrize('pair', ['noequals', '=3', 'a.=3', '.a=3', 'a..b=3', 'a=(1,2'])
def test_planted_form_of_an_option(pair, capsys):
    with pytest.raises(SystemExit) as end:
        options(pair)
    assert end.value.code == 2
    assert 'argument --cfg-options: ' in capsys.readouterr().err.splitlines()[-1]


def test_options():
    assert options('a=1', 'b.c=[1,2]', 'd="(1,2)"') == {'a': 1, 'b.c': [1, 2], 'd': (1, 2)}


@pytest.mark.parametrize(
    'pair',
    [
        'custom_hooks=[dict(type="EMAHook",momentum=0.1)]',
        'custom_hooks=[dict(type="EMAHook")]',
        'model=dict(type=3)',
        'a="[1,dict(b=2)]"',
        "a={'b':{'c':1}}",
        'a={}',
    ],
)
def test_planted_dict(pair, capsys):
    with pytest.raises(SystemExit) as end:
        options(pair)
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f'argument --cfg-options: {pair}: ' in message
    assert 'inherits' in message


def test_braces_and_names_that_are_no_dict():
    assert options('a=epoch_{}.pth', 'b={}.pth', 'c=my_dict', 'custom_hooks.0.interval=5') == {
        'a': 'epoch_{}.pth',
        'b': '{}.pth',
        'c': 'my_dict',
        'custom_hooks.0.interval': 5,
    }


MISSPELT = {
    'modle.x=1': 'the config has no modle. Did you mean model.x?',
    'load_fom=a.pth': 'Did you mean load_from?',
    'model.bacbone.depth=50': 'model has no bacbone. Did you mean model.backbone.depth?',
    'model.backbone.dept=50': 'Did you mean model.backbone.depth?',
    'model.neck.num_out=3': 'Did you mean model.neck.num_outs?',
    'train_cfg.max_epoch=3': 'Did you mean train_cfg.max_epochs?',
    'optim_wrapper.optimzer.lr=3': 'Did you mean optim_wrapper.optimizer.lr?',
    'train_dataloader.batchsize=3': 'Did you mean train_dataloader.batch_size?',
    'train_dataloader.dataset.ann_flie=x': 'Did you mean train_dataloader.dataset.ann_file?',
    'val_evaluator.metrics=bbox': 'Did you mean val_evaluator.metric?',
    'model.backbone.depth.x=3': 'model.backbone.depth is 26, which has no',
    'train_pipeline.99.x=3': 'is a list of 5, with the keys 0 to 4, got',
    'train_pipeline.first.x=3': 'is a list of 5, with the keys 0 to 4, got',
    'train_pipeline.0=3': 'cannot be applied',
}


@pytest.mark.parametrize('option', MISSPELT)
def test_planted_key(option, detector):
    key, _, value = option.partition('=')
    with pytest.raises(ConfigError) as error:
        merge_options(detector.copy(), {key: value})
    assert MISSPELT[option] in str(error.value)
    assert str(error.value).startswith(f'{key}=')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'key',
    [
        'test_evaluator.outfile_prefix', 'default_hooks.checkpoint.save_best',
        'train_cfg.val_begin', 'model.roi_head.mask_head', 'randomness.seed', 'load_from',
        'compile', 'model.test_cfg.rcnn.score_thr', 'optim_wrapper.clip_grad.max_norm',
        'train_dataloader.sampler.shuffle', 'model.backbone.init_cfg', 'find_unused_parameters',
        'model.data_preprocessor.std', 'visualizer.vis_backends', 'env_cfg.dist_cfg.timeout',
        'param_scheduler.0.end', 'custom_hooks', 'test_dataloader.num_workers', 'work_dir',
        'optim_wrapper.accumulative_counts', 'model.backbone.with_cp', 'resume', 'data_root',
        'model.backbone.acmix_cfg.kernel_att', 'auto_scale_lr.enable', 'tta_model.type',
        'train_dataloader.dataset.pipeline.0.to_float32', 'val_cfg.fp16', 'default_hooks.ema.type',
        'optim_wrapper.paramwise_cfg.norm_decay_mult', 'model.init_cfg',
        'train_dataloader.drop_last',
    ],
)  # fmt: skip
def test_keys_that_are_read_can_be_set(key, detector):
    cfg = detector.copy()
    merge_options(cfg, {key: 3})
    node = cfg
    for part in key.split('.'):
        node = node[int(part) if part.isdigit() else part]
    assert node == 3


HEADS = {
    'ATSSHead': 'feat_channels',
    'Shared2FCBBoxHead': 'conv_out_channels',
    'GFLHead': 'loss_cls',
    'mmseg.OCRHead': 'channels',
    'mmseg.EMAHead': 'num_classes',
}


@pytest.mark.parametrize('kind', HEADS)
def test_arguments_that_a_class_passes_on_can_be_set(kind):
    scope = kind.rpartition('.')[0] or 'mmdet'
    check_scope(scope)
    cfg = Config(dict(default_scope=scope, head=dict(type=kind.rpartition('.')[2])))
    assert merge_options(cfg, {f'head.{HEADS[kind]}': 128}) == []
    assert cfg['head'][HEADS[kind]] == 128
    with pytest.raises(ConfigError, match=f'Did you mean head.{HEADS[kind]}'):
        merge_options(Config(dict(default_scope=scope, head=dict(type=kind.rpartition('.')[2]))),
                      {f'head.{HEADS[kind]}x': 128})  # fmt: skip


@pytest.mark.parametrize(
    'more', [{}, {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'}]
)
def test_arguments_of_mixed_precision_can_be_set(more, detector):
    cfg = detector.copy()
    assert merge_options(cfg, {'optim_wrapper.dtype': 'bfloat16', **more}) == []
    assert cfg.optim_wrapper.dtype == 'bfloat16'


def test_planted_key_of_an_optimizer_wrapper_of_the_user(detector):
    cfg = detector.copy()
    cfg.optim_wrapper.type = 'OfAUser'
    cfg.optim_wrapper.lr_scale = 1
    (warning,) = merge_options(cfg, {'optim_wrapper.lr_scales': 2})
    assert 'Was optim_wrapper.lr_scale meant?' in warning


def test_keys_are_those_of_the_class_that_another_option_sets(detector):
    options = {'model.neck.stack_time': 2, 'model.neck.type': 'NASFPN'}
    with pytest.raises(ConfigError, match=r'Did you mean model\.neck\.stack_times'):
        merge_options(detector.copy(), options)
    options['model.neck.stack_times'] = options.pop('model.neck.stack_time')
    merge_options(detector.copy(), options)


UNCLEAR = {
    'my_var': 'nothing in mmengine or the tools reads my_var',
    'default_hooks.checkpoint.intervall': 'Was default_hooks.checkpoint.interval meant?',
    'optim_wrapper.paramwise_cfg.dwconv_lr_mult': 'Was optim_wrapper.paramwise_cfg.conv_lr_mult m',
    'custom.optimizr': 'Was custom.optimizer meant?',
}


@pytest.mark.parametrize('key', UNCLEAR)
def test_keys_that_something_may_read_are_set_with_a_warning(key, detector):
    cfg = detector.copy()
    cfg.optim_wrapper.paramwise_cfg = dict(conv_lr_mult=1)
    cfg.custom = dict(type='OfAUser', optimizer=1)
    (warning,) = merge_options(cfg, {key: 3})
    assert warning.startswith(f'{key}=3: ')
    assert UNCLEAR[key] in warning
    assert '\n' not in warning
    node = cfg
    for part in key.split('.'):
        node = node[part]
    assert node == 3


@pytest.mark.parametrize(
    ('values', 'says'),
    [
        (dict(data_root=5), 'data_root must be a str or None, got 5'),
        (dict(load_from=5), 'load_from must be a str or None, got 5'),
        (dict(load_from=['a.pth']), 'load_from must be'),
        (dict(work_dir=5), 'work_dir must be a str or None, got 5'),
        (dict(model=3), 'model must be a dict, got 3'),
        (dict(resume='yes'), "resume must be a bool or None, got 'yes'"),
        (dict(default_scope=5), 'default_scope must be'),
        (dict(a=1), 'has no model, which this tool needs'),
        (dict(model=None), 'model must be a dict, got None'),
    ],
)
def test_planted_value(values, says):
    with pytest.raises(ConfigError, match=says):
        check_values(Config(values), needed=['model'])


def test_values_that_may_be_none():
    check_values(Config(dict(work_dir=None, resume=None, data_root=None, load_from=None)))


def test_values_of_our_configs(detector):
    check_values(detector, needed=['model'])


FILES = {
    'a = (1,\nb = 2': ('SyntaxError', 'line 1'),
    'a = 1\nb = = 2': ('SyntaxError', 'line 2'),
    'a = 1\n  b = 2': ('IndentationError', 'line 2'),
    'a = 1\nb = missing': ("NameError: name 'missing' is not defined", 'line 2'),
    'a = 1 / 0': ('ZeroDivisionError', 'line 1'),
    "_base_ = 'nowhere.py'": ('No such file', ''),
    "_base_ = 'mmdet::nowhere.py'": ('package name and relative config path', ''),
    'a = "{{ nothing }}": 3': ('SyntaxError', 'line 1'),
    "a = '{{$NOT_SET:}}'": ('NOT_SET', ''),
    'raise SystemError("x")': ('SystemError: x', 'line 1'),
    '\0': ('', ''),
}


@pytest.mark.parametrize('inherited', [False, True])
@pytest.mark.parametrize('text', FILES)
def test_planted_file(text, inherited, tmp_path):
    reason, line = FILES[text]
    bad = tmp_path / 'bad.py'
    bad.write_text(text)
    file = bad
    if inherited:
        file = tmp_path / 'good.py'
        file.write_text("_base_ = 'bad.py'\n")
    with pytest.raises(ConfigError) as error:
        read_config_file(str(file))
    message = str(error.value)
    assert message.startswith(str(tmp_path / 'nowhere.py' if 'No such' in reason else bad))
    assert reason in message
    assert line in message
    if inherited:
        assert f' cannot be read ({file} inherits from it): ' in message
    assert '\n' not in message
    assert '<unknown>' not in message


@pytest.mark.parametrize(
    ('name', 'content'), [('a.txt', 'a = 1'), ('a.json', '{'), ('a.yml', 'a: [')]
)
def test_planted_other_format(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=name):
        read_config_file(str(tmp_path / name))


BUILDS = {
    'model.backbone.depth': (27, 'model.backbone (ACmixResNet): ACmixResNet: depth must be in'),
    'model.backbone.acmix_cfg': (dict(kernel_at=3), 'Did you mean kernel_att?'),
    'model.backbone.type': ('ACmixResnet', "(ACmixResnet): KeyError: 'ACmixResnet is not in"),
    'model.bacbone': (3, "keyword argument 'bacbone'. Did you mean backbone?"),
    'model.neck.num_outs': (-1, 'model.neck (FPN): '),
    'model.neck': (dict(), 'must contain the key "type"'),
}


@pytest.mark.parametrize('key', BUILDS)
def test_planted_argument(key, detector):
    cfg = detector.copy()
    value, says = BUILDS[key]
    cfg.merge_from_dict({key: value})
    if value == {}:
        cfg.model.neck = value
    with pytest.raises(ConfigError) as error, one_line_errors(cfg):
        MODELS.build(cfg.model)
    assert str(error.value).startswith(DETECTOR) or str(error.value).startswith(cfg.filename)
    assert says in str(error.value)
    assert '\n' not in str(error.value)


def test_two_parts_of_a_class_are_told_apart():
    head = dict(type='SGD', lr=1)
    cfg = Config(
        dict(
            model=dict(a=dict(type='ACmixSAN', depth=10), b=dict(type='ACmixSAN', depth=9)), c=head
        )
    )
    with pytest.raises(ConfigError, match=r'model\.b \(ACmixSAN\)'), one_line_errors(cfg):
        MODELS.build(cfg.model.b)


def test_errors_outside_of_building_are_not_changed(detector):
    with pytest.raises(RuntimeError, match='in training'), one_line_errors(detector):
        raise RuntimeError('in training')
    with pytest.raises(TypeError, match='unexpected'), one_line_errors(detector):
        nn.Linear(unexpected=3)


@pytest.mark.parametrize('error', [KeyError('x'), RuntimeError('x'), AttributeError('x')])
def test_errors_within_a_class_keep_their_traceback(error):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.look_up()

        def look_up(self):
            raise error

    cfg = Config(dict(model=dict(type='Broken')))
    MODELS.register_module(name='Broken', module=Broken, force=True)
    try:
        with pytest.raises(type(error)) as raised, one_line_errors(cfg):
            MODELS.build(cfg.model)
    finally:
        MODELS.module_dict.pop('Broken')
    assert raised.value is error
    assert raised.traceback[-1].name == 'look_up'


def test_planted_missing_argument():
    cfg = Config(dict(model=dict(type='ACmixSAN'), part=dict(type='mmdet.FPN')))
    with (
        pytest.raises(ConfigError, match=r'part \(FPN\): .*missing 3 required'),
        one_line_errors(cfg),
    ):
        MODELS.build(cfg.part)
