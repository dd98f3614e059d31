"""``torch.export`` of every layer with backends that are made of torch's operators alone."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from versions import needs_compiler

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.ops import use_backend
from acmix_mm.ops.backends import cpu


def our_operators(program: torch.export.ExportedProgram) -> set[str]:
    """Names of the operators of this package in a graph."""
    targets = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    return {target for target in targets if target.startswith('acmix_mm.')}


@needs_compiler
@pytest.mark.parametrize(
    'backends', [['reference'], *(['tiled', b, 'matmul', 'shifted'] for b in ('dense', 'composed'))]
)
@pytest.mark.parametrize(
    ('make', 'shape'),
    [
        (partial(ACmix, 8, 8, stride=2), (1, 8, 9, 10)),
        (partial(PatchwiseACmix, 8, 2, 8), (1, 8, 9, 10)),
        (partial(SpatialReductionACmix, 8, 2, sr_ratio=2), (1, 9, 10, 8)),
        (partial(WindowACmix, 8, 2, shift_size=3), (1, 9, 10, 8)),
    ],
    ids=['ACmix', 'PatchwiseACmix', 'SpatialReductionACmix', 'WindowACmix'],
)
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
