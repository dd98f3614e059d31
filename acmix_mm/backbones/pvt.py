# SPDX-License-Identifier: Apache-2.0
"""PVT-ACmix: a pyramid vision transformer whose attention layers are ACmix layers."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from ..layers import SpatialReductionACmix
from ..layers.renamed import renamed_arguments
from ..layers.transformer_block import TransformerBlock
from ..layers.types import Config, OptConfig, OptMultiConfig
from ..registry import MODELS
from .common import (
    check_numbers,
    check_stages,
    freeze,
    height_and_width,
    layer_depth,
    layer_options,
    resolve_arch,
    resolve_pretrained,
)
from .loading import register_checkpoint_conversion


class ACmixPVTStage(BaseModule):
    """Patch embedding, position embedding, blocks and norm.

    Args:
        in_channels: Number C_in of input channels.
        embed_dims: Number C of channels of the stage.
        patch_size: Side of the embedded patches in pixels of the stage's input.
        stride: Stride of the patches in pixels of the stage's input.
        padding: Padding of the stage's input in pixels.
        pos_shape: Height and width of the position embedding, which is interpolated to other sizes;
            None for no position embedding.
        norm_after_stage: Whether a norm follows the blocks.
        drop_path_rates: Drop probability of each block's residual branches.
        drop_rate: Dropout probability after the position embedding and in the blocks.
        norm_cfg: Config of the norms.
        attn_cfg: Other arguments of :class:`acmix_mm.layers.SpatialReductionACmix`.
        block_cfg: Other arguments of :class:`acmix_mm.layers.transformer_block.TransformerBlock`.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.
    """

    #: Parameters that :class:`acmix_mm.optim.ACmixOptimWrapperConstructor` does not decay.
    no_weight_decay = ('pos_embed',)

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int,
        stride: int,
        padding: int,
        pos_shape: tuple[int, int] | None,
        norm_after_stage: bool,
        drop_path_rates: Sequence[float],
        drop_rate: float,
        norm_cfg: Config,
        attn_cfg: Config,
        block_cfg: Config,
        init_cfg: OptMultiConfig = None,
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
        if pos_shape is None:
            self.register_parameter('pos_embed', None)
        else:
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
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1] if norm_after_stage else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride), rounded down if not padded."""
        x, size = self.patch_embed(x)
        x = x.unflatten(1, size)
        if self.pos_embed is not None:
            position = F.interpolate(self.pos_embed, size, mode='bilinear', align_corners=False)
            x = self.pos_drop(x + position.permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x).permute(0, 3, 1, 2)


