import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from versions import needs_compiler, needs_fused_attention, needs_half_on_cpu

from acmix_mm.layers import WindowACmix
from acmix_mm.ops import available_backends, shift_conv, use_backend


def randomized(*args, **kwargs) -> WindowACmix:
    """A layer away from its start, whose one-hot shifts and equal weights hide errors."""
    torch.manual_seed(0)
    layer = WindowACmix(*args, **kwargs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def by_definition(layer: WindowACmix, x: Tensor) -> Tensor:
    """The formulas pixel by pixel: no rolling, no windows as an axis, no composed weights."""
    side, heads = layer.window_size, layer.num_heads
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    size = x.shape[1:3]
    shifted = layer.shift_small_maps or min(height, width) > side
    shifts = [layer.shift_size if shifted else 0] * 2
    qkv = layer.qkv(x)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5)  # B, N, H, W, D each

    def window(pixel: tuple[int, int]) -> list[tuple[int, int]]:
        """Pixels that one attends to: those of the same shifted window, cut at the border."""
        ranges = []
        for p, shift, length, real in zip(pixel, shifts, size, (height, width), strict=True):
            start = (p - shift) // side * side + shift
            end = min(start + side, length if not layer.mask_padding or p >= real else real)
            start = max(start, real if layer.mask_padding and p >= real else 0)
            ranges.append(range(start, end))
        return list(product(*ranges))

    attention = torch.zeros_like(x).unflatten(-1, (heads, -1))
    table = layer.relative_position_bias_table.view(2 * side - 1, 2 * side - 1, heads)
    for i, j in product(range(size[0]), range(size[1])):
        seen = window((i, j))
        rows, columns = torch.tensor(seen).T
        logits = torch.einsum('bnd,bnld->bnl', q[:, :, i, j], k[:, :, rows, columns])
        bias = table[i - rows + side - 1, j - columns + side - 1].T
        weights = (layer.scale * logits + bias).softmax(-1)
        attention[:, i, j] = torch.einsum('bnl,bnld->bnd', weights, v[:, :, rows, columns])
    attention = layer.proj(attention.flatten(-2))[:, :height, :width]

    if layer.roll_conv:
        back = [-shift for shift in shifts]
        convolution = convolve_by_definition(layer, qkv.roll(back, (1, 2))).roll(shifts, (1, 2))
        convolution = convolution[:, :height, :width]
    else:
        convolution = convolve_by_definition(layer, qkv[:, :height, :width])
    return layer.mix.alpha * attention + layer.mix.beta * convolution


def convolve_by_definition(layer: WindowACmix, qkv: Tensor) -> Tensor:
    maps = qkv.unflatten(-1, (3 * layer.num_heads, -1)).permute(0, 3, 4, 1, 2)
    path = layer.shift_conv
    kernel = path.kernel.unsqueeze(0)
    out = shift_conv(maps, path.fc_weight, path.fc_bias, kernel, backend='reference')
    return out.permute(0, 2, 3, 1)


@pytest.mark.parametrize('size', [(8, 12), (9, 11), (3, 4), (4, 10), (1, 1)])
@pytest.mark.parametrize(
    'options',
    [{}, dict(mask_padding=True), dict(roll_conv=False), dict(shift_small_maps=True)],
    ids=lambda options: next(iter(options), 'default'),
)
@pytest.mark.parametrize('shift_size', [0, 2])
def test_equals_the_definition(size, options, shift_size):
    layer = randomized(12, 3, window_size=4, shift_size=shift_size, **options).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_definition(layer, x))


def test_unrolled_convolution_differs_along_the_seam():
    rolled = randomized(8, 2, window_size=4, shift_size=2, path_weights=(0, 1))
    unrolled = copy.deepcopy(rolled)
    unrolled.roll_conv = False
    x = torch.randn(1, 16, 16, 8)
    same = torch.isclose(rolled(x), unrolled(x), atol=1e-5).all(-1)[0]
    # The seam lies between rows (and columns) 1 and 2, the border between 15 and 0.
    inner = [0, 1, 2, 15]
    assert not same[inner].any(1).all()
    keep = [i for i in range(16) if i not in inner]
    assert same[keep][:, keep].all()
    assert not same[1, keep].any()


