"""The layer as one operator of Triton kernels, on a GPU or in Triton's interpreter."""

from typing import Any

import pytest
import torch
from fresh_process import run_python
from torch import Tensor, nn
from triton_interpreter import repair_bfloat16

from acmix_mm.layers import ACmix
from acmix_mm.ops import gpu_layer, use_backend
from acmix_mm.ops.backends import triton

if triton.missing() is not None:
    pytest.skip(str(triton.missing()), allow_module_level=True)
from acmix_mm.ops.backends import triton_kernels, triton_layer

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: Any) -> None:
    """The interpreter runs one after the other."""
    monkeypatch.setattr(triton_layer, 'PARTIAL_SUMS', 2)


def randomized(*args: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> ACmix:
    """A layer away from its start, whose one-hot shifts and equal weights hide errors."""
    torch.manual_seed(0)
    layer = ACmix(*args, **kwargs).to(DEVICE, dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def run(layer: ACmix, x: Tensor) -> Tensor:
    geometry = (layer.kernel_att, layer.stride[0], layer.dilation[0])
    return gpu_layer.gpu_layer(x, *layer.weights_of_one_operator(), *geometry)


def run_parts(layer: ACmix, x: Tensor) -> Tensor:
    with use_backend('reference'):
        return layer(x)


def results(function: Any, layer: ACmix, x: Tensor) -> dict[str, Tensor]:
    """The output and every gradient, for a loss that weighs every element differently."""
    x = x.detach().requires_grad_()
    leaves = {'x': x, **dict(layer.named_parameters())}
    out = function(layer, x)
    weight = torch.linspace(-1, 1, out.numel(), device=DEVICE).sin().view(out.shape).to(out)
    grads = torch.autograd.grad(out, [*leaves.values()], weight)
    return {'out': out, **dict(zip(leaves, grads, strict=True))}


def assert_equals_reference(
    layer: ACmix, x: Tensor, rtol: float = 1e-12, function: Any = run
) -> None:
    ours = results(function, layer, x)
    with use_backend('reference'):  # in the backward pass as well, which may run layers again
        expected = results(ACmix.__call__, layer.double(), x.double())
    for name, exact in expected.items():
        # The bias of the position cancels in the softmax: its gradient is rounding around 0.
        atol = rtol * max(1, exact.abs().max().item()) if exact.numel() else 0
        torch.testing.assert_close(
            ours[name].double(), exact, rtol=0, atol=atol, msg=lambda text, n=name: f'{n}: {text}'
        )


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=dtype, generator=generator).to(DEVICE)


@pytest.mark.parametrize(
    ('options', 'size'),
    [
        (dict(kernel_att=3), (9, 4)),  # several tiles
        (dict(kernel_att=3), (1, 1)),
        (dict(kernel_att=5), (2, 4)),  # reflected more than once
        (dict(kernel_att=3, dilation=2), (5, 6)),
        (dict(kernel_att=3, stride=2, dilation=2), (5, 6)),
        (dict(kernel_att=1, kernel_conv=1), (3, 4)),
        (dict(kernel_att=3, kernel_conv=5), (6, 7)),
        (dict(kernel_att=1, num_heads=2, num_conv_pairs=2), (4, 3)),
        (dict(kernel_att=1, path_weights='complementary'), (2, 2)),
    ],
    ids=str,
)
def test_equals_the_definition_with_every_gradient(options, size):
    layer = randomized(3, 2, **(dict(num_heads=1) | options))
    assert_equals_reference(layer, image(1, 3, *size))


@pytest.mark.parametrize(
    ('inputs', 'heads', 'depth', 'channels_last'), [(2, 1, 33, False), (130, 2, 2, True)]
)
def test_channels(inputs, heads, depth, channels_last):
    """Slices of heads, which are copied; more inputs than a program takes at a time."""
    layer = randomized(inputs, heads * depth, kernel_att=1, num_heads=heads)
    x = image(1, inputs, 2, 3)
    if channels_last:
        layer, x = (y.to(memory_format=torch.channels_last) for y in (layer, x))
    assert_equals_reference(layer, x)


def test_inner_tiles():
    """Tiles away from all borders, whose pixels have all biases of the convolution."""
    layer = randomized(2, 2, kernel_att=1, num_heads=1)
    assert_equals_reference(layer, image(1, 2, 18, 18))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_precision(dtype, monkeypatch):
    if dtype == torch.bfloat16 and triton_kernels.INTERPRETED:
        repair_bfloat16(monkeypatch)
    layer = randomized(6, 8, kernel_att=3, num_heads=1, dtype=dtype)
    rtol = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    assert_equals_reference(layer, image(1, 6, 5, 6, dtype=dtype), rtol)


def test_weights_may_be_more_precise():
    layer, x = randomized(3, 2, kernel_att=3, num_heads=1).float(), image(1, 3, 4, 5).half()
    out = run(layer, x)
    assert out.dtype == torch.float16
    with torch.autocast(DEVICE, torch.float16):
        assert torch.equal(run(layer, x.float()), out)
    out.float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}


