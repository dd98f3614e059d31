"""The convolution path as one dense convolution, in the layers."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.ops import use_backend
from acmix_mm.ops.backends.registry import OPERATORS

LAYERS = [
    pytest.param(partial(ACmix, 8, 16, stride=2), (2, 8, 9, 10), id='ACmix'),
    pytest.param(
        partial(ACmix, 8, 8, dilation=2, kernel_conv=5, num_conv_pairs=2),
        (1, 8, 9, 10),
        id='ACmix-dilated',
    ),
    pytest.param(partial(PatchwiseACmix, 8, 2, 8), (1, 8, 9, 10), id='PatchwiseACmix'),
    pytest.param(
        partial(SpatialReductionACmix, 8, 2, sr_ratio=2), (1, 9, 10, 8), id='SpatialReductionACmix'
    ),
    pytest.param(partial(SpatialReductionACmix, 8, 2), (1, 9, 10, 8), id='global'),
    pytest.param(partial(WindowACmix, 8, 2, shift_size=3), (1, 9, 10, 8), id='WindowACmix'),
    pytest.param(
        partial(WindowACmix, 8, 2, shift_size=3, roll_conv=False, qkv_bias=False),
        (1, 9, 10, 8),
        id='WindowACmix-unrolled',
    ),
]


@pytest.mark.parametrize(('make', 'shape'), LAYERS)
def test_layer_and_its_gradients_are_the_same(make, shape):
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)

    def train(backend: str) -> list[Tensor]:
        with use_backend(backend, 'shift_conv'):
            out = layer(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]

    for ours, expected in zip(train('dense'), train('reference'), strict=True):
        tolerance = 1e-12 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def test_keys_and_values_of_all_tokens_are_not_computed(monkeypatch):
    """With spatial reduction, only queries are projected at full resolution."""
    layer, x = SpatialReductionACmix(8, 2, sr_ratio=2), torch.randn(1, 6, 8, 8)
    rows = []
    linear = torch.nn.functional.linear

    def recorded(x, weight, bias=None):
        rows.append((x.shape[:-1].numel(), len(weight)))
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, 'linear', recorded)
    with use_backend('dense'):
        layer(x)
    assert (48, 8) in rows
    assert [pixels for pixels, count in rows if count > 8] == [12]


@pytest.mark.parametrize(('make', 'shape'), LAYERS)
def test_what_the_weights_do_not_tell_is_not_left_out(make, shape):
    """A hook on the projection, or another module in its place, reaches the convolution path."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    hooked = make().eval()
    hooked.qkv.register_forward_hook(lambda *args: _zeros(args[-1]))
    changed = make().eval()
    changed.qkv.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
    patched = make().eval()
    patched.qkv.forward = lambda x, forward=patched.qkv.forward: _zeros(forward(x))
    normed = make().eval()
    torch.nn.utils.weight_norm(normed.qkv)
    replaced = make().eval()
    replaced.load_state_dict(hooked.state_dict())
    replaced.qkv = _Zeros(replaced.qkv)
    for layer in (hooked, changed, patched, normed, replaced):
        with pytest.raises(RuntimeError, match='it needs the projection'), use_backend('dense'):
            layer(x)
    torch.testing.assert_close(hooked(x), replaced(x))


def _zeros(out):
    return tuple(map(torch.zeros_like, out)) if isinstance(out, tuple) else torch.zeros_like(out)


class _Zeros(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return _zeros(self.linear(x))


def test_chosen_wherever_tensors_are_not_on_a_cpu():
    maps = torch.empty(1, 3, 4, 5, 5)
    dense = OPERATORS['shift_conv']['dense']
    assert dense.by_name_only(maps.to('meta').unbind(1)) is None
    assert 'fewer multiply-adds' in dense.by_name_only(maps.unbind(1))
