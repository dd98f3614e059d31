# SPDX-License-Identifier: Apache-2.0
"""The window ACmix layer of Swin-ACmix."""

import warnings
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.released import PATHS, accept_released_names
from ..ops import window_attention
from ..ops.checks import check_odd, check_positive
from ..ops.open_sizes import sizes_are_open
from ..ops.size_cache import cached_per_size
from ..ops.torch_compat import register_load_state_dict_pre_hook
from .base_module import BaseModule
from .fx import leaf_of_fx
from .path_mix import PathMix
from .renamed import renamed_arguments
from .shift_conv import ShiftConv
from .types import OptMultiConfig, PathWeights

# Down and to the right, in pixels; tensors if they depend on sizes that are open.
Shifts = Sequence[int | Tensor]


@renamed_arguments(num_conv_groups='num_conv_pairs')
class WindowACmix(BaseModule):
    """(Shifted) window attention and convolution on one set of projections.

    ``alpha * proj(attention) + beta * shift_conv`` with both paths fed by the window attention's
    own linear map to queries, keys and values (Pan et al., "On the Integration of Self-Attention
    and Convolution", CVPR 2022, Fig. 2c). It computes what the released Swin-ACmix layer computes,
    whose checkpoints it loads.

    Maps of any size are zero-padded, before the projection, to whole windows.

    Args:
        embed_dims: Number C of channels, a multiple of ``num_heads``. In the attention path channel
            c belongs to head ``c // (C / N)``; in the convolution path, to head ``c % N``, as in
            the released code.
        num_heads: Number N of heads.
        window_size: Side M of the windows in pixels. Default: 7.
        shift_size: Distance in pixels by which the windows are shifted to the bottom right, less
            than M. Default: 0.
        qkv_bias: Whether the projections to queries, keys and values have biases. Default: True.
        qk_scale: Factor of the logits; ``(C / N) ** -0.5`` if None (default).
        attn_drop_rate: Dropout probability of the attention weights. Default: 0.
        proj_drop_rate: Dropout probability of the output. Default: 0.
        kernel_conv: Side of the convolution kernel in pixels, odd. Default: 3.
        num_conv_pairs: Number of pairs of fully connected layer and convolution that are summed;
            the released code has 1 (default).
        path_weights: ``'learned'`` (default), ``'complementary'`` or a fixed pair such as
            ``(1, 0)``, see :class:`PathMix`.
        roll_conv: Whether the convolution path runs on the padded map that the window shift has
            rolled, and so across the seam between opposite sides of the image, as in the released
            code (default: True), or on the map as it is.
        mask_padding: Whether padding is excluded from the attention. By default (False) pixels
            attend to it, as in mmdet's and mmseg's Swin, with which plain checkpoints for detection
            were trained.
        shift_small_maps: Whether the windows of a map are also shifted, along both axes, if its
            shorter side is no longer than one window, as in mmdet's and mmseg's Swin. Default:
            False, as in the released code and in Microsoft's and mmpretrain's Swin.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`; applied after the
            layer's own initialization. Default: None.

    Raises:
        ValueError: ``embed_dims`` is not a multiple of ``num_heads``, ``shift_size`` is not within
            the window, ``kernel_conv`` is even, a size is not positive, or ``path_weights`` is
            unknown.

    Examples:
        >>> layer = WindowACmix(96, num_heads=3, shift_size=3)
        >>> layer(torch.randn(2, 15, 20, 96)).shape
        torch.Size([2, 15, 20, 96])
    """

    #: Parameters that :class:`acmix_mm.optim.ACmixOptimWrapperConstructor` does not decay.
    no_weight_decay = ('relative_position_bias_table',)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        kernel_conv: int = 3,
        num_conv_pairs: int = 1,
        path_weights: PathWeights = 'learned',
        roll_conv: bool = True,
        mask_padding: bool = False,
        shift_small_maps: bool = False,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        check_odd(of='WindowACmix', kernel_conv=kernel_conv)
        check_positive(
            of='WindowACmix',
            embed_dims=embed_dims,
            num_heads=num_heads,
            window_size=window_size,
        )
        if embed_dims % num_heads:
            raise ValueError(
                f'WindowACmix: embed_dims must be a multiple of num_heads={num_heads}, '
                f'got {embed_dims}'
            )
        if not 0 <= shift_size < window_size:
            raise ValueError(
                f'WindowACmix: shift_size must be from 0 to window_size - 1 = {window_size - 1}, '
                f'got {shift_size}'
            )
        self.num_heads = num_heads
        self.head_channels = embed_dims // num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.scale = self.head_channels**-0.5 if qk_scale is None else qk_scale
        self.attn_drop_rate = attn_drop_rate
        self.roll_conv = roll_conv
        self.mask_padding = mask_padding
        self.shift_small_maps = shift_small_maps

        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, qkv_bias)
        self.mix = PathMix(path_weights)
        if self.mix.uses_attention:
            self.relative_position_bias_table = nn.Parameter(
                torch.empty((2 * window_size - 1) ** 2, num_heads)
            )
            self.proj = nn.Linear(embed_dims, embed_dims)
        if self.mix.uses_convolution:
            self.shift_conv = ShiftConv(
                3 * num_heads,
                self.head_channels,
                embed_dims,
                kernel_conv,
                bias=True,
                num_conv_pairs=num_conv_pairs,
            )
        self.proj_drop = nn.Dropout(proj_drop_rate)
        self._reset_attention_bias()
        register_load_state_dict_pre_hook(self, _accept_released_names)

    @leaf_of_fx
    def forward(self, x: Tensor) -> Tensor:
        """Mix both paths.

        Args:
            x: ``(B, H, W, C)``, H and W of any size.

        Returns:
            Tensor: ``(B, H, W, C)``.
        """
        height, width = size = x.shape[1:3]
        side = self.window_size
        if torch.jit.is_tracing():
            warnings.warn(
                'WindowACmix: torch.jit.trace keeps the padding, the shift and the masks of the '
                f'windows as they are for this map of {int(height)}x{int(width)}: the trace is '
                'right for images of this size only. Use torch.export for others: its program '
                'checks the size.',
                torch.jit.TracerWarning,
                stacklevel=2,
            )
        # Without negative numbers, whose quotients other programs round towards 0.
        padded = [(length + side - 1) // side * side for length in size]
        # Where sizes are open, more than is needed, which is cut off again: torch.export would make
        # a difference between padding and none.
        bottom, right = (
            (side, side) if sizes_are_open(size) else (padded[0] - height, padded[1] - width)
        )
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        shifts = (self._shift(size, x.device),) * 2
        if self.roll_conv:
            out = self._mix_paths(_roll(x, shifts, padded), size, shifts)
            out = _roll_back(out, shifts, size)
        else:
            out = self._mix_unrolled_paths(x, size, padded, shifts)
        return self.proj_drop(out)

    def _shift(self, size: Sequence[int], device: torch.device) -> int | Tensor:
        """Return by how many pixels to shift the windows of a map, a tensor if sizes are open."""
        if self.shift_small_maps or not self.shift_size:
            return self.shift_size
        if sizes_are_open(size):
            height, width = (torch.full((), length, device=device) for length in size)
            return self.shift_size * (torch.minimum(height, width) > self.window_size).long()
        # Not min(size): a compiler would ask which of the two is the smaller one.
        return self.shift_size if all(length > self.window_size for length in size) else 0

    def _mix_paths(self, x: Tensor, size: Sequence[int], shifts: Shifts) -> Tensor:
        """Mix both paths on a padded and rolled map, (B, H', W', C)."""
        qkv = self.qkv(x)
        convolution = attention = None
        if self.mix.uses_convolution:
            convolution = self._convolve(x, qkv)
        if self.mix.uses_attention:
            attention = self._attend(qkv, size, shifts)
        return self.mix(convolution, attention)

    def _mix_unrolled_paths(
        self, x: Tensor, size: Sequence[int], padded: Sequence[int], shifts: Shifts
    ) -> Tensor:
        """Mix both paths, the convolution on the unrolled map: (B, H', W', C) -> (B, H, W, C)."""
        height, width = size
        qkv = self.qkv(x)
        convolution = attention = None
        if self.mix.uses_convolution:
            convolution = self._convolve(x[:, :height, :width], qkv[:, :height, :width])
        if self.mix.uses_attention:
            attention = self._attend(_roll(qkv, shifts, padded), size, shifts)
            attention = _roll_back(attention, shifts, size)
        return self.mix(convolution, attention)

    def init_weights(self) -> None:
        """Initialize as the released layer does, whatever a backbone's initializer did before."""
        if not self.is_init:
            self._reset_attention_bias()
            for module in self.children():
                if isinstance(module, PathMix | ShiftConv):
                    module.reset_parameters()
        super().init_weights()

    def _convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """(B, H, W, C) and its projection (B, H, W, 3 C) -> (B, H, W, C)."""
        maps = qkv.unflatten(-1, (-1, self.head_channels))  # q heads, k heads, v heads
        maps, x = maps.permute(0, 3, 4, 1, 2), x.permute(0, 3, 1, 2)
        out = self.shift_conv(maps, self.mix.convolution_weight(), x, self.qkv)
        return out.permute(0, 2, 3, 1)

    def _attend(self, qkv: Tensor, size: Sequence[int], shifts: Shifts) -> Tensor:
        """Attention in the windows, and projection.

        Args:
            qkv: ``(B, H', W', 3 C)``, padded and rolled.
            size: H and W of the image within it.
            shifts: Down and to the right, in pixels.

        Returns:
            Tensor: ``(B, H', W', C)``, rolled.
        """
        bias = self._position_bias().to(qkv.dtype)
        out = window_attention(
            qkv.unflatten(-1, (3, self.num_heads, self.head_channels)),
            bias,
            self.window_size,
            self._axis_masks(size, shifts, bias),
            self.scale,
            self.attn_drop_rate if self.training else 0.0,
        )
        return self.proj(out.flatten(-2))

    def _position_bias(self) -> Tensor:
        """(N, M * M, M * M), for queries and keys."""
        table: Tensor = self.relative_position_bias_table
        bias = table[_relative_position_index(self.window_size, table.device)]
        return bias.T.unflatten(1, (self.window_size**2,) * 2)

    def _axis_masks(
        self, size: Sequence[int], shifts: Shifts, bias: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Masks over the rows and over the columns, see :func:`_axis_mask`, if any.

        Only the last windows have any: the shift mixes the last one, and padding may leave its
        pixels in the last two. They are cut out where a graph is not recorded for open sizes.
        """
        side = self.window_size
        padded = sizes_are_open(size) or any(length % side for length in size)
        if not _shifted(shifts) and not (self.mask_padding and padded):
            return None
        rows, columns = (
            _axis_mask(length, side, shift, self.mask_padding, bias.dtype, bias.device)
            for length, shift in zip(size, shifts, strict=True)
        )
        if sizes_are_open(size):
            return rows, columns
        last = 2 if self.mask_padding else 1
        return rows[-last:], columns[-last:]

    def _reset_attention_bias(self) -> None:
        if self.mix.uses_attention:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)


# Not a buffer: the weights of a layer on the meta device can be loaded or initialized, but a buffer
# that is in no checkpoint would stay without values.
@cached_per_size
def _relative_position_index(side: int, device: torch.device) -> Tensor:
    """Row of the bias table for each pair of query and key in a window: int64 (side ** 4,)."""
    steps = torch.arange(side, device=device)
    offset = steps[:, None] - steps + side - 1
    rows, columns = offset[:, None, :, None], offset[None, :, None, :]
    return (rows * (2 * side - 1) + columns).flatten()


@cached_per_size
def _axis_mask(
    length: int,
    side: int,
    shift: int | Tensor,
    mask_padding: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Mask of the pairs of pixels in a window that must not attend to each other, along one axis.

    Rolling brings the first pixels of an axis next to the last ones. Rows and columns are masked
    independently, so no mask over pairs of pixels has to be kept.

    Returns:
        Tensor: ``(windows, side, side)``, 0 where query and key may meet, else -inf.
    """
    padded = (length + side - 1) // side * side
    position = _rolled_positions(padded, padded, shift, device)
    region = (position < shift).long()
    if mask_padding:
        region += 2 * (position >= length)
    region = region.unflatten(0, (-1, side))
    apart = region.unsqueeze(2) != region.unsqueeze(1)
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, float('-inf'))


def _shifted(shifts: Shifts) -> bool:
    """Return whether windows are shifted, or may be where sizes are open."""
    return any(isinstance(shift, Tensor) or shift != 0 for shift in shifts)


def _roll(x: Tensor, shifts: Shifts, size: Sequence[int]) -> Tensor:
    """Bring the pixel at ``shifts`` of a map, cut to ``size``, to the top left: (B, H, W, C)."""
    if not sizes_are_open(size):
        down, right = map(int, shifts)
        return x.roll((-down, -right), (1, 2)) if _shifted(shifts) else x
    for axis, length, shift in zip((1, 2), size, shifts, strict=True):
        x = x.index_select(axis, _rolled_positions(length, length, shift, x.device))
    return x


def _roll_back(x: Tensor, shifts: Shifts, size: Sequence[int]) -> Tensor:
    """Undo :func:`_roll`, and cut off the padding: (B, H', W', C) -> (B, H, W, C)."""
    if not sizes_are_open(size):
        down, right = map(int, shifts)
        x = x.roll((down, right), (1, 2)) if _shifted(shifts) else x
        return x[:, : size[0], : size[1]]
    for axis, length, shift in zip((1, 2), size, shifts, strict=True):
        x = x.index_select(axis, _rolled_positions(length, x.shape[axis], -shift, x.device))
    return x


def _rolled_positions(count: int, length: int, shift: int | Tensor, device: torch.device) -> Tensor:
    """The first pixels of an axis in the order in which a roll by less than its length leaves them.

    Returns:
        Tensor: int64 of shape ``(count,)``.
    """
    position = torch.arange(count, device=device) + shift
    # Not a remainder, which torch.onnx does not translate where the length is open.
    position = torch.where(position < 0, position + length, position)
    return torch.where(position < length, position, position - length)


def _accept_released_names(
    layer: WindowACmix, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Rename, in place, parameters of a released Swin-ACmix layer to ours."""
    accept_released_names(state_dict, prefix, PATHS)
