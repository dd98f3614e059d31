"""``torch.export`` of every layer with backends that are made of torch's operators alone."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from versions import needs_compiler, needs_torch

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.ops import use_backend
from acmix_mm.ops.backends import cpu


def our_operators(program: torch.export.ExportedProgram) -> set[str]:
    """Names of the operators of this package in a graph."""
    targets = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    return {target for target in targets if target.startswith('acmix_mm.')}


LAYERS = [
    pytest.param(partial(ACmix, 8, 8, stride=2), (1, 8, 9, 10), id='ACmix'),
    pytest.param(partial(PatchwiseACmix, 8, 2, 8), (1, 8, 9, 10), id='PatchwiseACmix'),
    pytest.param(
        partial(SpatialReductionACmix, 8, 2, sr_ratio=2),
        (1, 9, 10, 8),
        id='SpatialReductionACmix',
    ),
    pytest.param(partial(WindowACmix, 8, 2, shift_size=3), (1, 9, 10, 8), id='WindowACmix'),
]


@needs_compiler
@pytest.mark.parametrize(
    'backends',
    [['reference'], *(['tiled', b, 'matmul', 'shifted', 'sdpa'] for b in ('dense', 'composed'))],
)
@pytest.mark.parametrize(('make', 'shape'), LAYERS)
def test_exported_graph_is_torchs_own(make, shape, backends):
    torch.manual_seed(0)
    layer, x = make().eval(), torch.randn(shape)
    if cpu.MISSING is None:
        assert our_operators(torch.export.export(layer, (x,))), 'by default ours are in the graph'
    with ExitStack() as stack:
        for backend in backends:
            stack.enter_context(use_backend(backend))
        program = torch.export.export(layer, (x,))
    assert not our_operators(program)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


@needs_torch('2.9', 'the argument dynamo of torch.onnx.export')
@pytest.mark.parametrize(('make', 'shape'), LAYERS)
def test_exporter_of_torchscript(make, shape, tmp_path):
    """Tools such as mmdeploy still use it. It takes the portable backends by itself."""
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    import onnxruntime

    torch.manual_seed(0)
    layer, x = make().eval().requires_grad_(False), torch.randn(shape)
    for parameter in layer.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    file = str(tmp_path / 'layer.onnx')
    torch.onnx.export(layer, (x,), file, dynamo=False, opset_version=17, input_names=['x'])
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    (found,) = session.run(None, dict(x=x.numpy()))
    torch.testing.assert_close(torch.from_numpy(found), layer(x), rtol=1e-4, atol=1e-5)
