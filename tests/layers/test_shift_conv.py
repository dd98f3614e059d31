import pytest
import torch
from torch import nn
from versions import needs_torch

from acmix_mm.layers import ShiftConv


def test_starts_as_shifts():
    conv = ShiftConv(num_maps=3, map_channels=4, out_channels=8, num_conv_pairs=2)
    for filter_ in conv.kernel:
        for position in range(9):
            one_hot = torch.zeros(9)
            one_hot[position] = 1
            assert torch.equal(filter_[position].flatten(), one_hot)


def test_pairs_are_summed():
    torch.manual_seed(0)
    both = ShiftConv(3, 4, 8, num_conv_pairs=2, bias=True)
    nn.init.normal_(both.kernel)
    x = torch.randn(2, 3, 4, 5, 6)
    total = 0
    for pair in range(2):
        one = ShiftConv(3, 4, 8, bias=True)
        one.load_state_dict({k: v.chunk(2)[pair] for k, v in both.state_dict().items()})
        total = total + one(x)
    torch.testing.assert_close(both(x), total)


def test_survives_initialisers_that_walk_over_convolutions():
    parent = nn.Sequential(ShiftConv(3, 4, 8), nn.Conv2d(8, 8, 1))
    before = parent[0].kernel.clone()
    for module in parent.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    assert torch.equal(parent[0].kernel, before)


@needs_torch('2.5', 'torch.distributed.tensor')
def test_starts_as_shifts_where_it_is_sharded():
    """As a layer that was made on the meta device, and sharded by FSDP2, is initialized."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group('fake', rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh('cpu', (2,))
        conv = ShiftConv(num_maps=6, map_channels=4, out_channels=8)
        conv.kernel = nn.Parameter(
            distribute_tensor(torch.full_like(conv.kernel, 7), mesh, [Shard(0)])
        )
        conv.fc_weight = nn.Parameter(distribute_tensor(conv.fc_weight.detach(), mesh, [Shard(1)]))
        conv.reset_parameters()
        kernels = conv.kernel.to_local()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(kernels, torch.eye(9).view(9, 3, 3).expand(4, 9, 3, 3))


def test_repr_shows_sizes():
    assert 'num_maps=3, out_channels=8, kernel_size=3' in repr(ShiftConv(3, 4, 8))


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(out_channels=6), 'out_channels must be a multiple of map_channels=4, got 6'),
        (dict(kernel_size=2), 'kernel_size must be .* odd .* got 2'),
        (dict(num_conv_pairs=0), 'num_conv_pairs must .* got 0'),
    ],
)
def test_refuses(change, says):
    with pytest.raises(ValueError, match=says):
        ShiftConv(**(dict(num_maps=3, map_channels=4, out_channels=8) | change))
