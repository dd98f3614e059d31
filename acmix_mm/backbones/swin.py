"""Swin-ACmix: a Swin transformer whose window attention layers are ACmix layers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import PatchEmbed, PatchMerging
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..layers import WindowACmix
from ..layers.path_mix import PathWeights
from ..registry import MODELS
from .common import check_stages, freeze
from .loading import accept_checkpoints
from .transformer import TransformerBlock


class ACmixSwinStage(BaseModule):
    """Blocks whose windows are shifted in every second one, then, but for the last stage, merging.

    Args:
        embed_dims: C.
        drop_path_rates: One a block.
        drop_rate: Dropout probability after projections.
        attn_cfg: Other arguments of :class:`acmix_mm.layers.WindowACmix`.
        block_cfg: Other arguments of :class:`TransformerBlock`.
        downsample: Merges patches to 2 C channels; None in the last stage.
        init_cfg: Of :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        embed_dims: int,
        drop_path_rates: Sequence[float],
        drop_rate: float,
        attn_cfg: dict,
        block_cfg: dict,
        downsample: PatchMerging | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        shift_sizes = (0, attn_cfg['window_size'] // 2)
        self.blocks = ModuleList(
            TransformerBlock(
                WindowACmix(
                    embed_dims, shift_size=shift_sizes[i % 2], proj_drop_rate=drop_rate, **attn_cfg
                ),
                embed_dims,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                **block_cfg,
            )
            for i, rate in enumerate(drop_path_rates)
        )
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks, then merge.

        Args:
            x: ``(B, H, W, C)``.

        Returns:
            tuple: The input of the next stage, ``(B, H / stride, W / stride, 2 C)`` rounded up, and
            this stage's output ``(B, H, W, C)``. In the last stage both are the output.
        """
        for block in self.blocks:
            x = block(x)
        if self.downsample is None:
            return x, x
        merged, size = self.downsample(x.flatten(1, 2), x.shape[1:3])
        return merged.unflatten(1, size), x


@MODELS.register_module()
class ACmixSwin(BaseModule):
    """Swin transformer whose window attention layers are ACmix layers.

    Swin-Tiny and -Small with ACmix of Pan et al., CVPR 2022, with the argument names of
    mmdet's and mmseg's ``SwinTransformer``. The defaults are Swin-Tiny's; sizes of Swin (Liu et
    al., ICCV 2021, Sec. 3.3):

    ===== ========== ============= ==============
    size  embed_dims depths        num_heads
    ===== ========== ============= ==============
    Tiny  96         2, 2, 6, 2    3, 6, 12, 24
    Small 96         2, 2, 18, 2   3, 6, 12, 24
    Base  128        2, 2, 18, 2   4, 8, 16, 32
    ===== ========== ============= ==============

    Args:
        pretrain_img_size: Height and width in pixels that the absolute position embedding is made
            for; it is interpolated to other images.
        in_channels: Of the image.
        embed_dims: C of the first stage; every later stage doubles it.
        patch_size: Of the patch embedding, in pixels.
        window_size: Side of the attention windows, in pixels of each stage.
        mlp_ratio: Hidden channels of the MLPs, in units of the stage's channels.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        strides: Of the patch embedding (``patch_size``) and of each merging, in pixels of their
            inputs.
        out_indices: Stages whose outputs are returned, each with a norm of its own.
        qkv_bias: Whether the projections to q, k and v have biases.
        qk_scale: Factor of the attention logits; ``head_channels ** -0.5`` if None.
        patch_norm: Norms after the patch embedding and in the mergings.
        drop_rate: Dropout probability after the embedding and the projections.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Of the last block; it grows linearly from 0 over the blocks.
        use_abs_pos_embed: Add an absolute position embedding.
        act_cfg: Of the MLPs.
        norm_cfg: Of all norms.
        with_cp: Recompute blocks in the backward pass instead of keeping their activations.
        convert_weights: Without effect, for configs of mmdet's Swin: any format is recognised.
        frozen_stages: Embedding and stages up to this one (1 = first stage, 0 = embedding alone)
            keep their weights and stay in eval mode; -1 freezes none.
        num_conv_groups: See :class:`acmix_mm.layers.WindowACmix`.
        path_weights: Likewise.
        roll_conv: Likewise.
        mask_padding: Likewise.
        warm_start: Start at alpha = 1, beta = 0 where a plain Swin is loaded, to compute what it
            did. (mmdet's and mmseg's Swin differ on maps that one window covers, see
            :class:`acmix_mm.layers.WindowACmix`.)
        init_cfg: Of :class:`mmengine.model.BaseModule`. ``dict(type='Pretrained', ...)`` takes our
            checkpoints, released Swin-ACmix classifiers and plain Swins of Microsoft, mmdet, mmseg
            and mmpretrain.

    Raises:
        ValueError: Arguments of the stages do not fit together.

    Examples:
        >>> backbone = ACmixSwin(embed_dims=12, depths=(2, 2, 2, 2))
        >>> [tuple(out.shape) for out in backbone(torch.rand(2, 3, 64, 80))]
        [(2, 12, 16, 20), (2, 24, 8, 10), (2, 48, 4, 5), (2, 96, 2, 3)]
    """

    def __init__(
        self,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        embed_dims: int = 96,
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: float = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        strides: Sequence[int] = (4, 2, 2, 2),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_abs_pos_embed: bool = False,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
        with_cp: bool = False,
        convert_weights: bool = True,
        frozen_stages: int = -1,
        num_conv_groups: int = 1,
        path_weights: PathWeights = 'learned',
        roll_conv: bool = True,
        mask_padding: bool = False,
        warm_start: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init_cfg())
        num_stages = len(depths)
        check_stages(
            'ACmixSwin', num_stages, out_indices, frozen_stages,
            num_heads=num_heads, strides=strides,
        )  # fmt: skip
        if strides[0] != patch_size:
            raise ValueError(
                f'ACmixSwin: strides[0] must be patch_size={patch_size}, patches do not overlap; '
                f'got {strides[0]}'
            )
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages

        self.patch_embed = PatchEmbed(
            in_channels,
            embed_dims,
            kernel_size=patch_size,
            stride=patch_size,
            norm_cfg=norm_cfg if patch_norm else None,
        )
        self._pos_shape = tuple(side // patch_size for side in to_2tuple(pretrain_img_size))
        if use_abs_pos_embed:
            num_patches = self._pos_shape[0] * self._pos_shape[1]
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, num_patches, embed_dims))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        else:
            self.register_parameter('absolute_pos_embed', None)
        self.drop_after_pos = nn.Dropout(drop_rate)

        rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').split(list(depths))
        self.stages = ModuleList()
        for i in range(num_stages):
            channels = embed_dims * 2**i
            attn_cfg = dict(
                num_heads=num_heads[i],
                window_size=window_size,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop_rate=attn_drop_rate,
                num_conv_groups=num_conv_groups,
                path_weights=path_weights,
                roll_conv=roll_conv,
                mask_padding=mask_padding,
            )
            block_cfg = dict(
                mlp_ratio=mlp_ratio,
                act_cfg=act_cfg,
                norm_cfg=norm_cfg,
                with_cp=with_cp,
            )
            downsample = None
            if i + 1 < num_stages:
                downsample = PatchMerging(
                    channels,
                    2 * channels,
                    stride=strides[i + 1],
                    norm_cfg=norm_cfg if patch_norm else None,
                )
            self.stages.append(
                ACmixSwinStage(
                    channels, rates[i].tolist(), drop_rate, attn_cfg, block_cfg, downsample
                )
            )
        for i in out_indices:
            self.add_module(f'norm{i}', build_norm_layer(norm_cfg, embed_dims * 2**i)[1])
        self._freeze()
        accept_checkpoints(self, 'ACmixSwin', warm_start)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the stages asked for.

        Args:
            x: ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: One ``(B, embed_dims * 2**i, H_i, W_i)`` for each stage i of
            ``out_indices``; with the default strides ``H_i`` is H / 4, / 8, / 16, / 32, rounded up.
        """
        x, size = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self._position(size)
        x = self.drop_after_pos(x).unflatten(1, size)
        outs = []
        for i, stage in enumerate(self.stages):
            x, out = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(out)
                # mmcv's operators read their input as if it were contiguous.
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _position(self, size: tuple[int, int]) -> Tensor:
        """The absolute position embedding for a map of (H, W): (1, H * W, C)."""
        if size == self._pos_shape:
            return self.absolute_pos_embed
        grid = self.absolute_pos_embed.unflatten(1, self._pos_shape).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size, mode='bicubic', align_corners=False)
        return grid.flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> 'ACmixSwin':
        """Switch to training, but for frozen stages."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        freeze([self.patch_embed, self.drop_after_pos])
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        freeze(self.stages[: self.frozen_stages])
        freeze(getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages)


def _default_init_cfg() -> list[dict]:
    return [
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Constant', layer='LayerNorm', val=1.0),
    ]
