# SPDX-License-Identifier: Apache-2.0
"""ResNet-ACmix: residual blocks whose 3x3 convolutions are ACmix layers."""

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from ..layers import ACmix
from ..layers.recompute import recompute
from ..layers.types import Config, OptConfig, OptMultiConfig
from ..registry import MODELS
from .common import (
    check_numbers,
    check_stages,
    eval_batch_norms,
    freeze,
    layer_options,
    resolve_pretrained,
    warn_of_initial_statistics,
)
from .loading import register_checkpoint_conversion


class _ResidualBlock(BaseModule):
    """What both kinds of blocks share: the shortcut, and recomputation."""

    #: FSDP shards the block as one unit, see :func:`acmix_mm.runtime.wrap_blocks`.
    fsdp_unit = True
    norm1_name: str
    norm2_name: str
    with_cp: bool

    @property
    def norm1(self) -> nn.Module:
        """The norm after the first layer."""
        return getattr(self, self.norm1_name)

    @property
    def norm2(self) -> nn.Module:
        """The norm after the second layer."""
        return getattr(self, self.norm2_name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, expansion * C, ceil(H / stride), ceil(W / stride))."""
        if self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.drop_path(self._residual(x))
        x += shortcut  # in place: this is the largest map of the block
        return self.relu(x)

    def _build_3x3(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        acmix_cfg: OptConfig,
        conv_cfg: OptConfig,
    ) -> nn.Module:
        """Build an ACmix layer, or, if ``acmix_cfg`` is None, a 3x3 convolution."""
        if acmix_cfg is None:
            return build_conv_layer(
                conv_cfg, in_channels, channels, 3,
                stride=stride, padding=dilation, dilation=dilation, bias=False,
            )  # fmt: skip
        options = layer_options(type(self).__name__, acmix_cfg, stride=stride, dilation=dilation)
        return ACmix(in_channels, channels, **options)


class ACmixBasicBlock(_ResidualBlock):
    """Two ACmix layers (or 3x3 convolutions), and a shortcut: the block of ResNet-18 and -34.

    Args:
        in_channels: Number C_in of input channels.
        channels: Number C of output channels.
        stride: Stride of the first layer in pixels. Default: 1.
        dilation: Dilation of the first layer in pixels; that of the second is 1. Default: 1.
        downsample: Shortcut to C channels and the new size; None (default) is the identity.
        acmix_cfg: Arguments of :class:`acmix_mm.layers.ACmix`; None (default) keeps 3x3
            convolutions.
        conv_cfg: Config of the convolutions. Default: None.
        norm_cfg: Config of the norms. Default: ``dict(type='BN')``.
        drop_path_rate: Probability of dropping the residual branch for an image. Default: 0.
        with_cp: Whether to recompute the block's activations in the backward pass instead of
            keeping them. Default: False.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.
    """

    #: Ratio of the number of output channels to C.
    expansion = 1
    #: Name of the norm at the end of the residual branch.
    last_norm = 'norm2'

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        acmix_cfg: OptConfig = None,
        conv_cfg: OptConfig = None,
        norm_cfg: Config = dict(type='BN'),
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, channels, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, channels, postfix=2)

        self.conv1 = self._build_3x3(in_channels, channels, stride, dilation, acmix_cfg, conv_cfg)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = self._build_3x3(channels, channels, 1, 1, acmix_cfg, conv_cfg)
        self.add_module(self.norm2_name, norm2)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.downsample = downsample

    def _residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class ACmixBottleneck(_ResidualBlock):
    """1x1 convolution, ACmix (or a 3x3 convolution), 1x1 convolution, and a shortcut.

    Args:
        in_channels: Number C_in of input channels.
        channels: Number C of channels of the middle layer.
        stride: Stride of the block in pixels. Default: 1.
        dilation: Dilation of the middle layer in pixels. Default: 1.
        expansion: Ratio of the number of output channels to C. Default: 4.
        downsample: Shortcut to ``expansion * C`` channels and the new size; None (default) is the
            identity.
        style: ``'pytorch'`` (default) has the stride in the middle layer, ``'caffe'`` in the first.
        acmix_cfg: Arguments of :class:`acmix_mm.layers.ACmix`; None (default) keeps a 3x3
            convolution.
        dcn: Config of a deformable convolution, which is then the middle layer; with
            ``fallback_on_stride=True`` only if that has no stride. Default: None.
        plugins: Modules to insert, each ``dict(cfg=..., position=...)`` with the position
            ``'after_conv1'``, ``'after_conv2'`` or ``'after_conv3'``. Default: none.
        conv_cfg: Config of the convolutions. Default: None.
        norm_cfg: Config of the norms. Default: ``dict(type='BN')``.
        drop_path_rate: Probability of dropping the residual branch for an image. Default: 0.
        with_cp: Whether to recompute the block's activations in the backward pass instead of
            keeping them. Default: False.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.

    Raises:
        ValueError: A position is unknown, or two plugins have the same name.
    """

    #: Default ratio of the number of output channels to C.
    expansion = 4
    #: Name of the norm at the end of the residual branch.
    last_norm = 'norm3'

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        expansion: int = 4,
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        acmix_cfg: OptConfig = None,
        dcn: OptConfig = None,
        plugins: Sequence[Config] = (),
        conv_cfg: OptConfig = None,
        norm_cfg: Config = dict(type='BN'),
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.expansion = expansion
        out_channels = channels * expansion
        first_stride, middle_stride = (1, stride) if style == 'pytorch' else (stride, 1)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, channels, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, channels, postfix=2)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, out_channels, postfix=3)

        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, channels, 1, stride=first_stride, bias=False
        )
        self.add_module(self.norm1_name, norm1)
        middle_cfg = conv_cfg
        if dcn is not None:
            dcn = dict(dcn)
            if not (dcn.pop('fallback_on_stride', False) and middle_stride > 1):
                acmix_cfg, middle_cfg = None, dcn
        self.conv2 = self._build_3x3(
            channels, channels, middle_stride, dilation, acmix_cfg, middle_cfg
        )
        self.add_module(self.norm2_name, norm2)
        self.conv3 = build_conv_layer(conv_cfg, channels, out_channels, 1, bias=False)
        self.add_module(self.norm3_name, norm3)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.downsample = downsample

        channels_after = dict(after_conv1=channels, after_conv2=channels, after_conv3=out_channels)
        #: Names of the plugins by their position.
        self.plugin_names: dict[str, list[str]] = {position: [] for position in channels_after}
        for plugin in plugins:
            position = plugin['position']
            if position not in channels_after:
                raise ValueError(
                    f'ACmixBottleneck: the position of a plugin must be in {[*channels_after]}, '
                    f'got {position!r}'
                )
            self._add_plugin(plugin['cfg'], position, channels_after[position])

    def _add_plugin(self, cfg: Config, position: str, channels: int) -> None:
        cfg = dict(cfg)
        postfix = cfg.pop('postfix', '')
        name, plugin = build_plugin_layer(cfg, postfix, in_channels=channels)
        if hasattr(self, name):
            raise ValueError(
                f'ACmixBottleneck: there are two plugins of the name {name!r}; tell them apart by '
                f'a postfix, dict(type={cfg["type"]!r}, postfix=...)'
            )
        self.add_module(name, plugin)
        self.plugin_names[position].append(name)

    def _apply_plugins(self, position: str, x: Tensor) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x

    @property
    def norm3(self) -> nn.Module:
        """The norm after the last convolution."""
        return getattr(self, self.norm3_name)

    def _residual(self, x: Tensor) -> Tensor:
        x = self._apply_plugins('after_conv1', self.relu(self.norm1(self.conv1(x))))
        x = self._apply_plugins('after_conv2', self.relu(self.norm2(self.conv2(x))))
        return self._apply_plugins('after_conv3', self.norm3(self.conv3(x)))


@MODELS.register_module()
class ACmixResNet(BaseModule):
    """ResNet whose 3x3 convolutions are ACmix layers.

    ResNet-26/38/50 with ACmix of Pan et al., CVPR 2022, with the arguments of mmdet's and mmseg's
    ResNet, so that an existing config only needs another ``type``. The other depths are built by
    the same rule: every 3x3 convolution of a block becomes an ACmix layer.

    Args:
        depth: Depth of the network: 26, 38, 50, 101 or 152 with bottlenecks, 18 or 34 with basic
            blocks.
        in_channels: Number of image channels. Default: 3.
        stem_channels: Number of channels of the stem; ``base_channels`` if None (default).
        base_channels: Number C of channels of the first stage; every later stage doubles it.
            Default: 64.
        expansion: Ratio of the number of output channels of a block to C; None (default) is 4 with
            bottlenecks. Basic blocks always have 1.
        num_stages: Number of stages, 1 to 4. Default: 4.
        strides: Stride of the first block of each stage in pixels. Default: (1, 2, 2, 2).
        dilations: Dilation of the 3x3 layers of each stage in pixels. Default: (1, 1, 1, 1).
        out_indices: Indices of the stages whose outputs are returned. Default: (0, 1, 2, 3).
        style: ``'pytorch'`` (default) has the stride in the ACmix layer, ``'caffe'`` in the 1x1
            convolution before it. Basic blocks always have it in their first layer.
        deep_stem: Whether to use three 3x3 convolutions in place of the 7x7 (ResNet-C). Default:
            False.
        avg_down: Whether strided shortcuts use average pooling before their 1x1 convolution
            (ResNet-D, with ``deep_stem``). Default: False.
        contract_dilation: Whether the first block of a dilated stage has half the dilation.
            Default: False.
        multi_grid: Dilation of each block of the last stage in pixels, in place of the last one of
            ``dilations``. Default: None.
        frozen_stages: The stem and the stages up to this one (1 is the first stage, 0 the stem
            alone) keep their weights and stay in eval mode; -1 (default) freezes none.
        conv_cfg: Config of the convolutions that are not ACmix. Default: None.
        norm_cfg: Config of the norms. Default: ``dict(type='BN', requires_grad=True)``.
        norm_eval: Whether BatchNorm keeps its running statistics unchanged during training.
            Default: True.
        dcn: Config of deformable convolutions, such as ``dict(type='DCNv2', deform_groups=1)``.
            With ``fallback_on_stride=True``, 3x3 layers with a stride stay as they are. Default:
            None.
        stage_with_dcn: Whether each stage has deformable convolutions, which then take the place of
            ACmix layers; ignored if ``dcn`` is None, as in mmdet. Default: (False, False, False,
            False).
        plugins: Modules to insert into the bottlenecks, as in mmdet: each
            ``dict(cfg=..., position=..., stages=...)`` with the position ``'after_conv1'``,
            ``'after_conv2'`` or ``'after_conv3'``, and for each stage whether it has the plugin
            (all have it if ``stages`` is missing). Plugins of the same type need a different
            ``postfix`` in each ``cfg``. Default: None.
        stage_with_acmix: Whether each stage has ACmix layers; the others keep 3x3 convolutions.
            Default: None, all stages.
        acmix_cfg: Arguments of all :class:`acmix_mm.layers.ACmix` layers, such as
            ``dict(num_conv_pairs=2)`` or ``dict(path_weights=(1, 0))``. Default: None.
        drop_path_rate: Drop probability of the last block; it grows linearly from 0 over the
            blocks. Default: 0.
        with_cp: Whether to recompute the activations of blocks in the backward pass instead of
            keeping them. Default: False.
        zero_init_residual: Whether to initialize every residual branch with 0. Default: True.
        pretrained: Path of a checkpoint, short for
            ``init_cfg=dict(type='Pretrained', checkpoint=...)``. mmseg's segmentors pass their own
            ``pretrained`` on to it. Default: None.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`.
            ``dict(type='Pretrained', ...)`` takes our checkpoints, released ResNet-ACmix
            classifiers and, except for the 3x3 convolutions, plain ResNets of torchvision, mmdet,
            mmseg and mmpretrain. Default: None.

    Raises:
        TypeError: ``pretrained`` is no path.
        ValueError: An argument is out of range, lengths do not match ``num_stages``, or two
            arguments exclude each other.

    Examples:
        >>> import torch
        >>> backbone = ACmixResNet(26, base_channels=16, norm_eval=False)
        >>> [tuple(out.shape) for out in backbone(torch.rand(2, 3, 64, 80))]
        [(2, 64, 16, 20), (2, 128, 8, 10), (2, 256, 4, 5), (2, 512, 2, 3)]
    """

    blocks_of_depth = {
        18: (2, 2, 2, 2),
        26: (1, 2, 4, 1),
        34: (3, 4, 6, 3),
        38: (2, 3, 5, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        expansion: int | None = None,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = 'pytorch',
        deep_stem: bool = False,
        avg_down: bool = False,
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
        frozen_stages: int = -1,
        conv_cfg: OptConfig = None,
        norm_cfg: Config = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        dcn: OptConfig = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        plugins: Sequence[Config] | None = None,
        stage_with_acmix: Sequence[bool] | None = None,
        acmix_cfg: OptConfig = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        init_cfg = resolve_pretrained('ACmixResNet', pretrained, init_cfg)
        super().__init__(init_cfg or _default_init_cfg())
        if depth not in self.blocks_of_depth:
            raise ValueError(
                f'ACmixResNet: depth must be in {[*self.blocks_of_depth]}, got {depth!r}'
            )
        if not 1 <= num_stages <= 4:
            raise ValueError(f'ACmixResNet: num_stages must be 1 to 4, got {num_stages}')
        if style not in ('pytorch', 'caffe'):
            raise ValueError(f"ACmixResNet: style must be 'pytorch' or 'caffe', got {style!r}")
        if stage_with_acmix is None:
            stage_with_acmix = (True,) * num_stages
        if dcn is None:
            stage_with_dcn = (False,) * num_stages
        check_numbers(
            'ACmixResNet', drop_path_rate, in_channels=in_channels, base_channels=base_channels
        )
        check_stages(
            'ACmixResNet', num_stages, out_indices, frozen_stages,
            strides=strides, dilations=dilations,
            stage_with_acmix=stage_with_acmix, stage_with_dcn=stage_with_dcn,
        )  # fmt: skip
        if any(stage_with_dcn) and conv_cfg is not None:
            raise ValueError(
                f'ACmixResNet: conv_cfg must be None in a network with dcn, got {conv_cfg}'
            )
        self.depth = depth
        self.stem_channels = stem_channels or base_channels
        self.base_channels = base_channels
        self.num_stages = num_stages
        self.strides = strides
        self.dilations = dilations
        self.out_indices = out_indices
        self.style = style
        self.deep_stem = deep_stem
        self.avg_down = avg_down
        self.contract_dilation = contract_dilation
        self.multi_grid = multi_grid
        self.frozen_stages = frozen_stages
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        self.norm_eval = norm_eval
        self.plugins = plugins
        self.zero_init_residual = zero_init_residual

        #: Class of the blocks.
        self.block = ACmixBasicBlock if depth in (18, 34) else ACmixBottleneck
        #: Number of blocks of each stage.
        self.stage_blocks = self.blocks_of_depth[depth][:num_stages]
        if self.block is ACmixBasicBlock and (plugins or any(stage_with_dcn)):
            raise ValueError(
                f'ACmixResNet: plugins and dcn need bottlenecks, which depth={depth} does not have'
            )
        if self.block is ACmixBasicBlock and expansion not in (None, 1):
            raise ValueError(
                f'ACmixResNet: expansion must be 1 with the basic blocks of depth={depth}, '
                f'got {expansion}'
            )
        self.expansion = expansion or self.block.expansion
        if multi_grid is not None and len(multi_grid) != self.stage_blocks[-1]:
            raise ValueError(
                f'ACmixResNet: multi_grid must have {self.stage_blocks[-1]} values, one for each '
                f'block of the last stage, got {multi_grid}'
            )

        self._make_stem(in_channels)
        rates = torch.linspace(0, drop_path_rate, sum(self.stage_blocks), device='cpu')
        drop_path_rates = rates.split(self.stage_blocks)
        zero_init = dict(type='Constant', val=0, override=dict(name=self.block.last_norm))
        channels_in = self.stem_channels
        self.res_layers: list[str] = []
        for i in range(num_stages):
            block_cfg: dict[str, Any] = dict(
                acmix_cfg=(acmix_cfg or {}) if stage_with_acmix[i] else None,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
                with_cp=with_cp,
                init_cfg=zero_init if zero_init_residual and not init_cfg else None,
            )
            if self.block is ACmixBottleneck:
                block_cfg['expansion'] = self.expansion
                block_cfg['style'] = style
                block_cfg['dcn'] = dcn if stage_with_dcn[i] else None
                block_cfg['plugins'] = _plugins_of_stage(plugins or (), i, num_stages)
            stage = self._make_stage(i, channels_in, drop_path_rates[i].tolist(), block_cfg)
            channels_in = base_channels * 2**i * self.expansion
            self.res_layers.append(f'layer{i + 1}')
            self.add_module(self.res_layers[-1], stage)
        #: Number of channels of the last stage's output.
        self.feat_dim = channels_in
        self._freeze()
        # No warm start: an ACmix layer cannot reproduce a 3x3 convolution.
        register_checkpoint_conversion(self, 'ACmixResNet', warm_start=False)

    @property
    def norm1(self) -> nn.Module:
        """The norm of the stem, unless ``deep_stem``."""
        return getattr(self, self.norm1_name)

    def _make_stem(self, in_channels: int) -> None:
        channels = self.stem_channels
        if self.deep_stem:
            half = channels // 2
            self.stem = Sequential(
                *self._conv_norm_relu(in_channels, half, stride=2),
                *self._conv_norm_relu(half, half, stride=1),
                *self._conv_norm_relu(half, channels, stride=1),
            )
        else:
            self.conv1 = build_conv_layer(
                self.conv_cfg, in_channels, channels, 7, stride=2, padding=3, bias=False
            )
            self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, channels, postfix=1)
            self.add_module(self.norm1_name, norm1)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def _conv_norm_relu(self, in_channels: int, channels: int, stride: int) -> list[nn.Module]:
        conv = build_conv_layer(
            self.conv_cfg, in_channels, channels, 3, stride=stride, padding=1, bias=False
        )
        return [conv, build_norm_layer(self.norm_cfg, channels)[1], nn.ReLU(inplace=True)]

    def _make_stage(
        self, index: int, in_channels: int, drop_path_rates: Sequence[float], block_cfg: Config
    ) -> Sequential:
        channels, stride = self.base_channels * 2**index, self.strides[index]
        dilations = [self.dilations[index]] * len(drop_path_rates)
        if self.contract_dilation and dilations[0] > 1:
            dilations[0] //= 2
        if self.multi_grid is not None and index == self.num_stages - 1:
            dilations = [*self.multi_grid]
        stage = Sequential()
        for i, (dilation, rate) in enumerate(zip(dilations, drop_path_rates, strict=True)):
            block = self.block(
                in_channels,
                channels,
                stride=1 if i else stride,
                dilation=dilation,
                downsample=None if i else self._make_shortcut(in_channels, channels, stride),
                drop_path_rate=rate,
                **block_cfg,
            )
            stage.append(block)
            in_channels = channels * self.expansion
        return stage

    def _make_shortcut(self, in_channels: int, channels: int, stride: int) -> nn.Module | None:
        out_channels = channels * self.expansion
        if stride == 1 and in_channels == out_channels:
            return None
        pool = []
        if self.avg_down:
            pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)]
            stride = 1
        conv = build_conv_layer(
            self.conv_cfg, in_channels, out_channels, 1, stride=stride, bias=False
        )
        return Sequential(*pool, conv, build_norm_layer(self.norm_cfg, out_channels)[1])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the requested stages.

        Args:
            x: ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: One ``(B, expansion * base_channels * 2**i, H_i, W_i)`` for each stage i
            of ``out_indices``; with the default strides ``H_i`` is H / 4, / 8, / 16, / 32, rounded
            up.
        """
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(x)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter, and the number of layers.

        mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` sets learning rates by it. As in
        its ResNet, the first and the last stage are one layer each, and 2 blocks of the second and
        3 of the third stage are one; 4 blocks of both in ResNet-152.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Name of the backbone in the model, with the trailing dot. Default: ``''``.

        Returns:
            tuple: 0 for the stem, 1 and above for the blocks, the last number for parameters
            outside the backbone; and the number of layers.
        """
        second, third = (4, 4) if self.depth == 152 else (2, 3)
        blocks_of_layer = (self.stage_blocks[0], second, third, self.stage_blocks[-1])
        layers = [ceil(n / m) for n, m in zip(self.stage_blocks, blocks_of_layer, strict=False)]
        num_layers = sum(layers) + 2
        if not param_name.startswith(prefix):  # of a neck or a head
            return num_layers - 1, num_layers
        stage, block, *_ = param_name.removeprefix(prefix).split('.')
        if stage not in self.res_layers:
            return 0, num_layers
        index = self.res_layers.index(stage)
        return 1 + sum(layers[:index]) + int(block) // blocks_of_layer[index], num_layers

    def train(self, mode: bool = True) -> 'ACmixResNet':
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
            stem = ['stem'] if self.deep_stem else ['conv1', self.norm1_name]
            freeze(getattr(self, name) for name in stem + self.res_layers[: self.frozen_stages])


def _plugins_of_stage(plugins: Sequence[Config], stage: int, num_stages: int) -> list[Config]:
    """Return ``dict(cfg=..., position=...)`` for each of the plugins that a stage has."""
    if not isinstance(plugins, Iterable) or not all(map(_is_plugin, plugins)):
        raise ValueError(
            'ACmixResNet: plugins must be a list of dict(cfg=dict(type=...), position=...), '
            f'got {plugins!r}'
        )
    selected = []
    for plugin in plugins:
        stages = plugin.get('stages')
        if stages is not None and not (isinstance(stages, Sequence) and len(stages) == num_stages):
            raise ValueError(
                f'ACmixResNet: stages of a plugin must have {num_stages} values, one for each '
                f'stage, got {plugin}'
            )
        if stages is None or stages[stage]:
            selected.append(dict(cfg=plugin['cfg'], position=plugin['position']))
    return selected


def _is_plugin(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get('cfg'), dict) and 'position' in value


def _default_init_cfg() -> list[dict]:
    return [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
    ]
