"""PVT-ACmix: a pyramid vision transformer whose attention layers are ACmix layers."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..layers import SpatialReductionACmix
from ..layers.path_mix import PathWeights
from ..registry import MODELS
from .common import check_stages, freeze
from .loading import accept_checkpoints
from .transformer import TransformerBlock


class ACmixPVTStage(BaseModule):
    """Patch embedding, position embedding and blocks.

    Args:
        in_channels: C_in.
        embed_dims: C.
        patch_size: Side of the embedded patches, in pixels of the stage's input.
        stride: Between patches, likewise.
        padding: Around the input, likewise.
        pos_shape: Height and width of the position embedding; it is interpolated to other sizes.
        drop_path_rates: One a block.
        drop_rate: Dropout probability after the position embedding and in the blocks.
        norm_cfg: Of the norms.
        attn_cfg: Other arguments of :class:`acmix_mm.layers.SpatialReductionACmix`.
        block_cfg: Other arguments of :class:`TransformerBlock`.
        init_cfg: Of :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int,
        stride: int,
        padding: int,
        pos_shape: tuple[int, int],
        drop_path_rates: Sequence[float],
        drop_rate: float,
        norm_cfg: dict,
        attn_cfg: dict,
        block_cfg: dict,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.patch_embed = PatchEmbed(
            in_channels,
            embed_dims,
            kernel_size=patch_size,
            stride=stride,
            padding=padding,
            norm_cfg=norm_cfg,
        )
        self.pos_embed = nn.Parameter(torch.empty(1, embed_dims, *pos_shape))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = ModuleList(
            TransformerBlock(
                SpatialReductionACmix(
                    embed_dims, proj_drop_rate=drop_rate, norm_cfg=norm_cfg, **attn_cfg
                ),
                embed_dims,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_cfg=norm_cfg,
                **block_cfg,
            )
            for rate in drop_path_rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride), rounded down."""
        x, size = self.patch_embed(x)
        position = F.interpolate(self.pos_embed, size, mode='bilinear', align_corners=False)
        x = self.pos_drop(x.unflatten(1, size) + position.permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)


@MODELS.register_module()
class ACmixPVT(BaseModule):
    """Pyramid vision transformer whose attention layers are ACmix layers.

    PVT-Tiny and -Small with ACmix of Pan et al., CVPR 2022, with the argument names of
    mmdet's ``PyramidVisionTransformer``. The sizes of PVT (Wang et al., ICCV 2021, Table 1) differ
    in ``num_layers`` alone: Tiny (2, 2, 2, 2), Small (3, 4, 6, 3), Medium (3, 4, 18, 3), Large
    (3, 8, 27, 3).

    Args:
        pretrain_img_size: Height and width in pixels that the position embeddings are made for;
            they are interpolated to other images.
        in_channels: Of the image.
        embed_dims: Channels of a head; stage i has ``embed_dims * num_heads[i]``.
        num_stages: Number of stages.
        num_layers: Blocks of each stage.
        num_heads: Attention heads of each stage.
        patch_sizes: Of the patch embeddings, in pixels of each stage's input.
        strides: Of the patch embeddings, likewise.
        paddings: Of the patch embeddings, likewise.
        sr_ratios: By which each stage reduces height and width of the keys.
        out_indices: Stages whose outputs are returned.
        mlp_ratios: Hidden channels of the MLPs of each stage, in units of the stage's channels.
        qkv_bias: Whether the projections to q, k and v have biases.
        drop_rate: Dropout probability after position embeddings and projections.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Of the last block; it grows linearly from 0 over the blocks.
        act_cfg: Of the MLPs.
        norm_cfg: Of all norms. The eps of mmdet's PVT; the authors' code has 1e-5 after patch
            embeddings and reductions.
        num_conv_groups: See :class:`acmix_mm.layers.SpatialReductionACmix`.
        path_weights: Likewise.
        frozen_stages: As many stages, from the first, keep their weights and stay in eval mode; -1
            or 0 freezes none.
        with_cp: Recompute blocks in the backward pass instead of keeping their activations.
        warm_start: Start at alpha = 1, beta = 0 where a plain PVT is loaded.
        init_cfg: Of :class:`mmengine.model.BaseModule`. ``dict(type='Pretrained', ...)`` takes our
            checkpoints and plain PVTs of the authors and of mmdet.

    Raises:
        ValueError: Arguments of the stages do not fit together.

    Examples:
        >>> backbone = ACmixPVT(embed_dims=8, num_layers=(1, 1, 1, 1))
        >>> [tuple(out.shape) for out in backbone(torch.rand(2, 3, 64, 80))]
        [(2, 8, 16, 20), (2, 16, 8, 10), (2, 40, 4, 5), (2, 64, 2, 2)]
    """

    def __init__(
        self,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        embed_dims: int = 64,
        num_stages: int = 4,
        num_layers: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        strides: Sequence[int] = (4, 2, 2, 2),
        paddings: Sequence[int] = (0, 0, 0, 0),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        num_conv_groups: int = 1,
        path_weights: PathWeights = 'learned',
        frozen_stages: int = -1,
        with_cp: bool = False,
        warm_start: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init_cfg())
        check_stages(
            'ACmixPVT', num_stages, out_indices, frozen_stages,
            num_layers=num_layers, num_heads=num_heads, patch_sizes=patch_sizes, strides=strides,
            paddings=paddings, sr_ratios=sr_ratios, mlp_ratios=mlp_ratios,
        )  # fmt: skip
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        rates = torch.linspace(0, drop_path_rate, sum(num_layers), device='cpu').split(num_layers)
        self.stages = ModuleList()
        for i in range(num_stages):
            reduction = prod(strides[: i + 1])
            height, width = to_2tuple(pretrain_img_size)
            attn_cfg = dict(
                num_heads=num_heads[i],
                sr_ratio=sr_ratios[i],
                qkv_bias=qkv_bias,
                attn_drop_rate=attn_drop_rate,
                num_conv_groups=num_conv_groups,
                path_weights=path_weights,
            )
            stage = ACmixPVTStage(
                in_channels,
                embed_dims * num_heads[i],
                patch_sizes[i],
                strides[i],
                paddings[i],
                pos_shape=(height // reduction, width // reduction),
                drop_path_rates=rates[i].tolist(),
                drop_rate=drop_rate,
                norm_cfg=norm_cfg,
                attn_cfg=attn_cfg,
                block_cfg=dict(mlp_ratio=mlp_ratios[i], act_cfg=act_cfg, with_cp=with_cp),
            )
            self.stages.append(stage)
            in_channels = embed_dims * num_heads[i]
        self._freeze()
        accept_checkpoints(self, 'ACmixPVT', warm_start)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the stages asked for.

        Args:
            x: ``(B, in_channels, H, W)``, with the default strides of at least 32x32 pixels.

        Returns:
            tuple[Tensor]: One ``(B, embed_dims * num_heads[i], H_i, W_i)`` for each stage i of
            ``out_indices``; with the default strides ``H_i`` is H / 4, / 8, / 16, / 32, rounded
            down after each stage.
        """
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x.contiguous())
        return tuple(outs)

    def train(self, mode: bool = True) -> 'ACmixPVT':
        """Switch to training, but for frozen stages."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        freeze(self.stages[: max(self.frozen_stages, 0)])


def _default_init_cfg() -> list[dict]:
    return [
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Kaiming', layer='Conv2d', mode='fan_out'),
        dict(type='Constant', layer='LayerNorm', val=1.0),
    ]
