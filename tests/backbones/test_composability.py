"""The backbones with tools of PyTorch and mmengine: compilers, tracers, fusion, quantization."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from golden import relative_error
from mmcv.cnn import fuse_conv_bn
from mmcv.cnn.bricks.transformer import PatchEmbed, PatchMerging
from mmengine.analysis import get_model_complexity_info
from mmengine.model import BaseModel
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.runner import Runner
from torch import Tensor, fx, nn
from versions import needs_compiler, needs_torch

from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSAN, ACmixSwin
from acmix_mm.ops import neighborhood_attention, shift_conv


class SmallSAN(ACmixSAN):
    blocks_of_depth = {10: (1,)}  # type: ignore[dict-item]


# One stage of each family: compilers take seconds for every block.
SMALL: dict[type[nn.Module], dict[str, Any]] = {
    ACmixResNet: dict(
        depth=26, base_channels=8, num_stages=1, strides=(1,), dilations=(1,),
        stage_with_acmix=(True,), norm_eval=False, zero_init_residual=False,
    ),
    SmallSAN: dict(depth=10, base_channels=32, kernels_att=(3,), norm_eval=False),
    ACmixPVT: dict(
        embed_dims=8, num_stages=1, num_layers=(1,), num_heads=(2,), patch_sizes=(4,),
        strides=(4,), paddings=(0,), sr_ratios=(2,), mlp_ratios=(2,), pretrain_img_size=32,
        drop_path_rate=0,
    ),
    ACmixSwin: dict(
        embed_dims=8, depths=(2,), num_heads=(2,), strides=(4,), window_size=4, drop_path_rate=0
    ),
}  # fmt: skip
ALL = pytest.mark.parametrize('family', SMALL, ids=['ResNet', 'SAN', 'PVT', 'Swin'])


def randomized(family: type[nn.Module], **options: Any) -> nn.Module:
    """A small backbone, its weights and statistics away from their start, which hides errors."""
    torch.manual_seed(0)
    backbone = family(**SMALL[family], out_indices=(0,), **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in backbone.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                buffer.add_(torch.rand_like(buffer))
    return backbone


def image(height: int = 32, width: int = 48, dtype: torch.dtype | None = None) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, height, width, dtype=dtype)


def check_equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs) == 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def train_once(backbone: nn.Module, call: Callable[..., Any], x: Tensor) -> dict[str, Tensor]:
    """Return outputs, gradients and, afterwards, buffers of a training step."""
    outs = call(x)
    sum(out.square().mean() for out in outs).backward()
    return {
        **{f'output {i}': out.detach() for i, out in enumerate(outs)},
        **{f'gradient of {name}': p.grad for name, p in backbone.named_parameters()},
        **dict(backbone.named_buffers()),
    }


@needs_compiler
@pytest.mark.parametrize('with_cp', [False, True])
@ALL
def test_compiles_for_training_without_graph_breaks(family, with_cp):
    """Statistics of BatchNorm too: recomputation must not update them a second time."""
    eager = randomized(family, with_cp=with_cp)
    backbone = deepcopy(eager)
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend='aot_eager', fullgraph=True)
    expected = train_once(eager, eager, image())
    got = train_once(backbone, compiled, image())
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        if name.endswith('num_batches_tracked'):
            assert got[name] == 1


@needs_compiler
@ALL
def test_one_compilation_serves_many_sizes(family):
    backbone = randomized(family).eval()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(backbone, backend=count, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for size in ((48, 80), (80, 112), (112, 48)):
            check_equal(compiled(image(*size)), backbone(image(*size)))
    assert len(graphs) == 1


class Toy(BaseModel):
    """The smallest model that mmengine trains."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor, mode: str = 'tensor') -> Any:
        outs = self.backbone(x)
        return dict(loss=sum(out.square().mean() for out in outs)) if mode == 'loss' else outs


