"""The sliding-window ACmix layer of ResNet-ACmix."""

from collections.abc import MutableMapping
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..checkpoints.released import SLIDING_WINDOW, accept_released_names
from ..ops import neighborhood_attention, pointwise_conv
from ..ops.checks import check_odd, check_positive
from ..registry import MODELS
from .path_mix import PathMix, PathWeights
from .shift_conv import ShiftConv
from .size_cache import cached_per_size


class ACmix(BaseModule):
    """Sliding-window attention and convolution on one set of projections.

    ``alpha * attention + beta * shift_conv`` with both paths fed by the same 1x1 projections to
    queries, keys and values (Pan et al., "On the Integration of Self-Attention and Convolution",
    CVPR 2022, Fig. 2c). It stands where a ``k x k`` convolution stood, computes what the released
    ResNet layer computes, and loads its checkpoints.

    Args:
        in_channels: C_in.
        out_channels: C_out, a multiple of ``num_heads``. In the attention path channel c is of head
            ``c // (C_out / N)``; in the convolution path, of head ``c % N``, as released.
        kernel_att: Side of the attention window in pixels, odd.
        num_heads: N.
        kernel_conv: Side of the convolution kernel in pixels, odd.
        stride: In pixels.
        dilation: In pixels; spreads the attention window and the shifts.
        num_conv_groups: Pairs of fully connected layer and convolution that are summed. 1 is the
            released code; 2 gives the published parameter counts.
        path_weights: ``'learned'`` (default), ``'complementary'`` or a fixed pair such as
            ``(1, 0)``, see :class:`PathMix`.
        backend: Of :func:`acmix_mm.ops.neighborhood_attention`; None takes the best.
        init_cfg: Of :class:`mmengine.model.BaseModule`; applied after the layer's own start.

    Raises:
        ValueError: ``out_channels`` is no multiple of ``num_heads``, a kernel side is even, a size
            is not positive, or ``path_weights`` is unknown.

    Examples:
        >>> layer = ACmix(64, 128, stride=2)
        >>> layer(torch.randn(2, 64, 15, 20)).shape
        torch.Size([2, 128, 8, 10])
    """

    # What mmcv's ConvModule reads from the convolution that it builds.
    groups = 1
    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_att: int = 7,
        num_heads: int = 4,
        kernel_conv: int = 3,
        stride: int = 1,
        dilation: int = 1,
        num_conv_groups: int = 1,
        path_weights: PathWeights = 'learned',
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_odd('kernel_att', kernel_att)
        check_odd('kernel_conv', kernel_conv)
        sizes = dict(in_channels=in_channels, out_channels=out_channels, num_heads=num_heads,
                     stride=stride, dilation=dilation, num_conv_groups=num_conv_groups)  # fmt: skip
        for name, size in sizes.items():
            check_positive(name, size)
        if out_channels % num_heads:
            raise ValueError(
                f'out_channels must be a multiple of num_heads={num_heads}, got {out_channels}'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_att = kernel_att
        self.num_heads = num_heads
        self.head_channels = out_channels // num_heads
        self.kernel_size = (kernel_conv, kernel_conv)
        self.stride = (stride, stride)
        self.dilation = (dilation, dilation)
        self.padding = (dilation * (kernel_conv // 2),) * 2
        self.backend = backend

        self.qkv = PointwiseConv(in_channels, 3 * out_channels, parts=3)
        self.mix = PathMix(path_weights)
        if self.mix.uses_attention:
            self.position = PointwiseConv(2, self.head_channels)
        if self.mix.uses_convolution:
            self.shift_conv = ShiftConv(
                3 * num_heads,
                self.head_channels,
                out_channels,
                kernel_conv,
                stride,
                dilation,
                num_groups=num_conv_groups,
            )
        self.register_load_state_dict_pre_hook(_accept_released_names)

    def init_weights(self) -> None:
        """Start as the released layer does, whatever a backbone's initialiser did before."""
        if not self.is_init:
            for module in self.children():
                module.reset_parameters()
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Mix both paths.

        Args:
            x: ``(B, C_in, H, W)``, H and W of any size.

        Returns:
            Tensor: ``(B, C_out, ceil(H / stride), ceil(W / stride))``.
        """
        q, k, v = (maps.unflatten(1, (self.num_heads, -1)) for maps in self.qkv(x))
        return self.mix(
            lambda: self._attend(q, k, v), lambda weight: self.shift_conv((q, k, v), weight)
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        if stride > 1:
            q = q[..., ::stride, ::stride]
        # The logit q_i . (k_j + p_i - p_j) holds q_i . p_i for every j alike: softmax cancels it.
        weight = self.position.weight
        (position,) = self.position(coordinates(*k.shape[-2:], weight.dtype, weight.device))
        # The small map changes its sign: k - position would do that to the full-size gradient.
        k = k + -position
        out = neighborhood_attention(
            q, k, v, self.kernel_att, stride, dilation, backend=self.backend
        )
        return out.flatten(1, 2)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution whose result comes in parts, see :func:`acmix_mm.ops.pointwise_conv`.

    Args:
        in_channels: C_in.
        out_channels: C_out, a multiple of ``parts``.
        parts: Number of results.

    Examples:
        >>> q, k, v = PointwiseConv(3, 24, parts=3)(torch.rand(2, 3, 5, 6))
        >>> q.shape
        torch.Size([2, 8, 5, 6])
    """

    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int, parts: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(B, C_in, H, W) -> ``parts`` times (B, C_out / parts, H, W)."""
        return pointwise_conv(x, self.weight.flatten(1), self.bias, self.parts)


@cached_per_size
def coordinates(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pixel coordinates from -1 to 1 over the map, x then y, the input of the position map.

    Args:
        height: H in pixels.
        width: W in pixels.
        dtype: Of the map.
        device: Where the map is made; nothing is copied from the host.

    Returns:
        Tensor: ``(1, 2, H, W)``, shared by all who ask for this size: do not write to it.

    Examples:
        >>> coordinates(1, 3, torch.float32, torch.device('cpu')).flatten(2).tolist()
        [[[-1.0, 0.0, 1.0], [-1.0, -1.0, -1.0]]]
    """
    # Not torch.linspace, for which torch.compile compiles every length anew.
    x, y = (
        2 * torch.arange(length, dtype=torch.float64, device=device) / max(length - 1, 1) - 1
        for length in (width, height)
    )
    return torch.stack(torch.meshgrid(x, y, indexing='xy')).unsqueeze(0).to(dtype)


def _accept_released_names(
    layer: ACmix, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Rename in place what a released ResNet-ACmix layer calls its parameters."""
    accept_released_names(state_dict, prefix, SLIDING_WINDOW)


@MODELS.register_module('ACmix')
def acmix_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    **acmix: Any,
) -> nn.Module:
    """ACmix with the signature of a convolution, for ``conv_cfg`` and ``dcn`` of any mm model.

    A 1x1 request gives a plain 1x1 convolution: there is no neighbourhood to mix.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: k, square and odd; the convolution path has this size.
        stride: In pixels, the same both ways.
        padding: Must keep the size, ``dilation * (k // 2)``.
        dilation: In pixels, the same both ways.
        groups: Must be 1.
        bias: Of a 1x1 convolution. ACmix has its biases in the projections, always.
        **acmix: Other arguments of :class:`ACmix`: ``kernel_att``, ``num_heads`` ...

    Returns:
        nn.Module: ``(B, C_in, H, W)`` to ``(B, C_out, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: The convolution asked for cannot be an ACmix layer.

    Examples:
        >>> from mmcv.cnn import build_conv_layer
        >>> cfg = dict(type='ACmix', num_heads=2)
        >>> type(build_conv_layer(cfg, 64, 64, 3, padding=1)).__name__
        'ACmix'
    """
    if kernel_size in (1, (1, 1)):
        return nn.Conv2d(in_channels, out_channels, 1, stride, padding, dilation, groups, bias)
    kernel_size, stride, padding, dilation = (
        _square(name, value)
        for name, value in dict(
            kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation
        ).items()
    )
    if groups != 1:
        raise ValueError(
            f'ACmix cannot be a convolution of {groups} groups: its projections mix all channels. '
            'Use conv_cfg=None for grouped (ResNeXt-like) convolutions.'
        )
    check_odd('kernel_size of ACmix', kernel_size)
    if padding != dilation * (kernel_size // 2):
        raise ValueError(
            f'ACmix keeps the size of the map: with kernel_size={kernel_size} and '
            f'dilation={dilation} the padding must be {dilation * (kernel_size // 2)}, '
            f'got {padding}'
        )
    return ACmix(
        in_channels,
        out_channels,
        kernel_conv=kernel_size,
        stride=stride,
        dilation=dilation,
        **acmix,
    )


def _square(name: str, value: int | tuple[int, int]) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise ValueError(f'{name} of ACmix must be the same both ways, got {value}')
    return value[0]
