"""The layer as one operator: what it computes, what it keeps, and when its parts run instead."""

import os
import random
from copy import deepcopy
from typing import Any

import pytest
import torch
from fresh_process import run_python
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from versions import needs_compiler, needs_opcheck

from acmix_mm.layers import ACmix
from acmix_mm.layers.projection import PointwiseConv
from acmix_mm.layers.shift_conv import ShiftConv
from acmix_mm.ops import neighborhood_attention, shift_conv, use_backend
from acmix_mm.ops.acmix_layer import (
    FEWEST_BANDS,
    MOST_CHANNELS_IN_TRAINING,
    MOST_REACH,
    PARTS,
    ROWS_OF_A_BAND,
    acmix_layer,
)
from acmix_mm.ops.backends import cpu
from benchmarks.measure import saved_bytes

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')


@pytest.fixture(autouse=True)
def few_bands_suffice(monkeypatch):
    """Let small maps, which are quick, run as one operator."""
    monkeypatch.setattr('acmix_mm.ops.acmix_layer.FEWEST_BANDS', 1)


class Calls(TorchDispatchMode):
    """Collects the names of the compiled operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == 'acmix_mm':
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def calls_of(layer: ACmix, x: Tensor) -> set[str]:
    with Calls() as calls:
        layer(x)
    return calls.names


def runs_fused(layer: ACmix, x: Tensor) -> bool:
    """Whether the layer is one operator instead of its parts."""
    names = calls_of(layer, x)
    fused = 'acmix_layer_forward' in names
    assert not (fused and {'neighborhood_attention_forward', 'shift_conv_forward'} & names)
    return fused


def randomized(*args: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> ACmix:
    """A layer away from its start, whose one-hot shifts and equal weights hide errors."""
    torch.manual_seed(0)
    layer = ACmix(*args, **kwargs).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def results(layer: ACmix, x: Tensor) -> list[Tensor]:
    """Return the output and all gradients."""
    x = x.detach().requires_grad_()
    out = layer(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view_as(out)
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], weight)]


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (7, 5), (16, 17), (40, 33)])
@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(dilation=2),
        dict(dilation=3, kernel_att=5),
        dict(kernel_att=3, kernel_conv=5, num_heads=4),
        dict(kernel_att=1, kernel_conv=1),
        dict(num_conv_pairs=2, path_weights='complementary', num_heads=1),
        dict(stride=2),
        dict(stride=2, dilation=2, kernel_conv=5),
        dict(stride=2, dilation=3, kernel_att=5, kernel_conv=1),
        dict(stride=3, kernel_att=1, kernel_conv=1, num_heads=2),  # rows that no window sees
        dict(stride=5, dilation=2, kernel_att=3),
        dict(stride=50),
    ],
    ids=str,
)
def test_equals_the_definition_with_every_gradient(size, options):
    layer = randomized(5, 12, **(dict(num_heads=3) | options))
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    assert runs_fused(layer, x)
    ours = results(layer, x)
    with use_backend('reference'):
        expected = results(layer, x)
    names = ['out', 'x', *dict(layer.named_parameters())]
    for name, a, b in zip(names, ours, expected, strict=True):
        # The bias of the position map cancels in the softmax: its gradient is rounding around 0.
        assert (a - b).abs().max() <= 1e-12 * max(1, b.abs().max()), name


@pytest.mark.parametrize('seed', range(int(os.environ.get('ACMIX_SWEEP', 24))))
def test_random_layers_equal_the_definition(seed):
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 3, 5])
    kernel_att, kernel_conv = rng.choice([1, 3, 5, 7, 9]), rng.choice([1, 3, 5])
    most = MOST_REACH // max(kernel_att // 2, kernel_conv // 2, 1)
    layer = randomized(
        rng.choice([1, 3, 70]),
        heads * rng.choice([1, 4, 9]),
        kernel_att=kernel_att,
        num_heads=heads,
        kernel_conv=kernel_conv,
        dilation=rng.randint(1, most),
        stride=rng.choice([1, 2, 2, 3, 4]),
    )
    # 45 rows are several bands, and 70 columns more than the projection takes at a time.
    size = rng.choice([1, 2, 9, 13, 24, 45]), rng.choice([1, 3, 8, 16, 21, 70])
    x = torch.randn(rng.choice([1, 2, 3]), layer.in_channels, *size, dtype=torch.float64)
    assert runs_fused(layer, x)
    ours = results(layer, x)
    with use_backend('reference'):
        expected = results(layer, x)
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).abs().max() <= 1e-11 * max(1, b.abs().max())


@pytest.mark.parametrize('stride', [1, 2])
def test_gradients_equal_differences(stride):
    layer = randomized(2, 4, kernel_att=3, num_heads=2, stride=stride)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    names = list(dict(layer.named_parameters()))

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert runs_fused(layer, x)
    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_single_precision_is_as_exact_as_the_parts(dtype, stride):
    layer = randomized(16, 32, dtype=dtype, stride=stride)
    x = torch.randn(2, 16, 30, 27, dtype=dtype)
    ours = results(layer, x)
    with use_backend('cpu'):
        parts = results(layer, x)
    with use_backend('reference'):
        truth = results(deepcopy(layer).double(), x.double())
    for a, b, exact in zip(ours, parts, truth, strict=True):
        bound = 2 * (b - exact).abs().max() + 4 * torch.finfo(dtype).eps * exact.abs().max()
        assert (a - exact).abs().max() <= bound + 1e-5


def test_activation_checkpointing_changes_nothing():
    layer, x = randomized(8, 8), torch.randn(2, 8, 9, 10, dtype=torch.float64)
    plain = results(layer, x)
    x.requires_grad_()
    out = checkpoint(layer, x, use_reentrant=False)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view_as(out)
    grads = torch.autograd.grad(out, [x, *layer.parameters()], weight)
    assert all(map(torch.equal, plain, [out, *grads]))


@pytest.mark.parametrize('stride', [1, 2])
def test_empty_batch_and_other_layouts(stride):
    layer, side = randomized(8, 8, stride=stride), -(-9 // stride)
    out, grad_x, *grads = results(layer, torch.empty(0, 8, 9, 9, dtype=torch.float64))
    assert out.shape == (0, 8, side, side)
    assert grad_x.shape == (0, 8, 9, 9)
    assert all((grad == 0).all() for grad in grads)
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    strided = x.to(memory_format=torch.channels_last)
    for a, b in zip(results(layer, x), results(layer, strided), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('stride', [1, 2])
def test_result_does_not_depend_on_the_number_of_threads(stride):
    layer = randomized(8, 12, num_heads=3, dtype=torch.float32, stride=stride)
    x, found, before = torch.randn(2, 8, 70 * stride, 40), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(results(layer, x))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('capability', ['default', 'avx2'])
def test_other_instruction_sets(capability, stride):
    code = """
