# SPDX-License-Identifier: Apache-2.0
"""Swin-ACmix: a Swin transformer whose window attention layers are ACmix layers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import PatchEmbed, PatchMerging
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from ..layers import WindowACmix
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
    side_of_square,
)
from .loading import register_checkpoint_conversion


class ACmixSwinStage(BaseModule):
    """Blocks, every second one with shifted windows, then patch merging except in the last stage.

    Args:
        embed_dims: Number C of channels.
        drop_path_rates: Drop probability of each block's residual branches.
        drop_rate: Dropout probability after projections.
        attn_cfg: Other arguments of :class:`acmix_mm.layers.WindowACmix`.
        block_cfg: Other arguments of :class:`acmix_mm.layers.transformer_block.TransformerBlock`.
        downsample: Merges patches to 2 C channels; None (default) in the last stage.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.
    """

    def __init__(
        self,
        embed_dims: int,
        drop_path_rates: Sequence[float],
        drop_rate: float,
        attn_cfg: Config,
        block_cfg: Config,
        downsample: PatchMerging | None = None,
        init_cfg: OptMultiConfig = None,
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
@renamed_arguments(
    num_conv_groups='acmix_cfg=dict(num_conv_pairs=...)',
    path_weights='acmix_cfg=dict(path_weights=...)',
    roll_conv='acmix_cfg=dict(roll_conv=...)',
    mask_padding='acmix_cfg=dict(mask_padding=...)',
    patch_cfg='patch_size=..., patch_norm=... and norm_cfg=...',
)
class ACmixSwin(BaseModule):
    """Swin transformer whose window attention layers are ACmix layers.

    Swin-Tiny and -Small with ACmix of Pan et al., CVPR 2022, with the arguments of mmdet's and
    mmseg's ``SwinTransformer``, and those of mmpretrain's except ``patch_cfg``. Where they differ,
    mmdet's meaning and default hold. Sizes of Swin (Liu et al., ICCV 2021, Sec. 3.3):

    ======= ========== ============= ==============
    arch    embed_dims depths        num_heads
    ======= ========== ============= ==============
    'tiny'  96         2, 2, 6, 2    3, 6, 12, 24
    'small' 96         2, 2, 18, 2   3, 6, 12, 24
    'base'  128        2, 2, 18, 2   4, 8, 16, 32
    'large' 192        2, 2, 18, 2   6, 12, 24, 48
    ======= ========== ============= ==============

    Args:
        pretrain_img_size: Side, or height and width, in pixels of the images for which the absolute
            position embedding is made; it is interpolated to other image sizes. Default: 224.
        in_channels: Number of image channels. Default: 3.
        embed_dims: Number C of channels of the first stage; every later stage doubles it. Default:
            that of ``arch``.
        patch_size: Side, or equal height and width, of the embedded patches in pixels. Default: 4.
        window_size: Side, or equal height and width, of the attention windows in pixels of each
            stage's map. Default: 7.
        mlp_ratio: Ratio of the MLPs' hidden channels to the stage's channels. Default: 4.
        depths: Number of blocks of each stage. Default: those of ``arch``.
        num_heads: Number of attention heads of each stage. Default: those of ``arch``.
        strides: Strides of the patch embedding (``patch_size``) and of each patch merging, in
            pixels of their inputs. Default: (4, 2, 2, 2).
        out_indices: Indices of the stages whose outputs are returned, each after a norm of its own.
            Default: (0, 1, 2, 3).
        qkv_bias: Whether the projections to queries, keys and values have biases. Default: True.
        qk_scale: Factor of the attention logits; ``head_channels ** -0.5`` if None (default).
        patch_norm: Whether norms follow the patch embedding and the patch mergings. Default: True.
        drop_rate: Dropout probability after the embedding and the projections. Default: 0.
        attn_drop_rate: Dropout probability of the attention weights. Default: 0.
        drop_path_rate: Drop probability of the last block; it grows linearly from 0 over the
            blocks. Default: 0.1.
        use_abs_pos_embed: Whether to add an absolute position embedding. Default: False.
        act_cfg: Config of the MLPs' activation. Default: ``dict(type='GELU')``.
        norm_cfg: Config of the norms. Default: ``dict(type='LN')``.
        with_cp: Whether to recompute the activations of blocks in the backward pass instead of
            keeping them. Default: False.
        pretrained: Path of a checkpoint, short for
            ``init_cfg=dict(type='Pretrained', checkpoint=...)``. mmseg's segmentors pass their own
            ``pretrained`` on to it. Default: None.
        convert_weights: Has no effect; it is accepted for configs of mmdet's Swin. The format of a
            checkpoint is recognized in any case. Default: False.
        frozen_stages: The embedding and the stages up to this one (1 is the first stage, 0 the
            embedding alone) keep their weights and stay in eval mode; -1 (default) freezes none.
            (In mmpretrain 0 is the first stage.)
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, or the first letter of one of them,
            or a dict with the three sizes; None (default) takes the explicit sizes, and those of
            ``'tiny'`` for what is not given.
        img_size: mmpretrain's name of ``pretrain_img_size``; beside it, ``pretrain_img_size=224``
            counts as not given. Default: None.
        out_after_downsample: Whether the output of a stage is taken after the patch merging that
            follows it, with twice the channels. Default: False.
        interpolate_mode: Mode of :func:`torch.nn.functional.interpolate` for the absolute position
            embedding, ``'bicubic'`` (default) or ``'bilinear'``.
        norm_eval: Has no effect; it is accepted for configs of mmpretrain's Swin. It concerns
            BatchNorm, which cannot normalize the channels-last maps of a Swin. Default: False.
        pad_small_map: Whether windows are also shifted in maps whose shorter side is no longer than
            one window, as in mmdet's and mmseg's Swin. Maps are padded to whole windows in any
            case. Default: False, as in the released code.
        stage_cfgs: ``dict(block_cfgs=dict(window_size=...))``, by which mmpretrain's configs set
            the ``window_size`` of all blocks; nothing else is taken. Default: ``dict()``.
        acmix_cfg: Arguments of all :class:`acmix_mm.layers.WindowACmix` layers, such as
            ``dict(num_conv_pairs=2)``, ``dict(path_weights=(1, 0))``, ``dict(roll_conv=False)`` or
            ``dict(mask_padding=True)``. Default: None.
        warm_start: Whether loading a plain Swin sets alpha = 1 and beta = 0, so that the network
            computes what the plain one did; that of mmdet's and mmseg's Swin with
            ``pad_small_map=True``. Default: True.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`.
            ``dict(type='Pretrained', ...)`` takes our checkpoints, released Swin-ACmix classifiers
            and plain Swins of Microsoft, mmdet, mmseg and mmpretrain. Default: None.

    Raises:
        TypeError: ``pretrained`` is no path.
        ValueError: Arguments of the stages do not fit together, a size is not one or two positive
            numbers, or two arguments for the same thing are given.

    Examples:
        >>> backbone = ACmixSwin(embed_dims=12, depths=(2, 2, 2, 2))
        >>> [tuple(out.shape) for out in backbone(torch.rand(2, 3, 64, 80))]
        [(2, 12, 16, 20), (2, 24, 8, 10), (2, 48, 4, 5), (2, 96, 2, 3)]
    """

    archs = {
        'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
        'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    }
    archs |= {name[0]: sizes for name, sizes in archs.items()}
    #: Parameters that :class:`acmix_mm.optim.ACmixOptimWrapperConstructor` does not decay.
    no_weight_decay = ('absolute_pos_embed',)

    def __init__(
        self,
        pretrain_img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        embed_dims: int | None = None,
        patch_size: int | Sequence[int] = 4,
        window_size: int | Sequence[int] = 7,
        mlp_ratio: float = 4,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        strides: Sequence[int] = (4, 2, 2, 2),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_abs_pos_embed: bool = False,
        act_cfg: Config = dict(type='GELU'),
        norm_cfg: Config = dict(type='LN'),
        with_cp: bool = False,
        pretrained: str | None = None,
        convert_weights: bool = False,
        frozen_stages: int = -1,
        arch: str | Config | None = None,
        img_size: int | Sequence[int] | None = None,
        out_after_downsample: bool = False,
        interpolate_mode: str = 'bicubic',
        norm_eval: bool = False,
        pad_small_map: bool = False,
        stage_cfgs: Config = dict(),
        acmix_cfg: OptConfig = None,
        warm_start: bool = True,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        init_cfg = resolve_pretrained('ACmixSwin', pretrained, init_cfg)
        super().__init__(init_cfg or _default_init_cfg())
        sizes = resolve_arch(
            'ACmixSwin', arch, self.archs,
            embed_dims=embed_dims, depths=depths, num_heads=num_heads,
        )  # fmt: skip
        embed_dims, depths, num_heads = sizes['embed_dims'], sizes['depths'], sizes['num_heads']
        num_stages = len(depths)
        check_numbers('ACmixSwin', drop_path_rate, in_channels=in_channels, embed_dims=embed_dims)
        check_stages(
            'ACmixSwin', num_stages, out_indices, frozen_stages,
            num_heads=num_heads, strides=strides,
        )  # fmt: skip
        patch_size = side_of_square('ACmixSwin', 'patch_size', patch_size)
        if stage_cfgs:
            if window_size not in (7, _window_size(stage_cfgs)):
                raise ValueError(
                    f'ACmixSwin: window_size={window_size} and stage_cfgs={stage_cfgs} both set '
                    'the size of the windows; leave one of them out'
                )
            window_size = _window_size(stage_cfgs)
        window_size = side_of_square('ACmixSwin', 'window_size', window_size)
        if strides[0] != patch_size:
            raise ValueError(
                f'ACmixSwin: strides[0] must be patch_size={patch_size}, patches do not overlap; '
                f'got {strides[0]}'
            )
        if img_size is not None:
            if pretrain_img_size not in (224, img_size):
                raise ValueError(
                    f'ACmixSwin: img_size={img_size} and pretrain_img_size={pretrain_img_size} are '
                    'names of one argument; leave one of them out'
                )
            pretrain_img_size = img_size
        channels = [embed_dims * 2**i for i in range(num_stages)]
        self.embed_dims = embed_dims
        self.depths = depths
        self.num_heads = num_heads
        self.num_layers = num_stages
        #: Number of channels of each stage's output.
        self.num_features = [*channels[1:], channels[-1]] if out_after_downsample else channels
        self.out_indices = out_indices
        self.out_after_downsample = out_after_downsample
        self.use_abs_pos_embed = use_abs_pos_embed
        self.interpolate_mode = interpolate_mode
        self.frozen_stages = frozen_stages

        self.patch_embed = PatchEmbed(
            in_channels,
            embed_dims,
            kernel_size=patch_size,
            stride=patch_size,
            norm_cfg=norm_cfg if patch_norm else None,
        )
        height, width = height_and_width('ACmixSwin', 'pretrain_img_size', pretrain_img_size)
        self._pos_shape = (height // patch_size, width // patch_size)
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
            attn_cfg = layer_options(
                'ACmixSwin',
                acmix_cfg,
                num_heads=num_heads[i],
                window_size=window_size,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop_rate=attn_drop_rate,
                shift_small_maps=pad_small_map,
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
                    channels[i],
                    channels[i + 1],
                    stride=strides[i + 1],
                    norm_cfg=norm_cfg if patch_norm else None,
                )
            self.stages.append(
                ACmixSwinStage(
                    channels[i], rates[i].tolist(), drop_rate, attn_cfg, block_cfg, downsample
                )
            )
        for i in out_indices:
            self.add_module(f'norm{i}', build_norm_layer(norm_cfg, self.num_features[i])[1])
        self._freeze()
        register_checkpoint_conversion(self, 'ACmixSwin', warm_start)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the requested stages.

        Args:
            x: ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: One ``(B, num_features[i], H_i, W_i)`` for each stage i of
            ``out_indices``; with the default strides ``H_i`` is H / 4, / 8, / 16, / 32, rounded up,
            and half of it after a patch merging.
        """
        x, size = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self._position(size)
        x = self.drop_after_pos(x).unflatten(1, size)
        outs = []
        for i, stage in enumerate(self.stages):
            x, out = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x if self.out_after_downsample else out)
                # mmcv's CPU operators read their input as if it were contiguous.
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _position(self, size: tuple[int, int]) -> Tensor:
        """Return the absolute position embedding of a map of size (H, W): (1, H * W, C)."""
        if size == self._pos_shape:
            return self.absolute_pos_embed
        grid = self.absolute_pos_embed.unflatten(1, self._pos_shape).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size, mode=self.interpolate_mode, align_corners=False)
        return grid.flatten(2).transpose(1, 2)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter, and the number of layers.

        mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` sets learning rates by it.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Name of the backbone in the model, with the trailing dot. Default: ``''``.

        Returns:
            tuple: 0 for the embedding, 1 and above for the blocks, the last number for norms of
            outputs and for parameters outside the backbone; and the number of blocks plus 2.
        """
        return layer_depth(param_name, prefix, self.depths)

    def train(self, mode: bool = True) -> 'ACmixSwin':
        """Set the training mode of all but the frozen stages."""
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


def _window_size(stage_cfgs: Config) -> int:
    """Return the window size of all blocks, the one thing that ``stage_cfgs`` may set."""
    match stage_cfgs:
        case {'block_cfgs': {'window_size': window_size, **of_blocks}, **of_stages} if not (
            of_blocks or of_stages
        ):
            return window_size
    raise ValueError(
        'ACmixSwin: stage_cfgs must be dict(block_cfgs=dict(window_size=...)), for all stages '
        f'alike, got {stage_cfgs}; set norm_cfg, act_cfg, mlp_ratio, qkv_bias or acmix_cfg of the '
        'backbone instead'
    )


def _default_init_cfg() -> list[dict]:
    return [
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Constant', layer='LayerNorm', val=1.0),
    ]
