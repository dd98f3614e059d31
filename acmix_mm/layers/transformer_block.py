# SPDX-License-Identifier: Apache-2.0
"""The block of the transformer backbones (Swin and PVT)."""

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from torch import Tensor, nn

from .recompute import recompute
from .types import Config, OptMultiConfig


class DepthwiseConv(nn.Conv2d):
    """3x3 depthwise convolution of maps whose channels are last.

    PVTv2 has it between the first layer of its MLPs and their activation (Wang et al., "PVT v2:
    Improved Baselines with Pyramid Vision Transformer", CVMJ 2022).

    Args:
        channels: Number C of channels.

    Examples:
        >>> import torch
        >>> DepthwiseConv(8)(torch.rand(2, 5, 6, 8)).shape
        torch.Size([2, 5, 6, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class TransformerBlock(BaseModule):
    """Norm and ACmix, norm and MLP, each with a shortcut.

    Args:
        attn: ACmix layer that maps ``(B, H, W, C)`` to ``(B, H, W, C)``.
        embed_dims: Number C of channels.
        mlp_ratio: Ratio of the MLP's hidden channels to C.
        use_conv_ffn: Whether the MLP has a :class:`DepthwiseConv` after its first layer, as in
            PVTv2. Default: False.
        drop_rate: Dropout probability in the MLP. Default: 0.
        drop_path_rate: Probability of dropping a residual branch for an image. Default: 0.
        act_cfg: Config of the MLP's activation. Default: ``dict(type='GELU')``.
        norm_cfg: Config of the norms. Default: ``dict(type='LN')``.
        with_cp: Whether to recompute the block's activations in the backward pass instead of
            keeping them. Default: False.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.
    """

    #: FSDP shards the block as one unit, see :func:`acmix_mm.runtime.wrap_blocks`.
    fsdp_unit = True

    def __init__(
        self,
        attn: nn.Module,
        embed_dims: int,
        mlp_ratio: float,
        use_conv_ffn: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_cfg: Config = dict(type='GELU'),
        norm_cfg: Config = dict(type='LN'),
        with_cp: bool = False,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = attn
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        hidden = int(mlp_ratio * embed_dims)
        self.ffn = FFN(
            embed_dims,
            hidden,
            act_cfg=act_cfg,
            ffn_drop=drop_rate,
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
        )
        if use_conv_ffn:
            self.ffn.layers[0].insert(1, DepthwiseConv(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return self.ffn(self.norm2(x), identity=x)