@MODELS.register_module()
@renamed_arguments(
    num_conv_groups='acmix_cfg=dict(num_conv_pairs=...)',
    path_weights='acmix_cfg=dict(path_weights=...)',
)
class ACmixPVT(BaseModule):
    """Pyramid vision transformer whose attention layers are ACmix layers.

    PVT-Tiny and -Small with ACmix of Pan et al., CVPR 2022, with the arguments of mmdet's
    ``PyramidVisionTransformer``. The sizes of PVT (Wang et al., ICCV 2021, Table 1) differ
    in ``num_layers`` alone: (2, 2, 2, 2) for ``'tiny'``, (3, 4, 6, 3) for ``'small'``, (3, 4, 18,
    3) for ``'medium'`` and (3, 8, 27, 3) for ``'large'``.

    mmdet's ``PyramidVisionTransformerV2`` sets ``patch_sizes=(7, 3, 3, 3)``, ``paddings=(3, 1, 1,
    1)``, ``use_abs_pos_embed=False``, ``norm_after_stage=True`` and ``use_conv_ffn=True``; PVTv2's
    linear attention (B2-Li), which pools keys and values to a fixed size, is not offered.

    Args:
        pretrain_img_size: Side, or height and width, in pixels of the images for which the position
            embeddings are made; they are interpolated to other image sizes. Default: 224.
        in_channels: Number of image channels. Default: 3.
        embed_dims: Number of channels of a head; stage i has ``embed_dims * num_heads[i]``
            channels. Default: 64.
        num_stages: Number of stages. Default: 4.
        num_layers: Number of blocks of each stage. Default: those of ``arch``.
        num_heads: Number of attention heads of each stage. Default: (1, 2, 5, 8).
        patch_sizes: Side of each stage's patches in pixels of its input. Default: (4, 2, 2, 2).
        strides: Stride of each stage's patches in pixels of its input. Default: (4, 2, 2, 2).
        paddings: Padding of each stage's input in pixels. Default: (0, 0, 0, 0).
        sr_ratios: Factor by which each stage reduces height and width of the keys and values.
            Default: (8, 4, 2, 1).
        out_indices: Indices of the stages whose outputs are returned. Default: (0, 1, 2, 3).
        mlp_ratios: Ratio of the MLPs' hidden channels to the channels of each stage. Default:
            (8, 8, 4, 4).
        qkv_bias: Whether the projections to queries, keys and values have biases. Default: True.
        drop_rate: Dropout probability after position embeddings and projections. Default: 0.
        attn_drop_rate: Dropout probability of the attention weights. Default: 0.
        drop_path_rate: Drop probability of the last block; it grows linearly from 0 over the
            blocks. Default: 0.1.
        use_abs_pos_embed: Whether each stage adds a position embedding. Default: True.
        norm_after_stage: Whether a norm follows each stage. Default: False.
        use_conv_ffn: Whether the MLPs have a 3x3 depthwise convolution, as in PVTv2. Default:
            False.
        act_cfg: Config of the MLPs' activation. Default: ``dict(type='GELU')``.
        norm_cfg: Config of the norms. The default, ``dict(type='LN', eps=1e-6)``, has the eps of
            mmdet's PVT; the authors' code has 1e-5 after patch embeddings and reductions.
        pretrained: Path of a checkpoint, short for
            ``init_cfg=dict(type='Pretrained', checkpoint=...)``. mmseg's segmentors pass their own
            ``pretrained`` on to it. Default: None.
        convert_weights: Has no effect; it is accepted for configs of mmdet's PVT. The format of a
            checkpoint is recognized in any case. Default: True.
        frozen_stages: Number of stages, from the first, that keep their weights and stay in eval
            mode; -1 (default) or 0 freezes none.
        with_cp: Whether to recompute the activations of blocks in the backward pass instead of
            keeping them. Default: False.
        arch: ``'tiny'``, ``'small'``, ``'medium'`` or ``'large'``, or a dict with the key
            ``num_layers``; None (default) takes ``num_layers``, or the layers of ``'small'`` if
            they are not given, as mmdet's PVT.
        acmix_cfg: Arguments of all :class:`acmix_mm.layers.SpatialReductionACmix` layers, such as
            ``dict(num_conv_pairs=2)`` or ``dict(path_weights=(1, 0))``. Default: None.
        warm_start: Whether loading a plain PVT sets alpha = 1 and beta = 0. Default: True.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`.
            ``dict(type='Pretrained', ...)`` takes our checkpoints and plain PVTs and PVTv2s of the
            authors and of mmdet. Default: None.

    Raises:
        TypeError: ``pretrained`` is no path.
        ValueError: Arguments of the stages do not fit together, ``pretrain_img_size`` is not one or
            two positive numbers, or ``pretrained`` and ``init_cfg`` are both given.

    Examples:
        >>> backbone = ACmixPVT(embed_dims=8, num_layers=(1, 1, 1, 1))
        >>> [tuple(out.shape) for out in backbone(torch.rand(2, 3, 64, 80))]
        [(2, 8, 16, 20), (2, 16, 8, 10), (2, 40, 4, 5), (2, 64, 2, 2)]
    """

    archs = {
        'small': dict(num_layers=(3, 4, 6, 3)),
        'tiny': dict(num_layers=(2, 2, 2, 2)),
        'medium': dict(num_layers=(3, 4, 18, 3)),
        'large': dict(num_layers=(3, 8, 27, 3)),
    }

    def __init__(
        self,
        pretrain_img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        embed_dims: int = 64,
        num_stages: int = 4,
        num_layers: Sequence[int] | None = None,
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
        use_abs_pos_embed: bool = True,
        norm_after_stage: bool = False,
        use_conv_ffn: bool = False,
        act_cfg: Config = dict(type='GELU'),
        norm_cfg: Config = dict(type='LN', eps=1e-6),
        pretrained: str | None = None,
        convert_weights: bool = True,
        frozen_stages: int = -1,
        with_cp: bool = False,
        arch: str | Config | None = None,
        acmix_cfg: OptConfig = None,
        warm_start: bool = True,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        init_cfg = resolve_pretrained('ACmixPVT', pretrained, init_cfg)
        super().__init__(init_cfg or _default_init_cfg())
        num_layers = resolve_arch('ACmixPVT', arch, self.archs, num_layers=num_layers)['num_layers']
        check_numbers('ACmixPVT', drop_path_rate, in_channels=in_channels, embed_dims=embed_dims)
        check_stages(
            'ACmixPVT', num_stages, out_indices, frozen_stages,
            num_layers=num_layers, num_heads=num_heads, patch_sizes=patch_sizes, strides=strides,
            paddings=paddings, sr_ratios=sr_ratios, mlp_ratios=mlp_ratios,
        )  # fmt: skip
        self.embed_dims = embed_dims
        self.num_stages = num_stages
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.patch_sizes = patch_sizes
        self.strides = strides
        self.sr_ratios = sr_ratios
        #: Number of channels of each stage's output.
        self.num_features = [embed_dims * heads for heads in num_heads]
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        height, width = height_and_width('ACmixPVT', 'pretrain_img_size', pretrain_img_size)
        rates = torch.linspace(0, drop_path_rate, sum(num_layers), device='cpu').split(num_layers)
        self.stages = ModuleList()
        for i in range(num_stages):
            reduction = prod(strides[: i + 1])
            attn_cfg = layer_options(
                'ACmixPVT',
                acmix_cfg,
                num_heads=num_heads[i],
                sr_ratio=sr_ratios[i],
                qkv_bias=qkv_bias,
                attn_drop_rate=attn_drop_rate,
            )
            stage = ACmixPVTStage(
                in_channels,
                self.num_features[i],
                patch_sizes[i],
                strides[i],
                paddings[i],
                (height // reduction, width // reduction) if use_abs_pos_embed else None,
                norm_after_stage,
                drop_path_rates=rates[i].tolist(),
                drop_rate=drop_rate,
                norm_cfg=norm_cfg,
                attn_cfg=attn_cfg,
                block_cfg=dict(
                    mlp_ratio=mlp_ratios[i],
                    use_conv_ffn=use_conv_ffn,
                    act_cfg=act_cfg,
                    with_cp=with_cp,
                ),
            )
            self.stages.append(stage)
            in_channels = self.num_features[i]
        self._freeze()
        register_checkpoint_conversion(self, 'ACmixPVT', warm_start)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the requested stages.

        Args:
            x: ``(B, in_channels, H, W)``, with the default strides of at least 32x32 pixels.

        Returns:
            tuple[Tensor]: One ``(B, num_features[i], H_i, W_i)`` for each stage i of
            ``out_indices``; with the default strides ``H_i`` is H / 4, / 8, / 16, / 32, rounded
            down after each stage, or up with PVTv2's patches and paddings.
        """
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x.contiguous())
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter, and the number of layers.

        mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` sets learning rates by it.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Name of the backbone in the model, with the trailing dot. Default: ``''``.

        Returns:
            tuple: 0 for the first embedding, 1 and above for the blocks, the last number for
            parameters outside the backbone; and the number of blocks plus 2.
        """
        return layer_depth(param_name, prefix, self.num_layers)

    def train(self, mode: bool = True) -> 'ACmixPVT':
        """Set the training mode of all but the frozen stages."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        freeze(self.stages[: max(self.frozen_stages, 0)])


def _default_init_cfg() -> list[dict]:
    return [
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Kaiming', layer='Conv2d', mode='fan_out'),
        # Kaiming's fan-out of all channels would be too large for one channel in a group.
        dict(type='Normal', layer='DepthwiseConv', std=sqrt(2 / 9)),
        dict(type='Constant', layer='LayerNorm', val=1.0),
    ]