import os
import torch
from acmix_mm.layers import ACmix
from acmix_mm.ops import use_backend
torch.manual_seed(0)
layer = ACmix(6, 12, num_heads=3, stride=int(os.environ['STRIDE']))
x = torch.randn(2, 6, 20, 21).requires_grad_()
leaves = [x, *layer.parameters()]
out = layer(x)
ours = [out, *torch.autograd.grad(out.square().sum(), leaves)]
with use_backend('reference'):
    out = layer(x)
    expected = [out, *torch.autograd.grad(out.square().sum(), leaves)]
for a, b in zip(ours, expected):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
"""
    run_python(code, ATEN_CPU_CAPABILITY=capability, STRIDE=str(stride))


@pytest.mark.parametrize('stride', [1, 2])
def test_training_keeps_little_more_than_the_input(stride):
    kept, given = saved_bytes((ACmix(64, 64, stride=stride), (1, 64, 40, 41)))
    assert 1 <= kept / given <= 2


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('where', [(0, 0), (13, 9), (24, 17)])
@pytest.mark.parametrize('stride', [1, 2])
def test_what_is_not_finite_spreads_as_in_the_parts(value, where, stride):
    layer = randomized(8, 8, dtype=torch.float32, stride=stride)
    x = torch.randn(1, 8, 25, 18)
    x[0, 3, where[0], where[1]] = value
    ours = results(layer, x)[:2]
    with use_backend('cpu'):
        parts = results(layer, x)[:2]
    for a, b in zip(ours, parts, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        assert not a.isfinite().all()
        assert a.isfinite().any()


def test_large_logits_stay_finite():
    layer = randomized(8, 8, dtype=torch.float32)
    with torch.no_grad():
        layer.qkv.weight[:16] *= 1e6  # queries and keys
    x = torch.randn(1, 8, 14, 15)
    assert all(result.isfinite().all() for result in results(layer, x))
    with use_backend('reference'):
        truth = deepcopy(layer).double()(x.double())
    # Where one neighbour takes all of the weight, rounded logits may choose another one.
    assert ((layer(x) - truth).abs() < 1e-3 * truth.abs().max()).float().mean() > 0.98


@pytest.mark.parametrize('part', ['qkv', 'position', 'shift_conv', 'mix'])
def test_parts_run_where_one_is_watched_or_replaced(part):
    x = torch.randn(1, 8, 9, 10)
    watch = {
        'forward': lambda m: m.register_forward_hook(lambda *_: None),
        'pre': lambda m: m.register_forward_pre_hook(lambda *_: None),
        'backward': lambda m: m.register_full_backward_hook(lambda *_: None),
        'method': lambda m: setattr(m, 'forward', m.forward),
    }
    for name, change in watch.items():
        layer = ACmix(8, 8)
        assert runs_fused(layer, x)
        handle = change(getattr(layer, part))
        assert not runs_fused(layer, x), f'{name} of {part}'
        if handle is not None:
            handle.remove()
            assert runs_fused(layer, x)
    layer = ACmix(8, 8)

    class Adapter(type(getattr(layer, part))):
        """Stands for any module in the place of a part."""

    getattr(layer, part).__class__ = Adapter
    assert not runs_fused(layer, x)


def test_parts_run_where_a_weight_is_made_by_another_tool():
    x = torch.randn(1, 8, 9, 10)
    layer = ACmix(8, 8)
    nn.utils.parametrizations.weight_norm(layer.qkv)
    assert not runs_fused(layer, x)
    layer = ACmix(8, 8)
    nn.utils.parametrize.register_parametrization(layer.shift_conv, 'kernel', nn.Identity())
    assert not runs_fused(layer, x)
    layer = ACmix(8, 8)
    layer.qkv = PointwiseConv(8, 24, chunks=3)
    assert runs_fused(layer, x)


def test_parts_run_where_one_of_the_same_type_computes_something_else():
    x, layers = torch.randn(1, 8, 9, 10), [ACmix(8, 8) for _ in range(4)]
    layers[0].shift_conv = ShiftConv(12, 2, 8, bias=True)
    layers[1].shift_conv = ShiftConv(12, 2, 8, dilation=2)
    layers[2].shift_conv.dilation = 3
    layers[3].position = nn.Conv2d(2, 2, 1)
    layers.append(ACmix(8, 8, stride=2))
    layers[4].shift_conv.dilation = 2
    for layer in layers:
        assert not runs_fused(layer, x)
        with use_backend('reference'):
            expected = layer(x)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('path', ['attention', 'convolution'])
def test_parts_run_where_a_path_is_left_out(path):
    layer, x = randomized(8, 8, dtype=torch.float32), torch.randn(1, 8, 9, 10)
    whole = layer(x)
    assert runs_fused(layer, x)
    setattr(layer.mix, f'uses_{path}', False)
    assert not runs_fused(layer, x)
    with use_backend('reference'):
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)
    assert (whole - expected).abs().max() > 0.01


@pytest.mark.parametrize(
    'options',
    [dict(kernel_att=2 * MOST_REACH + 1), dict(kernel_att=1, dilation=MOST_REACH)],
    ids=str,
)
def test_windows_that_reach_far_run_the_parts(options):
    x = torch.randn(1, 8, 9, 10)
    assert runs_fused(ACmix(8, 8, **options), x)
    farther = {name: value + (2 if name == 'kernel_att' else 1) for name, value in options.items()}
    assert not runs_fused(ACmix(8, 8, **farther), x)


def test_few_bands_run_the_parts(monkeypatch):
    monkeypatch.setattr('acmix_mm.ops.acmix_layer.FEWEST_BANDS', FEWEST_BANDS)
    layer, height = ACmix(8, 8), FEWEST_BANDS * ROWS_OF_A_BAND
    assert runs_fused(layer, torch.randn(1, 8, height, 5))
    assert not runs_fused(layer, torch.randn(1, 8, height - ROWS_OF_A_BAND, 5))
    assert runs_fused(layer, torch.randn(FEWEST_BANDS, 8, 1, 5))
    # Bands are rows of the result.
    layer = ACmix(8, 8, stride=2)
    assert runs_fused(layer, torch.randn(1, 8, 2 * height, 5))
    assert not runs_fused(layer, torch.randn(1, 8, 2 * (height - ROWS_OF_A_BAND), 5))


@pytest.mark.parametrize('operator', [None, *PARTS])
def test_parts_run_where_a_backend_is_chosen(operator):
    layer, x = ACmix(8, 8), torch.randn(1, 8, 9, 10)
    with use_backend('reference' if operator is None else 'cpu', operator):
        assert 'acmix_layer_forward' not in calls_of(layer, x)


def test_parts_run_where_calls_are_recorded():
    class Names(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen.append(getattr(func, '__name__', ''))
            return func(*args, **kwargs or {})

    layer, x = ACmix(8, 8), torch.randn(1, 8, 9, 10)
    with Names() as names:
        layer(x)
    assert {'pointwise_conv', 'neighborhood_attention', 'shift_conv'} <= set(names.seen)


@pytest.mark.parametrize('options', [dict(path_weights=(1, 1)), dict(path_weights=(1, 0))], ids=str)
def test_other_layers_run_their_parts(options):
    assert not runs_fused(ACmix(8, 8, **options), torch.randn(1, 8, 9, 10))


def test_other_precisions_run_the_parts():
    layer, x = ACmix(8, 8), torch.randn(1, 8, 9, 10)
    with torch.autocast('cpu', torch.bfloat16):
        assert not runs_fused(layer, x)
    assert not runs_fused(deepcopy(layer).bfloat16(), x.bfloat16())


def test_wide_layers_run_their_parts_in_training():
    most = MOST_CHANNELS_IN_TRAINING
    layer, x = ACmix(most + 1, 8), torch.randn(1, most + 1, 5, 6)
    assert not runs_fused(layer, x)
    with torch.no_grad():
        assert runs_fused(layer, x)
    layer.requires_grad_(False)
    assert runs_fused(layer, x)
    assert runs_fused(ACmix(most, 8), x[:, 1:])
    assert runs_fused(ACmix(most + 1, 8, with_cp=True), x)


@pytest.mark.parametrize('stride', [1, 2])
def test_wide_layers_that_save_memory_equal_those_that_do_not(stride):
    most = MOST_CHANNELS_IN_TRAINING
    plain, layer = (randomized(most + 4, 8, stride=stride, with_cp=w) for w in (False, True))
    x = torch.randn(2, most + 4, 20, 9, dtype=torch.float64)
    assert runs_fused(layer, x)
    for a, b in zip(results(layer, x), results(plain, x), strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1, b.abs().max())


def test_wrong_input_is_refused_as_by_the_parts():
    layer = ACmix(8, 8)
    for shape in ((1, 7, 9, 10), (1, 8, 0, 10), (8, 9, 10), (8,), ()):
        x = torch.randn(shape)
        with pytest.raises(ValueError, match='pointwise_conv: '):
            layer(x)


def test_cannot_be_differentiated_twice():
    layer, x = ACmix(8, 8), torch.randn(1, 8, 9, 10, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).sum(), [x], create_graph=True)
    with pytest.raises(NotImplementedError, match='second derivatives'):
        grad.square().sum().backward()


def arguments(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 4), (12, 3), (12,), (2, 5, 4), (4, 6, 3, 3), (1,)]
    return [
        torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes
    ]


@needs_opcheck
def test_registration():
    op, tensors = torch.ops.acmix_mm.acmix_layer_forward.default, arguments()
    for stride in (1, 2):
        torch.library.opcheck(op, (*tensors, 3, stride, 1, 0.5))
        out, lse = op(*tensors, 3, stride, 1, 0.5)
        torch.library.opcheck(
            torch.ops.acmix_mm.acmix_layer_backward.default,
            (*(t.detach() for t in (torch.ones_like(out), *tensors, lse)), 3, stride, 1, 0.5),
            test_utils=['test_schema', 'test_faketensor'],
        )


@needs_compiler
@pytest.mark.parametrize('stride', [1, 2])
def test_compiles_as_one_operator(stride):
    layer, x, graphs = ACmix(8, 8, stride=stride), torch.randn(1, 8, 9, 10), []
    torch.compiler.reset()

    def keep(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module

    compiled = torch.compile(layer, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(x), layer(x))
    assert 'acmix_layer_forward' in graphs[0].code


@pytest.mark.parametrize(('stride', 'dilation'), [(1, 1), (2, 1), (3, 2)])
def test_public_function_is_the_sum_of_both_paths(stride, dilation):
    x, weight, bias, position, _, alpha = (tensor.detach() for tensor in arguments())
    fc_weight, kernel = torch.randn(2, 9, 6).double(), torch.randn(2, 4, 9, 3, 3).double()
    geometry = dict(stride=stride, dilation=dilation)
    out = acmix_layer(x, weight, bias, position, fc_weight, kernel, alpha, 5, **geometry)
    maps = torch.einsum('oc,bchw->bohw', weight, x) + bias.view(-1, 1, 1)
    q, k, v = maps.view(2, 3, 2, 2, 5, 4).unbind(1)
    geometry['backend'] = 'reference'
    queries = q[..., ::stride, ::stride]
    attention = neighborhood_attention(queries, k - position, v, 5, **geometry).flatten(1, 2)
    convolution = shift_conv((q, k, v), fc_weight, None, kernel, **geometry)
    torch.testing.assert_close(out, alpha * attention + convolution)