def test_position_is_as_exact_as_float32_in_half_precision(monkeypatch):
    """Without an effect of the keys, what is left in the logits is the position."""
    layer, x = randomized(4, 4, kernel_att=3, num_heads=1, dtype=torch.float16), image(1, 4, 9, 9)
    with torch.no_grad():
        layer.qkv.weight[4:8] = 0  # keys
        layer.qkv.bias[4:8] = 0
        layer.position.weight.mul_(30)  # of which rounded products would be far off
    x = x.half()
    kept = triton_layer.run_forward(x, *layer.weights_of_one_operator(), 3, 1, 1, True)
    q, *_ = triton_layer._split(kept[1], 1, 1)
    weight = layer.position.weight.flatten(1).double()
    slopes = torch.einsum('bndhw,dc->bnchw', q.double(), weight)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 9).double()] * 2, indexing='xy'))
    # A query that sees itself and four equally far neighbors on each side of an inner pixel.
    steps = torch.tensor([-0.25, 0, 0.25]).double()
    along = (slopes[0, 0, :, 4, 4, None] * steps / 2).exp().sum(1).log().sum()
    centre = (slopes[0, 0, :, 4, 4] * grid[:, 4, 4].to(DEVICE)).sum() / 2
    expected = (along - centre) / torch.tensor(2.0).log()
    torch.testing.assert_close(kept[3][0, 0, 4, 4].double(), expected, rtol=1e-5, atol=1e-5)


def test_empty_batch():
    layer = randomized(4, 4, kernel_att=3, num_heads=1)
    found = results(run, layer, image(0, 4, 5, 6))
    assert found['out'].shape == found['x'].shape == (0, 4, 5, 6)
    assert all((found[name] == 0).all() for name in dict(layer.named_parameters()))


def test_every_run_gives_the_same():
    layer, x = randomized(3, 2, kernel_att=1, num_heads=1).float(), image(1, 3, 9, 9).float()
    first, second = (results(run, layer, x) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradient_that_is_one_number():
    layer, x = randomized(2, 2, kernel_att=3, num_heads=1), image(1, 2, 3, 4).requires_grad_()
    leaves = [x, *layer.parameters()]
    ours, expected = (torch.autograd.grad(f(layer, x).sum(), leaves) for f in (run, run_parts))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_inference_keeps_no_attention():
    layer, x = randomized(2, 2, kernel_att=3, num_heads=1), image(1, 2, 3, 4)
    weights = layer.weights_of_one_operator()
    out, _, attention, *_ = triton_layer.run_forward(x, *weights, 3, 1, 1, False)
    assert attention.numel() == 0
    with torch.no_grad():
        torch.testing.assert_close(run(layer, x), out)
    torch.testing.assert_close(out, run_parts(layer, x))


@pytest.mark.parametrize('permuted', [(0, 1, 2, 3), (0, 1, 3, 2), (2, 3, 1, 0)], ids=str)
def test_registration(permuted):
    """Also of layouts that no convolution returns."""
    x = image(2, 3, 2, 3).permute(permuted)
    layer = randomized(x.shape[1], 2, kernel_att=1, num_heads=1)
    tensors = [t.detach().requires_grad_() for t in (x, *layer.weights_of_one_operator())]
    geometry = (1, 1, 1)
    torch.library.opcheck(triton_layer.run, (*tensors, *geometry, True))
    tensors = [tensor.detach() for tensor in tensors]
    out, *kept = triton_layer.run(*tensors, *geometry, True)
    for asked in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            triton_layer._differentiate,
            (torch.ones_like(out), *tensors, *kept, *geometry, *asked),
            test_utils=['test_schema', 'test_faketensor'],
        )