def test_window_shift_is_seen_only_in_maps_larger_than_a_window():
    """As in the released code: if min(input_resolution) <= window_size, neither axis is shifted."""
    plain, shifted = randomized(8, 2), randomized(8, 2, shift_size=3)
    always = randomized(8, 2, shift_size=3, shift_small_maps=True)
    for size in [(7, 7), (7, 14), (21, 7), (3, 15)]:
        x = torch.randn(1, *size, 8)
        torch.testing.assert_close(shifted(x), plain(x))
        assert not torch.allclose(always(x), plain(x))
    large = torch.randn(1, 8, 14, 8)
    assert torch.equal(shifted(large), always(large))
    assert not torch.allclose(shifted(large), plain(large))


def test_padding_is_masked_on_request():
    masked, open_ = randomized(8, 2, mask_padding=True), randomized(8, 2)
    whole, cut = torch.randn(1, 7, 14, 8), torch.randn(1, 6, 14, 8)
    assert torch.equal(masked(whole), open_(whole))
    assert not torch.allclose(masked(cut), open_(cut))


def test_every_parameter_gets_a_gradient():
    for weights in ('learned', 'complementary', (1, 1), (1, 0), (0, 1)):
        layer = randomized(12, 3, shift_size=3, path_weights=weights, num_conv_pairs=2)
        layer(torch.randn(1, 9, 15, 12)).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, f'{name} with {weights}'
            assert parameter.grad.abs().sum() > 0, f'{name} with {weights}'


def test_gradients():
    layer = randomized(4, 2, window_size=3, shift_size=1, mask_padding=True).double()
    x = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *parameters))


def test_fixed_path_weights_are_ablations_of_the_learned_ones():
    learned = randomized(8, 2, shift_size=3)
    x = torch.randn(1, 9, 15, 8)
    for pair in [(1, 0), (0, 1), (1, 1), (0.3, 2)]:
        fixed = WindowACmix(8, 2, shift_size=3, path_weights=pair)
        assert not fixed.load_state_dict(learned.state_dict(), strict=False).missing_keys
        with torch.no_grad():
            learned.mix.alpha.fill_(pair[0])
            learned.mix.beta.fill_(pair[1])
        torch.testing.assert_close(fixed(x), learned(x))


def test_options_of_the_projections():
    x = torch.randn(1, 7, 7, 8)
    no_bias = randomized(8, 2, qkv_bias=False)
    assert no_bias.qkv.bias is None
    assert no_bias(x).shape == x.shape
    default, scaled = randomized(8, 2), randomized(8, 2, qk_scale=4**-0.5)
    torch.testing.assert_close(scaled(x), default(x))
    assert not torch.allclose(randomized(8, 2, qk_scale=1.0)(x), default(x))


def test_dropout_acts_in_training_only():
    for rates in (dict(attn_drop_rate=0.5), dict(proj_drop_rate=0.5)):
        layer, plain = randomized(8, 2, **rates), randomized(8, 2)
        x = torch.randn(1, 7, 7, 8)
        assert not torch.allclose(layer(x), plain(x)), rates
        torch.testing.assert_close(layer.eval()(x), plain(x))


def test_released_names_load_inside_a_network():
    layer = randomized(8, 2)
    state_dict = layer.state_dict()
    released = {f'0.{name}': state_dict[name] for name in state_dict if '_conv' not in name}
    released['0.rate1'] = released.pop('0.mix.alpha')
    released['0.rate2'] = released.pop('0.mix.beta')
    released['0.fc.weight'] = state_dict['shift_conv.fc_weight'].view(9, 6, 1, 1)
    released['0.fc.bias'] = state_dict['shift_conv.fc_bias'].view(9)
    released['0.dep_conv.weight'] = state_dict['shift_conv.kernel']
    network = nn.Sequential(WindowACmix(8, 2))
    network.load_state_dict(released)
    x = torch.randn(1, 7, 7, 8)
    assert torch.equal(network(x), layer(x))


def test_starts_as_the_released_layer():
    torch.manual_seed(0)
    layer = randomized(96, 3)
    layer.init_weights()
    assert torch.equal(layer.shift_conv.kernel[:9], torch.eye(9).view(9, 3, 3).expand(9, 9, 3, 3))
    assert layer.mix.alpha.item() == layer.mix.beta.item() == 0.5
    assert layer.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    'dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpu)]
)
def test_half_precision_weights_and_autocast(dtype):
    layer = randomized(16, 2, shift_size=3)
    x = torch.randn(2, 9, 15, 16)
    expected = layer(x)
    with torch.autocast('cpu', dtype):
        mixed = layer(x)
        mixed.float().square().mean().backward()
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), expected, rtol=3e-2, atol=8e-2)
    half = layer.to(dtype)(x.to(dtype))
    torch.testing.assert_close(half.float(), expected, rtol=3e-2, atol=8e-2)
    assert all(p.grad is not None for p in layer.parameters())


