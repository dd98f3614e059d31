"""The convolution path, shared by all four families."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import shift_conv
from ..ops.checks import check_odd, check_positive


class ShiftConv(nn.Module):
    """Fully connected mixing of maps, then shift and sum (Pan et al., CVPR 2022, Fig. 2c).

    M maps of G channels become ``k*k`` mixtures, one per kernel position; a grouped ``k x k``
    convolution (one group per channel of a map), which starts as the shift of mixture i by kernel
    position i and is then learned, sums them to ``out_channels``.

    The weights are plain parameters instead of ``nn.Conv2d``: initialisers that walk over all
    convolutions of a network cannot wipe out the shifts.

    Args:
        num_maps: M, e.g. 3 N for queries, keys and values of N heads.
        map_channels: G.
        out_channels: C, a multiple of G. Channel c belongs to channel ``c // (C / G)`` of the maps.
        kernel_size: k, odd.
        stride: In pixels.
        dilation: In pixels; the shifts are spread by it.
        bias: Whether the fully connected layer has a bias (Swin-ACmix).
        num_groups: Pairs of (fully connected layer, convolution) that are summed.
        backend: See :func:`acmix_mm.ops.shift_conv`.

    Attributes:
        fc_weight (nn.Parameter): ``(P, k*k, M)``, P = ``num_groups``.
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

    def __init__(
        self,
        num_maps: int,
        map_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        num_groups: int = 1,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_odd('kernel_size of the convolution path', kernel_size)
        sizes = dict(num_maps=num_maps, map_channels=map_channels, out_channels=out_channels,
                     stride=stride, dilation=dilation, num_groups=num_groups)  # fmt: skip
        for name, size in sizes.items():
            check_positive(f'{name} of the convolution path', size)
        if out_channels % map_channels:
            raise ValueError(
                f'out_channels of the convolution path must be a multiple of the {map_channels} '
                f'channels of a map, got {out_channels}'
            )
        self.stride = stride
        self.dilation = dilation
        self.backend = backend
        positions = kernel_size**2
        self.fc_weight = nn.Parameter(torch.empty(num_groups, positions, num_maps))
        self.register_parameter(
            'fc_bias', nn.Parameter(torch.empty(num_groups, positions)) if bias else None
        )
        # Pairs are stacked in the first dimension: `.to(memory_format=torch.channels_last)` refuses
        # parameters of five dimensions.
        self.kernel = nn.Parameter(
            torch.empty(num_groups * out_channels, positions, kernel_size, kernel_size)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at the default of a linear layer and one-hot shifts."""
        num_maps, kernel_size = self.fc_weight.shape[-1], self.kernel.shape[-1]
        bound = 1 / math.sqrt(num_maps)
        nn.init.uniform_(self.fc_weight, -bound, bound)
        if self.fc_bias is not None:
            nn.init.uniform_(self.fc_bias, -bound, bound)
        shifts = torch.eye(kernel_size**2).unflatten(1, (kernel_size, kernel_size))
        with torch.no_grad():
            self.kernel.copy_(shifts)

    def forward(self, maps: Tensor | Sequence[Tensor], weight: Tensor | float = 1.0) -> Tensor:
        """Run the convolution path.

        Args:
            maps: ``(B, M, G, H, W)``, or several tensors that hold the M maps together.
            weight: Of the path: a number, or a tensor of one element.

        Returns:
            Tensor: ``(B, C, ceil(H / stride), ceil(W / stride))``.
        """
        fc_weight: Tensor = self.fc_weight
        fc_bias: Tensor | None = self.fc_bias
        if isinstance(weight, Tensor) or weight != 1:
            fc_weight = weight * fc_weight
            fc_bias = None if fc_bias is None else weight * fc_bias
        return shift_conv(
            maps,
            fc_weight,
            fc_bias,
            self.kernel.unflatten(0, (len(self.fc_weight), -1)),
            self.stride,
            self.dilation,
            self.backend,
        )

    def extra_repr(self) -> str:
        """Sizes, as ``print(module)`` shows them."""
        groups, _, num_maps = self.fc_weight.shape
        return (
            f'num_maps={num_maps}, out_channels={len(self.kernel) // groups}, '
            f'kernel_size={self.kernel.shape[-1]}, stride={self.stride}, '
            f'dilation={self.dilation}, bias={self.fc_bias is not None}, num_groups={groups}'
        )
