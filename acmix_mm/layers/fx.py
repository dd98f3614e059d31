# SPDX-License-Identifier: Apache-2.0
"""Layers that :mod:`torch.fx` does not look into."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

Forward = Callable[[Any, Tensor], Tensor]


def leaf_of_fx(forward: Forward) -> Forward:
    """Decorator for the ``forward`` of a layer that symbolic tracing keeps as one call.

    :func:`torch.fx.symbolic_trace` traces into every module that is not torch's own, and fails
    where the work depends on the size of the input, as it does in the ACmix layers. In the graph
    such a layer is a ``call_module`` like a convolution.

    Args:
        forward: Method of one tensor. It raises a :class:`torch.fx.proxy.TraceError` where its
            layer is itself what is traced: a graph cannot call the module that it belongs to.

    Examples:
        >>> import torch
        >>> from acmix_mm.layers import ACmix
        >>> graph = torch.fx.symbolic_trace(nn.Sequential(ACmix(8, 8), nn.ReLU())).graph
        >>> [node.op for node in graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """

    @wraps(forward)
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            tracer = x.tracer
            if layer is tracer.root:
                raise TraceError(
                    f'{type(layer).__name__} alone cannot be traced symbolically: its work depends '
                    'on the size of the input. Trace nn.Sequential(layer), or another module that '
                    'contains it: there the layer is one call.'
                )
            return tracer.create_proxy('call_module', tracer.path_of_module(layer), (x,), {})
        return forward(layer, x)

    return call
