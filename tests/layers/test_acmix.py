import io
from contextlib import nullcontext

import pytest
import torch
from golden import Golden, noise, relative_error
from mmengine.model import BaseModule
from torch import nn
from torch.utils.checkpoint import checkpoint
from versions import needs_compiler, needs_half_on_cpu

from acmix_mm.layers import ACmix
from acmix_mm.layers.acmix import coordinates
from acmix_mm.ops import available_backends, use_backend
from acmix_mm.ops.backends import cpu
from acmix_mm.registry import MODELS
from benchmarks.measure import saved_bytes

GOLDEN = ['acmix_k5_h3', 'acmix_k7_s1', 'acmix_k7_s2']
# Without a GPU, Triton is too slow here: see ops/backends/test_triton.py.
BACKENDS = [b for b in available_backends('neighborhood_attention') if b != 'triton']
needs_kernels = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')


def randomized(*args, **kwargs) -> ACmix:
    """A layer away from its start, whose one-hot shifts and equal weights hide errors."""
    torch.manual_seed(0)
    layer = ACmix(*args, **kwargs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


@pytest.mark.parametrize('backend', [*BACKENDS, None])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize('name', GOLDEN)
def test_equals_released_layer(name, dtype, tolerance, backend):
    golden = Golden.load(name)
    args = golden.args
    layer = ACmix(
        args['in_planes'], args['out_planes'], args['kernel_att'], args['head'],
        args['kernel_conv'], args['stride'],
    )  # fmt: skip
    layer.load_state_dict(golden.state_dict)
    layer.to(dtype)
    x = golden.input.to(dtype).requires_grad_()
    with use_backend(backend) if backend else nullcontext():
        out = layer(x)
    (out * torch.from_numpy(noise(out.numel(), 777)).view_as(out).to(dtype)).sum().backward()

    gradients = {
        'mix.alpha': 'rate1',
        'mix.beta': 'rate2',
        'position.weight': 'conv_p.weight',
        'position.bias': 'conv_p.bias',
        'shift_conv.fc_weight': 'fc.weight',
        'shift_conv.kernel': 'dep_conv.weight',
    }
    parameters = dict(layer.named_parameters())
    pairs = [(out, golden.arrays['output']), (x.grad, golden.arrays['grad_input'])]
    for ours, theirs in gradients.items():
        expected = golden.arrays[f'grad.{theirs}']
        pairs.append((parameters.pop(ours).grad.view_as(expected), expected))
    for kind in ('weight', 'bias'):
        expected = torch.cat([golden.arrays[f'grad.conv{i}.{kind}'] for i in (1, 2, 3)])
        pairs.append((parameters.pop(f'qkv.{kind}').grad, expected))
    assert not parameters, 'a parameter was not compared'
    # conv_p.bias shifts all logits of a window alike: its gradient is rounding around 0.
    for ours, theirs in pairs:
        if theirs.abs().max() > 1e-12:
            assert relative_error(ours, theirs) <= tolerance
        else:
            assert ours.abs().max() <= tolerance


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (7, 5), (16, 17)])
@pytest.mark.parametrize(('stride', 'dilation'), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 4)])
def test_any_size_stride_and_dilation(size, stride, dilation):
    layer = randomized(8, 12, num_heads=3, stride=stride, dilation=dilation).double()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    out = layer(x)
    assert out.shape == (2, 12, *(-(-s // stride) for s in size))
    with use_backend('reference'):
        expected = layer(x)
    torch.testing.assert_close(out, expected)


def test_dilated_layer_is_a_plain_layer_on_each_phase():
    """Inside the map a window of step 2 sees every second pixel, and nothing else."""
    plain, dilated = randomized(8, 8), randomized(8, 8, dilation=2)
    nn.init.zeros_(plain.position.weight)
    nn.init.zeros_(dilated.position.weight)
    x = torch.randn(1, 8, 32, 32)
    inner = (..., slice(6, 26), slice(6, 26))
    expected = torch.zeros_like(x)
    for top in range(2):
        for left in range(2):
            expected[..., top::2, left::2] = plain(x[..., top::2, left::2])
    torch.testing.assert_close(dilated(x)[inner], expected[inner], rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    for weights in ('learned', 'complementary', (1, 1), (1, 0), (0, 1)):
        layer = randomized(8, 8, path_weights=weights, num_conv_pairs=2)
        layer(torch.randn(1, 8, 9, 9)).square().sum().backward()
        for name, parameter in layer.named_parameters():
            # The bias of the position map cancels in the softmax, as in the released layer.
            assert parameter.grad is not None, f'{name} with {weights}'
            assert name == 'position.bias' or parameter.grad.abs().sum() > 0, f'{name}, {weights}'


def test_fixed_path_weights_are_ablations_of_the_learned_ones():
    learned = randomized(8, 8)
    x = torch.randn(1, 8, 9, 9)
    for pair in [(1, 0), (0, 1), (1, 1), (0.3, 2)]:
        fixed = ACmix(8, 8, path_weights=pair)
        incompatible = fixed.load_state_dict(learned.state_dict(), strict=False)
        assert not incompatible.missing_keys
        with torch.no_grad():
            learned.mix.alpha.fill_(pair[0])
            learned.mix.beta.fill_(pair[1])
        torch.testing.assert_close(fixed(x), learned(x))


@pytest.mark.parametrize('stride', [1, 2])
def test_empty_batch(stride):
    layer = ACmix(8, 8, stride=stride)
    x = torch.randn(0, 8, 9, 9, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 8, 9, 9)


@pytest.mark.parametrize(
    'dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpu)]
)
def test_half_precision_weights_and_autocast(dtype):
    layer = randomized(16, 16)
    x = torch.randn(2, 16, 12, 13)
    expected = layer(x)
    with torch.autocast('cpu', dtype):
        mixed = layer(x)
    assert mixed.dtype == dtype
    assert relative_error(mixed, expected) < 2e-2
    assert relative_error(layer.to(dtype)(x.to(dtype)), expected) < 3e-2


def test_autocast_trains():
    layer = randomized(16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        loss = layer(torch.randn(2, 16, 12, 13)).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in layer.parameters())


def train_once(layer: ACmix, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and all gradients."""
    x = x.detach().requires_grad_()
    out = layer(x)
    return [out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize('backend', [*BACKENDS, None])
@pytest.mark.parametrize(
    'options',
    [dict(), dict(stride=2), dict(dilation=2), dict(path_weights=(1, 1)), dict(kernel_att=15)],
    ids=str,
)
def test_recomputation_keeps_the_input_alone_and_changes_nothing(options, backend):
    plain, layer = (randomized(8, 16, with_cp=with_cp, **options) for with_cp in (False, True))
    x = torch.randn(2, 8, 13, 11, requires_grad=True)
    with use_backend(backend) if backend else nullcontext():
        assert all(map(torch.equal, train_once(layer, x), train_once(plain, x)))
        assert saved_bytes((plain, x.shape))[0] > 4 * x.nbytes
        assert saved_bytes((layer, x.shape))[0] == x.nbytes


@needs_half_on_cpu
def test_recomputation_under_autocast_changes_nothing():
    plain, layer = (randomized(8, 16, with_cp=with_cp) for with_cp in (False, True))
    x = torch.randn(2, 8, 13, 11)
    with torch.autocast('cpu', torch.bfloat16):
        assert all(map(torch.equal, train_once(layer, x), train_once(plain, x)))


def test_hooks_of_parts_are_called_again_only_in_the_backward_pass():
    layer, calls = randomized(8, 8, with_cp=True).eval(), []
    layer.qkv.register_forward_hook(lambda *_: calls.append(None))
    x = torch.randn(1, 8, 9, 10)
    layer(x)
    with torch.no_grad():
        layer(x.requires_grad_())
    assert len(calls) == 2
    layer(x).sum().backward()
    assert len(calls) == 4


def test_recomputation_within_recomputation_changes_nothing():
    layer, x = randomized(8, 8, with_cp=True), torch.randn(1, 8, 9, 10)
    x.requires_grad_()
    out = checkpoint(layer, x, use_reentrant=False)
    grads = torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])
    assert all(map(torch.equal, [out, *grads], train_once(layer, x)))


@needs_compiler
@pytest.mark.parametrize('options', [dict(), dict(path_weights=(1, 1), stride=2)], ids=str)
def test_recomputation_compiles_for_training_without_graph_breaks(options):
    layer, x = randomized(8, 8, with_cp=True, **options), torch.randn(1, 8, 9, 10)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    expected = train_once(layer, x)
    x.requires_grad_()
    out = compiled(x)
    grads = torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])
    for ours, theirs in zip([out, *grads], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_channels_last():
    layer, x = randomized(16, 16), torch.randn(2, 16, 12, 13)
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), expected)


@needs_compiler
def test_compiles_without_graph_breaks():
    layer, x = randomized(8, 8), torch.randn(1, 8, 9, 10)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), layer(x))


@needs_compiler
@needs_kernels
@pytest.mark.parametrize('stride', [1, 2])
def test_one_compilation_serves_every_size(stride):
    layer, frames = randomized(8, 8, stride=stride), []
    torch.compiler.reset()

    def keep(module, _):
        frames.append(module)
        return module

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=keep)
    for size in ((9, 13), (20, 31), (8, 12)):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(frames) == 1


@needs_compiler
@needs_kernels
@pytest.mark.parametrize('stride', [1, 2])
def test_exports_for_every_size(stride):
    layer = randomized(8, 8, stride=stride).eval()
    sizes = {axis: torch.export.Dim(f'side{axis}', min=8, max=64) for axis in (2, 3)}
    program = torch.export.export(layer, (torch.randn(2, 8, 9, 13),), dynamic_shapes=[sizes])
    x = torch.randn(2, 8, 21, 17)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_torch_jit_traces():
    """mmengine's and mmdet's analyses of complexity trace the model; so does old deployment."""
    layer, x = randomized(8, 8).eval(), torch.randn(1, 8, 9, 13)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), layer(x))


def test_trains_after_inference_mode_filled_the_cache():
    layer, x = ACmix(8, 8), torch.randn(1, 8, 31, 37)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.position.weight.grad is not None


def test_coordinates_are_made_once_per_size():
    make = lambda width: coordinates(5, width, torch.float32, torch.device('cpu'))  # noqa: E731
    assert make(7) is make(7)
    assert make(7) is not make(8)
    torch.testing.assert_close(make(7)[0, 0, 0], torch.linspace(-1, 1, 7))
    torch.testing.assert_close(make(7)[0, 1, :, 0], torch.linspace(-1, 1, 5))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_coordinates_are_rounded_once(dtype):
    for length in (1, 2, 3, 7, 50, 84, 333, 4097):
        index = torch.arange(length, dtype=torch.float64)
        expected = (2 * index / max(length - 1, 1) - 1).to(dtype)
        ours = coordinates(1, length, dtype, torch.device('cpu'))[0, 0, 0]
        assert ours.dtype == dtype
        torch.testing.assert_close(
            ours, expected, rtol=0, atol=2e-16 if dtype == torch.float64 else 0
        )


def test_forward_stays_on_its_device():
    """On the meta device every read of a value by the host raises."""
    layer = ACmix(8, 8, stride=2).to('meta')
    assert layer(torch.empty(1, 8, 9, 9, device='meta')).shape == (1, 8, 5, 5)


@MODELS.register_module()
class _Wiper(BaseModule):
    """A network whose initialiser walks over all convolutions, as the released ResNet's does."""

    def __init__(self) -> None:
        super().__init__(init_cfg=dict(type='Constant', val=7, layer='Conv2d'))
        self.layer = ACmix(8, 8)
        self.conv = nn.Conv2d(8, 8, 1)


def test_start_survives_build_and_init_weights():
    network = MODELS.build(dict(type='_Wiper'))
    network.init_weights()
    shifts = torch.eye(9).view(9, 3, 3).expand(8, 9, 3, 3)
    assert torch.equal(network.layer.shift_conv.kernel, shifts)
    assert network.layer.mix.alpha.item() == network.layer.mix.beta.item() == 0.5
    assert network.layer.qkv.weight.abs().max() < 7
    assert (network.conv.weight == 7).all(), 'the initialiser did run'


def test_state_dict_names():
    names = set(ACmix(8, 8).state_dict())
    assert names == {
        'qkv.weight', 'qkv.bias', 'position.weight', 'position.bias',
        'shift_conv.fc_weight', 'shift_conv.kernel', 'mix.alpha', 'mix.beta',
    }  # fmt: skip


def test_released_names_load_inside_a_network():
    golden = Golden.load('acmix_k7_s1')
    network = nn.Sequential(nn.Identity(), ACmix(16, 16))
    network.load_state_dict({f'1.{key}': value for key, value in golden.state_dict.items()})
    assert torch.equal(network[1].mix.alpha, golden.state_dict['rate1'])
    assert torch.equal(network[1].qkv.weight[16:32], golden.state_dict['conv2.weight'])


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(out_channels=10), 'out_channels must be a multiple of num_heads=4, got 10'),
        (dict(kernel_att=6), 'kernel_att must be a positive odd integer, got 6'),
        (dict(kernel_conv=2), 'kernel_conv must be a positive odd integer, got 2'),
        (dict(stride=0), 'stride must be a positive integer, got 0'),
        (dict(stride=True), 'stride must be a positive integer, got True'),
        (dict(path_weights='none'), "got 'none'"),
    ],
)
def test_refuses(change, says):
    with pytest.raises(ValueError, match=says):
        ACmix(**(dict(in_channels=8, out_channels=8) | change))


def test_old_name_of_an_argument_is_refused_with_the_new_one():
    says = 'ACmix: the argument num_conv_groups=2 is now written num_conv_pairs'
    with pytest.raises(TypeError, match=says):
        ACmix(8, 8, num_conv_groups=2)
