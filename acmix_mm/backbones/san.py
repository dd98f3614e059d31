# SPDX-License-Identifier: Apache-2.0
"""SAN-ACmix: a self-attention network whose patch-wise attention layers are ACmix layers."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, fx, nn

from ..layers import PatchwiseACmix
from ..layers.recompute import recompute
from ..layers.renamed import renamed_arguments
from ..layers.types import Config, OptConfig, OptMultiConfig
from ..registry import MODELS
from .common import (
    check_numbers,
    check_stages,
    eval_batch_norms,
    freeze,
    layer_depth,
    layer_options,
    resolve_pretrained,
    warn_of_initial_statistics,
)
from .loading import register_checkpoint_conversion


class ACmixSANBlock(BaseModule):
    """Pre-activation bottleneck: norm, ReLU, ACmix, norm, ReLU, 1x1 convolution, and a shortcut.

    Args:
        channels: Number C of channels, a multiple of 32; queries and keys have C / 16, values C / 4
            channels.
        acmix_cfg: Other arguments of :class:`acmix_mm.layers.PatchwiseACmix`.
        norm_cfg: Config of the norms. Default: ``dict(type='BN')``.
        with_cp: Whether to recompute the block's activations in the backward pass instead of
            keeping them. Default: False.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.
    """

    #: FSDP shards the block as one unit, see :func:`acmix_mm.runtime.wrap_blocks`.
    fsdp_unit = True

    def __init__(
        self,
        channels: int,
        acmix_cfg: Config,
        norm_cfg: Config = dict(type='BN'),
        with_cp: bool = False,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.norm1 = build_norm_layer(norm_cfg, channels)[1]
        self.attn = PatchwiseACmix(
            channels, channels // 16, channels // 4, norm_cfg=norm_cfg, **acmix_cfg
        )
        self.norm2 = build_norm_layer(norm_cfg, channels // 4)[1]
        self.conv = nn.Conv2d(channels // 4, channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        out = self.attn(self.relu(self.norm1(x)))
        return x + self.conv(self.relu(self.norm2(out)))


class ACmixSANStage(BaseModule):
    """2x2 max pooling, 1x1 convolution, blocks, norm and ReLU.

    Args:
        in_channels: Number C_in of input channels.
        channels: Number C of output channels.
        num_blocks: Number of blocks.
        norm_cfg: Config of the norms.
        block_cfg: Other arguments of :class:`ACmixSANBlock`.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_blocks: int,
        norm_cfg: Config,
        block_cfg: Config,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        # The norm comes before the convolution: mmcv's fuse_conv_bn takes a BatchNorm for the one
        # that follows the convolution registered last, but here the blocks are between them.
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.blocks = Sequential(
            *(ACmixSANBlock(channels, norm_cfg=norm_cfg, **block_cfg) for _ in range(num_blocks))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H // 2, W // 2)."""
        return self.relu(self.norm(self.blocks(self.conv(self.pool(x)))))


@MODELS.register_module()
@renamed_arguments(
    num_conv_groups='acmix_cfg=dict(num_conv_pairs=...)',
    path_weights='acmix_cfg=dict(path_weights=...)',
)
class ACmixSAN(BaseModule):
    """Self-attention network whose patch-wise attention layers are ACmix layers.

    SAN-10/15/19 with ACmix of Pan et al., CVPR 2022; SAN is the patch-wise network of
    Zhao et al., "Exploring Self-attention for Image Recognition", CVPR 2020 (Table 1). Its five
    stages have strides 2, 4, 8, 16 and 32; the last four, of 256 to 2048 channels with the default
    ``base_channels``, stand where those of a ResNet-50 do.

    Args:
        depth: Depth of the network: 10, 15 or 19.
        in_channels: Number of image channels. Default: 3.
        base_channels: Number C of channels of the stem and of the first stage, a multiple of 32;
            the next stage has 4 C, and every later one doubles it. Default: 64.
        kernels_att: Side of the attention window of each stage in pixels, odd. Default:
            (3, 7, 7, 7, 7).
        out_indices: Indices of the stages whose outputs are returned. Default: (1, 2, 3, 4).
        frozen_stages: The stem and the stages up to this one (1 is the first stage, 0 the stem
            alone) keep their weights and stay in eval mode; -1 (default) freezes none.
        norm_cfg: Config of the norms. Default: ``dict(type='BN', requires_grad=True)``.
        norm_eval: Whether BatchNorm keeps its running statistics unchanged during training.
            Default: True.
        acmix_cfg: Arguments of all :class:`acmix_mm.layers.PatchwiseACmix` layers, such as
            ``dict(num_conv_pairs=2)`` or ``dict(path_weights=(1, 0))``. Default: None.
        with_cp: Whether to recompute the activations of blocks in the backward pass instead of
            keeping them. Default: False.
        warm_start: Whether loading a plain SAN sets alpha = 1 and beta = 0. Default: True.
        pretrained: Path of a checkpoint, short for
            ``init_cfg=dict(type='Pretrained', checkpoint=...)``. mmseg's segmentors pass their own
            ``pretrained`` on to it. Default: None.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`.
            ``dict(type='Pretrained', ...)`` takes our checkpoints and plain patch-wise SANs of the
            authors. Default: None.

    Raises:
        TypeError: ``pretrained`` is no path.
        ValueError: ``depth`` is unknown, ``base_channels`` is not a multiple of 32, arguments of
            the stages do not fit together, or ``pretrained`` and ``init_cfg`` are both given.

    Examples:
        >>> import torch
        >>> backbone = ACmixSAN(10, base_channels=32, norm_eval=False)
        >>> [tuple(out.shape) for out in backbone(torch.rand(2, 3, 64, 80))]
        [(2, 128, 16, 20), (2, 256, 8, 10), (2, 512, 4, 5), (2, 1024, 2, 2)]
    """

    blocks_of_depth = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 64,
        kernels_att: Sequence[int] = (3, 7, 7, 7, 7),
        out_indices: Sequence[int] = (1, 2, 3, 4),
        frozen_stages: int = -1,
        norm_cfg: Config = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        acmix_cfg: OptConfig = None,
        with_cp: bool = False,
        warm_start: bool = True,
        pretrained: str | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(resolve_pretrained('ACmixSAN', pretrained, init_cfg))
        if depth not in self.blocks_of_depth:
            raise ValueError(f'ACmixSAN: depth must be in {[*self.blocks_of_depth]}, got {depth!r}')
        check_numbers('ACmixSAN', in_channels=in_channels, base_channels=base_channels)
        if base_channels % 32:
            raise ValueError(
                f'ACmixSAN: base_channels must be a multiple of 32, got {base_channels}'
            )
        blocks = self.blocks_of_depth[depth]
        check_stages('ACmixSAN', len(blocks), out_indices, frozen_stages, kernels_att=kernels_att)
        self.depth = depth
        self.base_channels = base_channels
        self.num_stages = len(blocks)
        #: Number of channels of each stage's output.
        self.num_features = [base_channels, *(base_channels * 2**i for i in (2, 3, 4, 5))]
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        self.stem = ConvModule(in_channels, base_channels, 1, norm_cfg=norm_cfg)
        self.stages = ModuleList()
        channels_in = base_channels
        for i, num_blocks in enumerate(blocks):
            options = layer_options('ACmixSAN', acmix_cfg, kernel_att=kernels_att[i])
            block_cfg = dict(acmix_cfg=options, with_cp=with_cp)
            self.stages.append(
                ACmixSANStage(channels_in, self.num_features[i], num_blocks, norm_cfg, block_cfg)
            )
            channels_in = self.num_features[i]
        self._freeze()
        register_checkpoint_conversion(self, 'ACmixSAN', warm_start)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the requested stages.

        Args:
            x: ``(B, in_channels, H, W)`` of at least 32x32 pixels.

        Returns:
            tuple[Tensor]: One ``(B, C_i, H_i, W_i)`` for each stage i of ``out_indices``; ``H_i``
            is H / 2, / 4, / 8, / 16, / 32, rounded down after each stage.

        Raises:
            ValueError: The image is too small.
        """
        _check_size(x, 2 ** len(self.stages))
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter, and the number of layers.

        mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` sets learning rates by it.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Name of the backbone in the model, with the trailing dot. Default: ``''``.

        Returns:
            tuple: 0 for the stem, 1 and above for the blocks, the last number for parameters
            outside the backbone; and the number of blocks plus 2.
        """
        return layer_depth(param_name, prefix, self.blocks_of_depth[self.depth])

    def train(self, mode: bool = True) -> 'ACmixSAN':
        """Set the training mode of all but the frozen stages and, with ``norm_eval``, BatchNorm."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            eval_batch_norms(self)
        if mode:
            warn_of_initial_statistics(self)
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            freeze([self.stem, *self.stages[: self.frozen_stages]])


@fx.wrap  # symbolic tracing keeps the check as a call
def _check_size(x: Tensor, smallest: int) -> None:
    """Raise ValueError if the pooling of the stages would leave nothing of an image."""
    height, width = x.shape[2:]
    if height < smallest or width < smallest:
        raise ValueError(
            f'ACmixSAN: images must have at least {smallest}x{smallest} pixels, '
            f'got {height}x{width}'
        )
