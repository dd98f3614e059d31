"""The ACmix layer of SAN-ACmix: patch-wise self-attention."""

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops import neighborhood_aggregation
from ..ops.checks import check_odd, check_positive
from ..ops.padding import reflect_pad2d
from .path_mix import PathMix, PathWeights
from .shift_conv import ShiftConv


class PatchwiseACmix(BaseModule):
    """Patch-wise self-attention and convolution on one set of projections.

    The attention is that of Zhao et al., "Exploring Self-attention for Image Recognition", CVPR
    2020, Sec. 3.2 and 4.1: the weights of a window come from an MLP that sees the query and all
    keys of the window at once, without a softmax, and weigh the values. The convolution path of
    ACmix (Pan et al., CVPR 2022, Fig. 2c) sees queries, keys and values as maps of R channels.

    No code of SAN-ACmix was released. Like the released layer of the other convolutional network,
    ResNet-ACmix, this one has a fully connected layer without bias and orders the channels of the
    convolution path by group: its channel c is of channel ``c // (C_out / R)`` of the maps.

    Args:
        in_channels: C_in.
        rel_channels: R, of queries and of keys.
        out_channels: C_out, of values; a multiple of ``rel_channels`` and ``share_channels``.
        kernel_att: Side K of the attention window in pixels, odd.
        share_channels: As many channels of the values share their weights: those with the same
            ``c % G``, where ``G = C_out / share_channels``.
        kernel_conv: Side of the convolution kernel in pixels, odd.
        norm_cfg: Of the norms in the MLP.
        num_conv_groups: Pairs of fully connected layer and convolution that are summed.
        path_weights: See :class:`PathMix`.
        init_cfg: Of :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: ``out_channels`` is no multiple of both, a kernel side is even, a size is not
            positive, or ``path_weights`` is unknown.

    Examples:
        >>> layer = PatchwiseACmix(64, rel_channels=4, out_channels=16, kernel_att=3)
        >>> layer(torch.randn(2, 64, 9, 13)).shape
        torch.Size([2, 16, 9, 13])
    """

    def __init__(
        self,
        in_channels: int,
        rel_channels: int,
        out_channels: int,
        kernel_att: int = 7,
        share_channels: int = 8,
        kernel_conv: int = 3,
        norm_cfg: dict = dict(type='BN'),
        num_conv_groups: int = 1,
        path_weights: PathWeights = 'learned',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_odd('kernel_att', kernel_att)
        sizes = dict(in_channels=in_channels, rel_channels=rel_channels, out_channels=out_channels,
                     share_channels=share_channels)  # fmt: skip
        for name, size in sizes.items():
            check_positive(name, size)
        if out_channels % rel_channels or out_channels % share_channels:
            raise ValueError(
                f'out_channels must be a multiple of rel_channels={rel_channels} and of '
                f'share_channels={share_channels}, got {out_channels}'
            )
        self.rel_channels = rel_channels
        self.kernel_att = kernel_att

        self.qkv = nn.Conv2d(in_channels, 2 * rel_channels + out_channels, 1)
        self.mix = PathMix(path_weights)
        if self.mix.uses_attention:
            channels = rel_channels * (1 + kernel_att**2)
            groups = out_channels // share_channels
            self.mlp = nn.Sequential(
                build_norm_layer(norm_cfg, channels)[1],
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, groups, 1, bias=False),
                build_norm_layer(norm_cfg, groups)[1],
                nn.ReLU(inplace=True),
                nn.Conv2d(groups, groups * kernel_att**2, 1),
            )
        if self.mix.uses_convolution:
            self.shift_conv = ShiftConv(
                2 + out_channels // rel_channels,
                rel_channels,
                out_channels,
                kernel_conv,
                num_groups=num_conv_groups,
            )

    def forward(self, x: Tensor) -> Tensor:
        """Mix both paths.

        Args:
            x: ``(B, C_in, H, W)``, H and W of any size.

        Returns:
            Tensor: ``(B, C_out, H, W)``.
        """
        qkv = self.qkv(x)
        maps = qkv.unflatten(1, (-1, self.rel_channels))  # one of q, one of k, the others of v
        return self.mix(lambda: self._attend(qkv), lambda weight: self.shift_conv(maps, weight))

    def _attend(self, qkv: Tensor) -> Tensor:
        rel, size = self.rel_channels, self.kernel_att
        q, k, v = qkv.tensor_split((rel, 2 * rel), 1)
        windows = F.unfold(reflect_pad2d(k, size // 2), size).unflatten(2, k.shape[2:])
        weights = self.mlp(torch.cat([q, windows], 1)).unflatten(1, (-1, size**2))
        return neighborhood_aggregation(weights, v, size)