@pytest.mark.parametrize('frozen', ['input', 'weights', 'projection'])
def test_only_the_gradients_that_are_asked_for(frozen, monkeypatch):
    layer, x = randomized(3, 2, kernel_att=1, num_heads=1), image(1, 3, 3, 4)
    x.requires_grad_(frozen != 'input')
    trained = {'input': layer, 'weights': nn.Module(), 'projection': layer.shift_conv}[frozen]
    layer.requires_grad_(False)
    trained.requires_grad_(True)
    leaves = [t for t in (x, *layer.parameters()) if t.requires_grad]
    summed, original = [], triton_layer._sum_at_taps

    def record(*args: Any) -> Tensor:
        summed.append(args)
        return original(*args)

    monkeypatch.setattr(triton_layer, '_sum_at_taps', record)
    ours, expected = (torch.autograd.grad(f(layer, x).sum(), leaves) for f in (run, run_parts))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert len(summed) == (frozen != 'weights')


def test_compiles_without_graph_breaks(chosen):
    layer, x = randomized(4, 4, kernel_att=3), image(1, 4, 3, 4)
    graphs = []

    def keep(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module

    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(x), run_parts(layer, x))
    assert 'triton_dense_acmix_layer_forward' in graphs[0].code


def test_compiles_once_for_training_at_any_size(chosen):
    layer = randomized(4, 4, kernel_att=3)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend='aot_eager')
    for size, stance in (((3, 5), 'default'), ((6, 7), 'fail_on_recompile')):
        x = image(1, 4, *size).requires_grad_()
        leaves = [x, *layer.parameters()]
        with torch.compiler.set_stance(stance):
            ours = torch.autograd.grad(compiled(x).sin().sum(), leaves)
        expected = torch.autograd.grad(layer(x).sin().sum(), leaves)
        torch.testing.assert_close(ours, expected)


@pytest.mark.skipif(DEVICE == 'cuda', reason='the kernels are compiled anyway')
@pytest.mark.parametrize(('capability', 'dtype'), [(80, 'float32'), (90, 'float16')])
def test_compiles_for_gpus(capability, dtype, tmp_path):
    """The real compiler takes what the interpreter takes, down to machine code."""
    code = f"""
import torch, triton
from benchmarks.count_sass import AbsentGPU, compile_layer

triton.runtime.driver.set_active(AbsentGPU({capability}))
for name, compiled, blocks in compile_layer((9, 12), 8, torch.{dtype}, torch.channels_last):
    print(name.split(',')[0])
    assert compiled.asm['cubin'] and compiled.metadata.shared < 99 * 1024
    assert not blocks or 'mma.sync' in compiled.asm['ptx']
"""
    printed = run_python(code, TRITON_INTERPRET='0', TRITON_CACHE_DIR=str(tmp_path)).stdout.split()
    assert printed == [
        'compose', 'forward', 'backward_queries', 'backward_keys', 'sum_by_tap',
        'differentiate_row', 'differentiate_filters',
    ]  # fmt: skip


