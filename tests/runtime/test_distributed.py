import pytest
import torch
from mmengine.config import Config

from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSAN, ACmixSwin
from acmix_mm.runtime import argument_parser, load_config, wrap_blocks
from acmix_mm.runtime import config as runtime_config
from acmix_mm.runtime.distributed import check_fsdp, join_cpu_processes, use_cpu_processes

DDP = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
FSDP = dict(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy', state_dict_cfg='full'))


def job(**parts):
    """Return the config of a job of several processes."""
    return Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='nccl')), **parts))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads a config as if the machine had a given device."""
    file = tmp_path / 'config.py'
    file.write_text("env_cfg = dict(dist_cfg=dict(backend='nccl', timeout=9))")

    def run(device, *argv):
        monkeypatch.setattr(runtime_config, 'get_device', lambda: device)
        return load_config(argument_parser('').parse_args([str(file), *argv]))

    return run


def test_processes_on_cpus_talk_by_gloo(load):
    cfg = load('cpu', '--launcher', 'pytorch')
    assert cfg.env_cfg.dist_cfg == dict(backend='gloo', timeout=9)
    assert cfg.model_wrapper_cfg == dict(DDP, find_unused_parameters=False, device_ids=None)


@pytest.mark.parametrize(('device', 'launcher'), [('cuda', 'pytorch'), ('cpu', 'none')])
def test_a_config_is_left_alone_with_gpus_or_in_one_process(load, device, launcher):
    cfg = load(device, '--launcher', launcher)
    assert cfg.env_cfg.dist_cfg == dict(backend='nccl', timeout=9)
    assert 'model_wrapper_cfg' not in cfg


def test_a_configs_own_wrapper_stays():
    cfg = job(find_unused_parameters=True, model_wrapper_cfg=dict(static_graph=True))
    use_cpu_processes(cfg)
    expected = dict(DDP, find_unused_parameters=True, static_graph=True, device_ids=None)
    assert cfg.model_wrapper_cfg == expected


def test_fsdp_on_cpus():
    cfg = job(**FSDP)
    use_cpu_processes(cfg)
    assert cfg.strategy.model_wrapper.device_id == 'cpu'
    assert cfg.strategy.state_dict_cfg.state_dict_type == 'FULL_STATE_DICT'
    assert cfg.strategy.state_dict_cfg.state_dict_config.offload_to_cpu is False
    assert 'model_wrapper_cfg' not in cfg


def test_cpus_need_torchrun():
    cfg = job()
    cfg.launcher = 'slurm'
    with pytest.raises(SystemExit, match=r'--launcher slurm.*torchrun'):
        join_cpu_processes(cfg)


def test_fsdp_needs_processes():
    with pytest.raises(SystemExit, match=r'tools/dist_train\.sh'):
        check_fsdp(Config(dict(launcher='none', **FSDP)))
    check_fsdp(job(**FSDP))
    check_fsdp(Config(dict(launcher='none')))


def test_fsdp_cannot_clip_the_norm_of_gradients():
    clip_grad = dict(max_norm=0.1, norm_type=2)
    with pytest.raises(SystemExit, match=r'max_norm.*clip_grad=None'):
        check_fsdp(job(**FSDP, optim_wrapper=dict(clip_grad=clip_grad)))
    check_fsdp(job(**FSDP, optim_wrapper=dict(clip_grad=dict(type='value', clip_value=1.0))))
    check_fsdp(job(**FSDP, optim_wrapper=dict(clip_grad=None)))
    check_fsdp(job(optim_wrapper=dict(clip_grad=clip_grad)))


@pytest.mark.parametrize(
    ('backbone', 'num_blocks'),
    [
        (lambda: ACmixResNet(26), 8),
        (lambda: ACmixSAN(10), 10),
        (lambda: ACmixPVT(num_layers=(1, 2, 1, 1)), 5),
        (lambda: ACmixSwin(depths=(2, 2, 6, 2)), 12),
    ],
    ids=['ResNet', 'SAN', 'PVT', 'Swin'],
)
def test_each_block_is_a_unit_of_fsdp(backbone, num_blocks):
    with torch.device('meta'):
        modules = list(backbone().modules())
    assert all(wrap_blocks(module, recurse=True, nonwrapped_numel=1) for module in modules)
    blocks = [m for m in modules if wrap_blocks(m, recurse=False, nonwrapped_numel=1)]
    assert len(blocks) == num_blocks