@needs_compiler
@pytest.mark.parametrize('family', [ACmixResNet, ACmixPVT])
def test_runner_compiles(family, tmp_path):
    """``compile=True`` of mmengine compiles the model's ``train_step``."""
    results = []
    for options in (False, dict(backend='aot_eager')):
        model = Toy(randomized(family, with_cp=True))
        torch.compiler.reset()
        Runner(
            model,
            str(tmp_path),
            train_dataloader=dict(
                dataset=[image()[0]] * 2, batch_size=2, sampler=dict(type='DefaultSampler'),
                collate_fn=lambda images: dict(x=torch.stack(images)),
            ),
            train_cfg=dict(by_epoch=False, max_iters=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            cfg=dict(compile=options),
            randomness=dict(seed=0),
            default_hooks=dict(checkpoint=None, logger=None),
            experiment_name=f'{family.__name__} {bool(options)}',
            log_level='ERROR',
        ).train()  # fmt: skip
        results.append(model.state_dict())
    eager, compiled = results
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


class TracerOfTransformers(fx.Tracer):
    """What ``create_feature_extractor(..., tracer_kwargs=dict(leaf_modules=...))`` uses.

    mmcv's layers around the blocks of Swin look at the size of their input.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_leaf = isinstance(m, PatchEmbed | PatchMerging)
        return is_leaf or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize(
    ('family', 'tracer'),
    [
        (ACmixResNet, fx.Tracer),
        (SmallSAN, fx.Tracer),
        (ACmixPVT, fx.Tracer),
        (ACmixPVT, TracerOfTransformers),
        (ACmixSwin, TracerOfTransformers),
    ],
)
def test_symbolic_trace(family, tracer):
    """The trace has the backbone's parameters, and serves every size."""
    backbone = randomized(family).eval()
    traced = fx.GraphModule(backbone, tracer().trace(backbone))
    assert traced.state_dict().keys() == backbone.state_dict().keys()
    layers = [node.target for node in traced.graph.nodes if node.op == 'call_module']
    assert any(name.endswith(('attn', 'conv2')) for name in layers), 'ACmix layers are calls'
    for size in ((32, 48), (70, 93)):
        check_equal(traced(image(*size)), backbone(image(*size)))


@ALL
def test_symbolic_trace_does_not_take_recomputation(family):
    """Nor does that of mmdet's ResNet: whether it recomputes depends on the input."""
    with pytest.raises(fx.proxy.TraceError, match='used as inputs to control flow'):
        TracerOfTransformers().trace(randomized(family, with_cp=True))


def test_operators_take_part_in_symbolic_tracing():
    class Attention(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
            return neighborhood_attention(x, k=x, v=x, kernel_size=3).flatten(1, 2) + shift_conv(
                [x, x], weight, None, kernel
            )

    x, weight, kernel = (torch.randn(s) for s in [(1, 2, 4, 5, 6), (1, 9, 4), (1, 8, 9, 3, 3)])
    traced = fx.symbolic_trace(Attention())
    calls = [node.target for node in traced.graph.nodes if node.op == 'call_function']
    assert calls[0] is neighborhood_attention
    assert shift_conv in calls
    torch.testing.assert_close(traced(x, weight, kernel), Attention()(x, weight, kernel))


def test_efficient_conv_bn_eval():
    """mmengine's option for fine-tuning with frozen statistics."""
    model = Toy(randomized(ACmixResNet).eval())
    expected = model.backbone(image())
    turn_on_efficient_conv_bn_eval(model, 'backbone')
    names = [node.name for node in model.backbone.forward.__self__.graph.nodes]
    # All pairs of convolution and norm: the ACmix layer, which is none, keeps its norm.
    assert sum(name.startswith('efficient_conv_bn_eval') for name in names) == 4
    check_equal(model.backbone(image()), expected)


@ALL
def test_fused_batch_norms_change_nothing(family):
    backbone = randomized(family).double().eval()
    x = image(dtype=torch.float64)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    fused = fuse_conv_bn(deepcopy(backbone))
    left = sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert left < norms or norms == 0
    with torch.no_grad():
        for ours, theirs in zip(fused(x), backbone(x), strict=True):
            assert relative_error(ours, theirs) <= 1e-12


@ALL
def test_jit_trace(family):
    backbone = randomized(family).eval()
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(backbone, image(), check_trace=False)
    check_equal(traced(image()), backbone(image()))
    if family is not ACmixSwin:
        for size in ((48, 32), (70, 93)):
            check_equal(traced(image(*size)), backbone(image(*size)))


@ALL
def test_complexity_by_mmengine(family):
    """It traces the model, as mmdet's and mmseg's ``get_flops.py`` do with it."""
    backbone = randomized(family).eval()
    info = get_model_complexity_info(backbone, inputs=image(), show_table=False, show_arch=False)
    assert info['params'] == sum(p.numel() for p in backbone.parameters())
    assert info['flops'] > 0


def test_jit_trace_of_swin_warns():
    """One window in a stage, or several: the trace keeps what it saw."""
    backbone = randomized(ACmixSwin).eval()
    with pytest.warns(torch.jit.TracerWarning) as warnings:
        torch.jit.trace(backbone, image(), check_trace=False)
    (ours,) = {str(w.message) for w in warnings if 'WindowACmix' in str(w.message)}
    assert 'this map of 8x12: the trace is right for images of this size only' in ours


@needs_torch('2.6', 'torch.export.Dim.AUTO')
@ALL
def test_exports_for_every_size(family):
    """Swin: of whole patches and windows, if those of the example are whole."""
    backbone = randomized(family).eval()
    open_ = torch.export.Dim.AUTO
    shapes = {'x': {0: open_, 2: open_, 3: open_}}
    program = torch.export.export(backbone, (image(96, 160),), dynamic_shapes=shapes).module()
    sizes = [(64, 64), (128, 96)] if family is ACmixSwin else [(64, 64), (70, 93), (35, 47)]
    for size in sizes:
        check_equal(program(image(*size)), backbone(image(*size)))
    if family is ACmixSwin:
        with pytest.raises(AssertionError, match='Guard failed'):
            program(image(70, 93))


@ALL
def test_weights_load_after_the_meta_device(family):
    backbone = randomized(family).eval()
    with torch.device('meta'):
        empty = family(**SMALL[family], out_indices=(0,)).eval()
    empty.to_empty(device='cpu')
    empty.load_state_dict(backbone.state_dict())
    for ours, theirs in zip(empty(image()), backbone(image()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated')
@pytest.mark.parametrize('path_weights', ['learned', (1, 0)])
@pytest.mark.parametrize('family', [ACmixPVT, ACmixSwin])
def test_quantized_linear_layers(family, path_weights):
    backbone = randomized(family, acmix_cfg=dict(path_weights=path_weights)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(backbone, {nn.Linear})
    assert not isinstance(quantized.stages[0].blocks[0].attn.qkv, nn.Linear)
    for ours, theirs in zip(quantized(image()), backbone(image()), strict=True):
        assert 0 < relative_error(ours, theirs) < 0.05
