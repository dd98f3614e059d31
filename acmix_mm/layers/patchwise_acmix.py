# SPDX-License-Identifier: Apache-2.0
"""The ACmix layer of SAN-ACmix: patch-wise self-attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import neighborhood_aggregation
from ..ops.backends import portable
from ..ops.checks import check_odd, check_positive
from ..ops.open_sizes import is_exporting
from ..ops.padding import reflect_pad2d
from .base_module import BaseModule
from .fx import leaf_of_fx
from .norm import build_norm
from .path_mix import PathMix
from .renamed import renamed_arguments
from .shift_conv import ShiftConv
from .types import Config, OptMultiConfig, PathWeights


@renamed_arguments(num_conv_groups='num_conv_pairs')
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
        in_channels: Number C_in of input channels.
        rel_channels: Number R of channels of the queries and of the keys.
        out_channels: Number C_out of output channels and of channels of the values, a multiple of
            ``rel_channels`` and of ``share_channels``.
        kernel_att: Side K of the attention window in pixels, odd. Default: 7.
        share_channels: Number of channels of the values that share their weights: those with the
            same ``c % G``, where ``G = C_out / share_channels``. Default: 8.
        kernel_conv: Side of the convolution kernel in pixels, odd. Default: 3.
        norm_cfg: Config of the norms in the MLP. Default: ``dict(type='BN')``.
        num_conv_pairs: Number of pairs of fully connected layer and convolution that are summed.
            Default: 1.
        path_weights: ``'learned'`` (default), ``'complementary'`` or a fixed pair such as
            ``(1, 0)``, see :class:`PathMix`.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.

    Raises:
        ValueError: ``out_channels`` is not a multiple of both, a kernel side is even, a size is not
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
        norm_cfg: Config = dict(type='BN'),
        num_conv_pairs: int = 1,
        path_weights: PathWeights = 'learned',
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        check_odd(of='PatchwiseACmix', kernel_att=kernel_att, kernel_conv=kernel_conv)
        check_positive(
            of='PatchwiseACmix', in_channels=in_channels, rel_channels=rel_channels,
            out_channels=out_channels, share_channels=share_channels,
        )  # fmt: skip
        if out_channels % rel_channels or out_channels % share_channels:
            raise ValueError(
                f'PatchwiseACmix: out_channels must be a multiple of rel_channels={rel_channels} '
                f'and of share_channels={share_channels}, got {out_channels}'
            )
        self.rel_channels = rel_channels
        self.kernel_att = kernel_att

        self.qkv = nn.Conv2d(in_channels, 2 * rel_channels + out_channels, 1)
        self.mix = PathMix(path_weights)
        if self.mix.uses_attention:
            channels = rel_channels * (1 + kernel_att**2)
            groups = out_channels // share_channels
            self.mlp = nn.Sequential(
                build_norm(norm_cfg, channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, groups, 1, bias=False),
                build_norm(norm_cfg, groups),
                nn.ReLU(inplace=True),
                nn.Conv2d(groups, groups * kernel_att**2, 1),
            )
        if self.mix.uses_convolution:
            self.shift_conv = ShiftConv(
                2 + out_channels // rel_channels,
                rel_channels,
                out_channels,
                kernel_conv,
                num_conv_pairs=num_conv_pairs,
            )

    @leaf_of_fx
    def forward(self, x: Tensor) -> Tensor:
        """Mix both paths.

        Args:
            x: ``(B, C_in, H, W)``, H and W of any size.

        Returns:
            Tensor: ``(B, C_out, H, W)``, contiguous whatever the memory format of x is.
        """
        qkv = self.qkv(x)
        maps = qkv.unflatten(1, (-1, self.rel_channels))  # one of q, one of k, the others of v
        convolution = attention = None
        if self.mix.uses_convolution:
            beta = self.mix.convolution_weight()
            convolution = self.shift_conv(maps, beta, x, self.qkv)
        if self.mix.uses_attention:
            attention = self._attend(qkv)
        return self.mix(convolution, attention)

    def _attend(self, qkv: Tensor) -> Tensor:
        rel, size = self.rel_channels, self.kernel_att
        q, k, v = qkv.tensor_split((rel, 2 * rel), 1)
        if is_exporting():
            windows = portable.windows(k, size)
        else:
            windows = F.unfold(reflect_pad2d(k, size // 2), size).unflatten(2, k.shape[2:])
        weights = self.mlp(torch.cat([q, windows], 1)).unflatten(1, (-1, size**2))
        return neighborhood_aggregation(weights, v, size)
