"""Symbolic tracing of the layers, which are calls in the graph of what contains them."""

import pytest
import torch
from torch import fx, nn

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix

LAYERS = pytest.mark.parametrize(
    'layer',
    [ACmix(8, 8), PatchwiseACmix(8, 2, 8), SpatialReductionACmix(8, 2), WindowACmix(8, 2)],
    ids=lambda layer: type(layer).__name__,
)


@LAYERS
def test_is_one_call(layer):
    graph = fx.symbolic_trace(nn.Sequential(nn.Identity(), layer)).graph
    called = [node.target for node in graph.nodes if node.op.startswith('call')]
    assert called == ['0', '1']


@LAYERS
def test_alone_is_refused(layer):
    name = type(layer).__name__
    with pytest.raises(fx.proxy.TraceError, match=rf'{name} .* nn.Sequential\(layer\)'):
        fx.symbolic_trace(layer)


def test_of_another_module_is_refused():
    """As every layer that torch keeps as one call."""
    layer = ACmix(8, 8)
    with pytest.raises(NameError, match='not installed as a submodule'):
        fx.symbolic_trace(lambda x: layer(torch.relu(x)))
