# SPDX-License-Identifier: Apache-2.0
"""The convolution path, shared by all four families."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import Projection, shift_conv
from ..ops.checks import check_odd, check_positive
from .projection import is_known_by_weights


class ShiftConv(nn.Module):
    """Fully connected mixing of maps, then shift and sum (Pan et al., CVPR 2022, Fig. 2c).

    M maps of G channels become ``k*k`` mixtures, one per kernel position; a grouped ``k x k``
    convolution (one group per channel of a map), which starts as the shift of mixture i by kernel
    position i and is then learned, sums them to ``out_channels``.

    The weights are plain parameters instead of ``nn.Conv2d``: initialisers that walk over all
    convolutions of a network cannot wipe out the shifts.

    Args:
        num_maps: Number M of input maps, such as 3 N for queries, keys and values of N heads.
        map_channels: Number G of channels of each map.
        out_channels: Number C of output channels, a multiple of G. Channel c belongs to channel
            ``c // (C / G)`` of the maps.
        kernel_size: Side k of the convolution kernel in pixels, odd. Default: 3.
        stride: Stride of the convolution in pixels. Default: 1.
        dilation: Dilation of the convolution in pixels, which also spreads the shifts. Default: 1.
        bias: Whether the fully connected layer has a bias, as in Swin-ACmix. Default: False.
        num_conv_pairs: Number P of pairs of (fully connected layer, convolution) that are summed.
            Default: 1.

    Attributes:
        fc_weight (nn.Parameter): ``(P, k*k, M)``, P = ``num_conv_pairs``.
        fc_bias (nn.Parameter | None): ``(P, k*k)``.
        kernel (nn.Parameter): ``(P * C, k*k, k, k)``, pair by pair.

    Raises:
        ValueError: ``out_channels`` is no multiple of ``map_channels``, ``kernel_size`` is even, or
            a size is not positive.

    Examples:
        >>> conv = ShiftConv(num_maps=12, map_channels=16, out_channels=64)
        >>> conv(torch.randn(2, 12, 16, 9, 5)).shape
        torch.Size([2, 64, 9, 5])
    """

    fc_bias: nn.Parameter | None
    #: Parameters that :class:`acmix_mm.optim.ACmixOptimWrapperConstructor` does not decay.
    no_weight_decay = ('fc_bias',)

    def __init__(
        self,
        num_maps: int,
        map_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        num_conv_pairs: int = 1,
    ) -> None:
        super().__init__()
        check_odd(of='ShiftConv', kernel_size=kernel_size)
        check_positive(
            of='ShiftConv', num_maps=num_maps, map_channels=map_channels,
            out_channels=out_channels, stride=stride, dilation=dilation,
            num_conv_pairs=num_conv_pairs,
        )  # fmt: skip
        if out_channels % map_channels:
            raise ValueError(
                f'ShiftConv: out_channels must be a multiple of map_channels={map_channels}, '
                f'got {out_channels}'
            )
        self.stride = stride
        self.dilation = dilation
        positions = kernel_size**2
        self.fc_weight = nn.Parameter(torch.empty(num_conv_pairs, positions, num_maps))
        self.register_parameter(
            'fc_bias', nn.Parameter(torch.empty(num_conv_pairs, positions)) if bias else None
        )
        # Pairs are stacked in the first dimension: `.to(memory_format=torch.channels_last)` refuses
        # parameters of five dimensions.
        self.kernel = nn.Parameter(
            torch.empty(num_conv_pairs * out_channels, positions, kernel_size, kernel_size)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the fully connected layer as ``nn.Linear``, the kernels as one-hot shifts."""
        bound = 1 / math.sqrt(self.fc_weight.shape[-1])
        nn.init.uniform_(self.fc_weight, -bound, bound)
        if self.fc_bias is not None:
            nn.init.uniform_(self.fc_bias, -bound, bound)
        with torch.no_grad():
            # Not a copy of torch.eye: the kernel may be a DTensor, which takes no plain tensors.
            ones = torch.ones_like(self.kernel, dtype=torch.float32)
            position = ones.cumsum(1)
            pixel = ones.flatten(2).cumsum(2).view_as(ones)
            self.kernel.copy_(position == pixel)

    def forward(
        self,
        maps: Tensor | Sequence[Tensor],
        weight: Tensor | float = 1.0,
        x: Tensor | None = None,
        projection: nn.Module | None = None,
    ) -> Tensor:
        """Run the convolution path.

        Args:
            maps: ``(B, M, G, H, W)``, or several tensors that hold the M maps together.
            weight: Weight of the path, a number or a tensor of one element. Default: 1.
            x: Input of the 1x1 projection that makes the maps, ``(B, C_in, H, W)``. Default: None.
            projection: That projection, an ``nn.Linear`` or ``nn.Conv2d``. If x and projection are
                given, the path may be computed from x, and maps may hold the first ones of the M
                maps alone, unless the projection is not :func:`known by its weights
                <acmix_mm.layers.projection.is_known_by_weights>`. Default: None.

        Returns:
            Tensor: ``(B, C, ceil(H / stride), ceil(W / stride))``.
        """
        source = None
        if x is not None and projection is not None and is_known_by_weights(projection):
            source = Projection(x, projection.weight.flatten(1), projection.bias)
        return shift_conv(
            maps, *self.weighed(weight), self.stride, self.dilation, projection=source
        )

    def weighed(self, weight: Tensor | float) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the parameters of :func:`acmix_mm.ops.shift_conv`, times a weight of the path."""
        fc_weight: Tensor = self.fc_weight
        fc_bias: Tensor | None = self.fc_bias
        if isinstance(weight, Tensor) or weight != 1:
            fc_weight = weight * fc_weight
            fc_bias = None if fc_bias is None else weight * fc_bias
        return fc_weight, fc_bias, self.kernel.unflatten(0, (len(fc_weight), -1))

    def extra_repr(self) -> str:
        """Return the sizes as ``print(module)`` shows them."""
        pairs, _, num_maps = self.fc_weight.shape
        return (
            f'num_maps={num_maps}, out_channels={len(self.kernel) // pairs}, '
            f'kernel_size={self.kernel.shape[-1]}, stride={self.stride}, '
            f'dilation={self.dilation}, bias={self.fc_bias is not None}, num_conv_pairs={pairs}'
        )
