# SPDX-License-Identifier: Apache-2.0
"""The ACmix layer of PVT-ACmix: attention to spatially reduced keys and values."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.attention import scaled_dot_product_attention
from ..ops.checks import check_odd, check_positive
from .base_module import BaseModule
from .fx import leaf_of_fx
from .norm import build_norm
from .path_mix import PathMix
from .projection import is_known_by_weights
from .renamed import renamed_arguments
from .shift_conv import ShiftConv
from .types import Config, OptMultiConfig, PathWeights


@renamed_arguments(num_conv_groups='num_conv_pairs')
class SpatialReductionACmix(BaseModule):
    """Spatial-reduction attention and convolution on one set of projections.

    The attention is PVT's (Wang et al., "Pyramid Vision Transformer", ICCV 2021, Sec. 3.3): keys
    and values are projected from tokens that a strided convolution has reduced. The convolution
    path of ACmix (Pan et al., CVPR 2022, Fig. 2c) needs them at every pixel: the same weights
    project the full-resolution tokens too.

    No code of PVT-ACmix was released. Like the released layer of the other transformer,
    Swin-ACmix, this one gives the fully connected layer a bias and adds the convolution path after
    the output projection, which acts on the attention alone:
    ``alpha * proj(attention) + beta * shift_conv``. The weights of a plain PVT keep their meaning.

    Args:
        embed_dims: Number C of channels, a multiple of ``num_heads``.
        num_heads: Number N of heads.
        sr_ratio: Factor by which keys and values are reduced in height and in width. Default: 1.
        kernel_conv: Side of the convolution kernel in pixels, odd. Default: 3.
        qkv_bias: Whether the projections to queries, keys and values have biases. Default: True.
        attn_drop_rate: Dropout probability of the attention weights. Default: 0.
        proj_drop_rate: Dropout probability of the output. Default: 0.
        norm_cfg: Config of the norm of the reduced tokens. Default: ``dict(type='LN')``.
        num_conv_pairs: Number of pairs of fully connected layer and convolution that are summed.
            Default: 1.
        path_weights: ``'learned'`` (default), ``'complementary'`` or a fixed pair such as
            ``(1, 0)``, see :class:`PathMix`.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.

    Raises:
        ValueError: ``embed_dims`` is not a multiple of ``num_heads``, ``kernel_conv`` is even, a
            size is not positive, or ``path_weights`` is unknown.

    Examples:
        >>> import torch
        >>> layer = SpatialReductionACmix(64, num_heads=2, sr_ratio=4)
        >>> layer(torch.randn(2, 9, 13, 64)).shape
        torch.Size([2, 9, 13, 64])
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        sr_ratio: int = 1,
        kernel_conv: int = 3,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        norm_cfg: Config = dict(type='LN'),
        num_conv_pairs: int = 1,
        path_weights: PathWeights = 'learned',
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        check_odd(of='SpatialReductionACmix', kernel_conv=kernel_conv)
        check_positive(
            of='SpatialReductionACmix',
            embed_dims=embed_dims,
            num_heads=num_heads,
            sr_ratio=sr_ratio,
        )
        if embed_dims % num_heads:
            raise ValueError(
                f'SpatialReductionACmix: embed_dims must be a multiple of num_heads={num_heads}, '
                f'got {embed_dims}'
            )
        self.num_heads = num_heads
        self.head_channels = embed_dims // num_heads
        self.sr_ratio = sr_ratio
        self.attn_drop_rate = attn_drop_rate

        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.mix = PathMix(path_weights)
        if self.mix.uses_attention:
            if sr_ratio > 1:
                self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, stride=sr_ratio)
                self.norm = build_norm(norm_cfg, embed_dims)
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

    @leaf_of_fx
    def forward(self, x: Tensor) -> Tensor:
        """Mix both paths.

        Args:
            x: ``(B, H, W, C)``, H and W at least ``sr_ratio``; as in PVT, rows and columns beyond
                the last multiple of ``sr_ratio`` do not contribute to reduced keys.

        Returns:
            Tensor: ``(B, H, W, C)``.

        Raises:
            ValueError: H or W is below ``sr_ratio``.
        """
        channels = x.shape[-1]
        # Where attention needs keys and values of reduced tokens alone, it depends on the backend
        # of the convolution path whether those of all pixels are computed.
        full = self.sr_ratio == 1 or not is_known_by_weights(self.qkv)
        qkv = self.qkv(x) if full else self._project(x, slice(channels))
        convolution = attention = None
        if self.mix.uses_convolution:
            convolution = self._convolve(x, qkv)
        if self.mix.uses_attention:
            kv = qkv[..., channels:] if self.sr_ratio == 1 else self._reduced_kv(x)
            attention = self._attend(qkv[..., :channels], kv)
        return self.proj_drop(self.mix(convolution, attention))

    def _project(self, x: Tensor, rows: slice) -> Tensor:
        """Project to the part of q, k and v that ``rows`` of the weight stand for."""
        if not is_known_by_weights(self.qkv):
            # An adapter, or a quantized layer, which hides its weight.
            return self.qkv(x)[..., rows]
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        return F.linear(x, self.qkv.weight[rows], bias)

    def _reduced_kv(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H // R, W // R, 2 C)."""
        height, width, channels = x.shape[1:]
        if height < self.sr_ratio or width < self.sr_ratio:
            raise ValueError(
                f'a map of {height}x{width} tokens is too small to be reduced by '
                f'sr_ratio={self.sr_ratio}; give a larger image'
            )
        reduced = self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self._project(self.norm(reduced), slice(channels, None))

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        size = q.shape[1:3]
        q = q.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = kv.flatten(1, 2).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        out = scaled_dot_product_attention(q, k, v, dropout_p=drop_rate)
        return self.proj(out.transpose(1, 2).flatten(2)).unflatten(1, size)

    def _convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """(B, H, W, C) and its queries, or all three, (B, H, W, 3 C) -> (B, H, W, C)."""
        maps = qkv.unflatten(-1, (-1, self.head_channels))  # q heads, k heads, v heads
        maps, x = maps.permute(0, 3, 4, 1, 2), x.permute(0, 3, 1, 2)
        out = self.shift_conv(maps, self.mix.convolution_weight(), x, self.qkv)
        return out.permute(0, 2, 3, 1)