def test_empty_batch():
    x = torch.randn(0, 9, 15, 8, requires_grad=True)
    WindowACmix(8, 2, shift_size=3)(x).sum().backward()
    assert x.grad.shape == x.shape


def test_masks_made_in_inference_train():
    layer = randomized(8, 2, window_size=5, shift_size=2)
    x = torch.randn(1, 11, 10, 8)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.qkv.weight.grad is not None


@needs_compiler
def test_compiles():
    layer = randomized(8, 2, window_size=4, shift_size=2)
    x = torch.randn(1, 6, 9, 8)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize('mask_padding', [False, True])
@pytest.mark.parametrize('backend', available_backends('window_attention'))
def test_training_computes_what_inference_does(mask_padding, backend):
    """By `sdpa`, on CPUs one is a formula and the other a fused kernel."""
    layer = randomized(12, 3, shift_size=3, mask_padding=mask_padding).double()
    x = torch.randn(2, 9, 15, 12, dtype=torch.float64)
    with use_backend(backend, 'window_attention'):
        with torch.no_grad():
            expected = layer(x)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('options', [{}, dict(mask_padding=True), dict(shift_small_maps=True)])
@pytest.mark.parametrize('size', [(9, 15), (7, 7), (3, 20), (30, 22)])
def test_gradients_are_those_of_the_definition(options, size):
    layer = randomized(12, 3, shift_size=3, **options).double()
    leaf = torch.randn(2, *size, 12, dtype=torch.float64).requires_grad_()
    leaves = [leaf, *layer.parameters()]
    grads = []
    for backend in available_backends('window_attention'):
        with use_backend(backend, 'window_attention'):
            grads.append(torch.autograd.grad(layer(leaf).square().sum(), leaves))
    for other in grads[:-1]:
        for ours, expected in zip(other, grads[-1], strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12 * max(scale, 1))


def test_convolution_path_reads_the_projections_in_place():
    layer = randomized(12, 3, path_weights=(0, 1))
    projected, seen = [], []
    layer.qkv.register_forward_hook(lambda *args: projected.append(args[-1]))
    layer.shift_conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer(torch.randn(2, 7, 14, 12))
    assert seen[0].data_ptr() == projected[0].data_ptr()


class LargestBias(TorchDispatchMode):
    """Counts the elements of the largest bias or mask given to a fused attention."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = (kwargs or {}).get('attn_mask')
        if mask is not None:
            self.elements = max(self.elements, mask.numel() // mask.shape[0])
        return func(*args, **kwargs or {})


@needs_fused_attention
@pytest.mark.parametrize(('mask_padding', 'rows'), [(False, 1), (True, 2)])
def test_biases_of_shifted_windows_are_shared(mask_padding, rows):
    layer = randomized(8, 2, window_size=4, shift_size=2, mask_padding=mask_padding)
    with torch.no_grad(), LargestBias() as largest, use_backend('sdpa'):
        layer(torch.randn(1, 31, 19, 8))  # 8 x 5 windows
    assert largest.elements == rows * 5 * 2 * 4**4


@needs_fused_attention
@pytest.mark.parametrize('shift_size', [0, 3])
def test_attention_runs_fused(shift_size):
    layer = randomized(32, 2, shift_size=shift_size)
    with torch.no_grad(), torch.profiler.profile() as profile, use_backend('sdpa'):
        layer(torch.randn(2, 14, 21, 32))
    names = {event.key for event in profile.key_averages()}
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu' in names
    assert 'aten::_scaled_dot_product_attention_math' not in names


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(embed_dims=10), 'embed_dims must be a multiple of num_heads=4, got 10'),
        (dict(window_size=0), 'window_size must be a positive integer, got 0'),
        (dict(shift_size=7), 'shift_size must be from 0 to window_size - 1 = 6, got 7'),
        (dict(kernel_conv=4), 'kernel_conv must be a positive odd integer, got 4'),
        (dict(path_weights='none'), "path_weights must be .* got 'none'"),
    ],
)
def test_refuses(change, says):
    with pytest.raises(ValueError, match=says):
        WindowACmix(**(dict(embed_dims=8, num_heads=4) | change))