def test_cannot_be_differentiated_twice():
    layer, x = randomized(2, 2, kernel_att=1, num_heads=1), image(1, 2, 2, 2).requires_grad_()
    (grad,) = torch.autograd.grad(run(layer, x).sum(), [x], create_graph=True)
    with pytest.raises(NotImplementedError, match='second derivatives'):
        grad.square().sum().backward()


@pytest.fixture
def chosen(monkeypatch):
    """Let layers choose the operator as on a GPU, where the one for CPUs cannot run."""
    monkeypatch.setattr('acmix_mm.layers.acmix.cannot_fuse', lambda *_, **__: 'on a GPU')
    monkeypatch.setattr(gpu_layer, 'DEVICES', {DEVICE})
    monkeypatch.setattr(triton, 'by_name_only', lambda *_: None)


def count_calls(layer: ACmix, x: Tensor, monkeypatch: Any) -> int:
    """How often a training step of a layer, which is compared as well, calls the operator."""
    calls, original = [], gpu_layer.gpu_layer

    def record(*args: Any) -> Tensor:
        calls.append(args)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(gpu_layer, 'gpu_layer', record)
        assert_equals_reference(layer, x, function=ACmix.__call__)
    return len(calls)


@pytest.mark.parametrize(
    ('options', 'calls'), [({}, 1), (dict(stride=2), 1), (dict(with_cp=True), 2)], ids=str
)
def test_layers_choose_it(chosen, monkeypatch, options, calls):
    layer = randomized(2, 2, kernel_att=3, num_heads=1, **options)
    assert count_calls(layer, image(1, 2, 4, 3), monkeypatch) == calls


@pytest.mark.parametrize('backend', ['triton', 'dense', 'reference'])
def test_parts_run_where_a_backend_is_chosen(chosen, monkeypatch, backend):
    layer, x = randomized(2, 2, kernel_att=1, num_heads=1), image(1, 2, 2, 2)
    with use_backend(backend):
        assert count_calls(layer, x, monkeypatch) == 0


@pytest.mark.parametrize('options', [dict(path_weights=(1, 1)), dict(path_weights=(1, 0))], ids=str)
def test_parts_run_with_fixed_weights(chosen, monkeypatch, options):
    layer = randomized(2, 2, kernel_att=1, num_heads=1, **options)
    assert count_calls(layer, image(1, 2, 2, 2), monkeypatch) == 0


def test_on_other_devices_nothing_is_asked(monkeypatch):
    monkeypatch.setattr('acmix_mm.layers.acmix.cannot_fuse', lambda *_, **__: 'the maps are small')
    monkeypatch.delattr(gpu_layer, 'cannot_run')
    layer, x = (y.cpu() for y in (randomized(2, 2, num_heads=1), image(1, 2, 2, 2)))
    torch.testing.assert_close(layer(x), run_parts(layer, x))


def test_says_why_it_cannot_run(chosen):
    layer, x = randomized(4, 4, dtype=torch.float32), image(1, 4, 3, 4)
    weights = layer.weights_of_one_operator()
    assert 'must have the dtype of the input' in gpu_layer.cannot_run(x, *weights)
    elsewhere = [weight.to('meta') for weight in weights]
    assert 'device of the input' in gpu_layer.cannot_run(x.float(), *elsewhere)
    large = randomized(4, 4, kernel_conv=9, dtype=torch.float32).weights_of_one_operator()
    assert '81 mixtures of maps' in gpu_layer.cannot_run(x.float(), *large)
    assert 'the first of its parts' in gpu_layer.cannot_run(x[0].float(), *weights)
    assert gpu_layer.cannot_run(x.float(), *weights) is None
    with torch.autocast(DEVICE, torch.float16):
        assert gpu_layer.cannot_run(x.half(), *weights) is None
    if triton_kernels.INTERPRETED:
        assert 'bfloat16' in gpu_layer.cannot_run(x.bfloat16(), *weights)
