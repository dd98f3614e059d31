# SPDX-License-Identifier: Apache-2.0
"""What the ACmix layers attend to, and what each of their paths contributes.

The attention of every family is linear in the values: the output of a pixel is a weighted sum of
them. So the weights are the derivatives of that output with respect to the values. They are taken
from the layer as it runs, with its windows, borders, masks and whichever operators it has chosen,
and need no second implementation of the attention.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from .acmix import ACmix
from .patchwise_acmix import PatchwiseACmix
from .path_mix import PathMix
from .spatial_reduction_acmix import SpatialReductionACmix
from .window_acmix import WindowACmix

Layer = ACmix | PatchwiseACmix | SpatialReductionACmix | WindowACmix
# Takes what a PathMix does: the output of the convolution path, times beta, and of the attention.
Choose = Callable[[Tensor | None, Tensor | None], Tensor | None]


def acmix_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the ACmix layers of a model by their names, in the order of their registration.

    Args:
        model: Any module.

    Examples:
        >>> [*acmix_layers(nn.Sequential(nn.ReLU(), ACmix(8, 8)))]
        ['1']
    """
    mixes = [name for name, module in model.named_modules() if isinstance(module, PathMix)]
    names = [name.rpartition('.')[0] for name in mixes]
    return {name: cast(Layer, model.get_submodule(name)) for name in names}


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the inputs of all ACmix layers in the forward passes inside the context.

    Args:
        model: Model with ACmix layers.

    Yields:
        dict: The last input of each layer that has run, by the name of the layer. It fills while
        the model runs.

    Examples:
        >>> model = nn.Sequential(ACmix(8, 16, stride=2), ACmix(16, 8))
        >>> with recorded_inputs(model) as inputs, torch.no_grad():
        ...     y = model(torch.rand(1, 8, 9, 12))
        >>> {name: tuple(x.shape) for name, x in inputs.items()}
        {'0': (1, 8, 9, 12), '1': (1, 16, 5, 6)}
    """
    inputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        def record(_: nn.Module, arguments: tuple[Tensor]) -> None:
            # A copy: the activation after a layer may work in place.
            inputs[name] = arguments[0].detach().clone()

        return record

    with ExitStack() as stack:
        for name, layer in acmix_layers(model).items():
            stack.callback(layer.register_forward_pre_hook(recorder(name)).remove)
        yield inputs


def attention_map(layer: Layer, x: Tensor, row: int, column: int) -> Tensor:
    """Return the weights with which the attention of a layer sums the values for one pixel.

    For every channel, the attention of the pixel, before an output projection, is the sum over the
    map of these weights times the values. Those of :class:`ACmix`, :class:`WindowACmix` and
    :class:`SpatialReductionACmix` are probabilities: they sum to 1. Those of
    :class:`PatchwiseACmix` come without a softmax: they may be negative and sum to anything.

    Args:
        layer: An ACmix layer in eval mode that uses its attention path.
        x: Its input, ``(B, C, H, W)``, or ``(B, H, W, C)`` for window and spatial-reduction layers.
        row: Row of the pixel in the output of the layer, whose height is ceil(H / stride).
        column: Column of the pixel in the output.

    Returns:
        Tensor: ``(B, N, H', W')``, for each of N heads (groups of channels that share weights, for
        :class:`PatchwiseACmix`). H' and W' are those of the values:

        * H and W for :class:`ACmix` and :class:`PatchwiseACmix`; a pixel that is read several
          times, because the border reflects it into the window, has the sum of its weights;
        * H and W rounded up to whole windows for :class:`WindowACmix`; what is beyond the image is
          the weight of the padding;
        * ``H // sr_ratio`` and ``W // sr_ratio`` for :class:`SpatialReductionACmix`.

    Raises:
        ValueError: The layer is in training mode, in which dropout and BatchNorm would act, or it
            has no attention path, or the pixel is not in its output.

    Examples:
        >>> layer = ACmix(8, 16, kernel_att=3).eval()
        >>> weights = attention_map(layer, torch.rand(1, 8, 9, 12), row=4, column=7)[0]
        >>> weights.shape
        torch.Size([4, 9, 12])
        >>> weights[0].nonzero()[[0, -1]].tolist()
        [[3, 6], [5, 8]]
        >>> torch.testing.assert_close(weights.sum((1, 2)), torch.ones(4))
    """
    if not layer.mix.uses_attention:
        raise ValueError(
            f'this {type(layer).__name__} has no attention path: its path_weights are '
            f'{layer.mix.weights}'
        )
    values = x  # until the projection has run

    def watch(_: nn.Module, __: Any, projected: Tensor | tuple[Tensor, ...]) -> Any:
        # The last call counts: that of spatial reduction projects all pixels first.
        nonlocal values
        if isinstance(projected, tuple):
            values = projected[-1].detach().requires_grad_()
            return *projected[:-1], values
        values = projected.detach().requires_grad_()
        return values

    with ExitStack() as stack, torch.enable_grad():
        stack.callback(layer.qkv.register_forward_hook(watch).remove)
        if isinstance(layer, SpatialReductionACmix | WindowACmix):
            # Leave the output projection out.
            handle = layer.proj.register_forward_hook(lambda _, inputs, __: inputs[0])
            stack.callback(handle.remove)
        out = _channels_first(layer, _run(layer, x, lambda _, attention: attention))
        height, width = out.shape[2:]
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f'row {row}, column {column} is not in the output of the layer, which is '
                f'{height}x{width} (height x width)'
            )
        # No channel depends on values of another one: each gets its own weights.
        (weights,) = torch.autograd.grad(out[:, :, row, column].sum(), values)
    weights = _channels_first(layer, weights)[:, -out.shape[1] :]
    if isinstance(layer, WindowACmix) and layer.roll_conv:  # it projects the rolled map
        shift = int(layer._shift(x.shape[1:3], x.device))
        weights = weights.roll((shift, shift), (2, 3))
    if isinstance(layer, PatchwiseACmix):
        return weights[:, : layer.mlp[2].out_channels]  # channels c and c + groups share weights
    return weights.unflatten(1, (layer.num_heads, -1))[:, :, 0]


def path_outputs(layer: Layer, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the two summands of the output of an ACmix layer, weighted by alpha and beta.

    Args:
        layer: An ACmix layer in eval mode.
        x: Its input, see :func:`attention_map`.

    Returns:
        tuple: ``alpha * attention`` and ``beta * convolution``, ``(B, C_out, H_out, W_out)`` in
        every family; None for a path that the layer does not use.

    Raises:
        ValueError: The layer is in training mode.

    Examples:
        >>> layer, x = ACmix(8, 16, stride=2).eval(), torch.rand(1, 8, 9, 12)
        >>> attention, convolution = path_outputs(layer, x)
        >>> torch.testing.assert_close(attention + convolution, layer(x))
    """
    mix = layer.mix
    with torch.no_grad():
        attention, convolution = (
            _channels_first(layer, _run(layer, x, choose)) if used else None
            for used, choose in (
                (mix.uses_attention, lambda _, attention: mix.forward(None, attention)),
                (mix.uses_convolution, lambda convolution, _: convolution),
            )
        )
    return attention, convolution


def _run(layer: Layer, x: Tensor, choose: Choose) -> Tensor:
    """Run a layer, with what is chosen of its paths in the place of their sum."""
    if layer.training:
        raise ValueError('the layer is in training mode; call its eval() first')
    handle = layer.mix.register_forward_hook(lambda _, paths, __: choose(*paths))
    try:
        return layer(x)
    finally:
        handle.remove()


def _channels_first(layer: Layer, maps: Tensor) -> Tensor:
    return maps if isinstance(layer, ACmix | PatchwiseACmix) else maps.permute(0, 3, 1, 2)
