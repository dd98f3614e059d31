# SPDX-License-Identifier: Apache-2.0
"""ResNet-ACmix: bottlenecks whose 3x3 convolution is an ACmix layer."""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from ..layers import ACmix
from ..layers.recompute import recompute
from ..layers.types import Config, OptConfig, OptMultiConfig
from ..registry import MODELS
from .common import check_stages, eval_batch_norms, freeze, layer_options
from .loading import register_checkpoint_conversion


class ACmixBottleneck(BaseModule):
    """1x1 convolution, ACmix (or a 3x3 convolution), 1x1 convolution, and a shortcut.

    Args:
        in_channels: Number C_in of input channels.
        channels: Number C of channels of the middle layer; the block returns 4 C channels.
        stride: Stride of the block in pixels. Default: 1.
        dilation: Dilation of the middle layer in pixels. Default: 1.
        downsample: Shortcut to 4 C channels and the new size; None (default) is the identity.
        style: ``'pytorch'`` (default) has the stride in the middle layer, ``'caffe'`` in the first.
        acmix_cfg: Arguments of :class:`acmix_mm.layers.ACmix`; None (default) keeps a 3x3
            convolution.
        conv_cfg: Config of the convolutions. Default: None.
        norm_cfg: Config of the norms. Default: ``dict(type='BN')``.
        drop_path_rate: Probability of dropping the residual branch for an image. Default: 0.
        with_cp: Whether to recompute the block's activations in the backward pass instead of
            keeping them. Default: False.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`. Default: None.
    """

    expansion = 4
    #: FSDP shards the block as one unit, see :func:`acmix_mm.runtime.wrap_blocks`.
    fsdp_unit = True

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        acmix_cfg: OptConfig = None,
        conv_cfg: OptConfig = None,
        norm_cfg: Config = dict(type='BN'),
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        out_channels = channels * self.expansion
        first_stride, middle_stride = (1, stride) if style == 'pytorch' else (stride, 1)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, channels, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, channels, postfix=2)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, out_channels, postfix=3)

        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, channels, 1, stride=first_stride, bias=False
        )
        self.add_module(self.norm1_name, norm1)
        if acmix_cfg is None:
            self.conv2 = build_conv_layer(
                conv_cfg, channels, channels, 3,
                stride=middle_stride, padding=dilation, dilation=dilation, bias=False,
            )  # fmt: skip
        else:
            options = layer_options(
                'ACmixBottleneck', acmix_cfg, stride=middle_stride, dilation=dilation
            )
            self.conv2 = ACmix(channels, channels, **options)
        self.add_module(self.norm2_name, norm2)
        self.conv3 = build_conv_layer(conv_cfg, channels, out_channels, 1, bias=False)
        self.add_module(self.norm3_name, norm3)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.downsample = downsample

    @property
    def norm1(self) -> nn.Module:
        """The norm after the first convolution."""
        return getattr(self, self.norm1_name)

    @property
    def norm2(self) -> nn.Module:
        """The norm after the middle layer."""
        return getattr(self, self.norm2_name)

    @property
    def norm3(self) -> nn.Module:
        """The norm after the last convolution."""
        return getattr(self, self.norm3_name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, 4 C, ceil(H / stride), ceil(W / stride))."""
        if self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        x = self.drop_path(self.norm3(self.conv3(x)))
        x += shortcut  # in place: this is the largest map of the block
        return self.relu(x)


@MODELS.register_module()
class ACmixResNet(BaseModule):
    """ResNet whose 3x3 convolutions are ACmix layers.

    ResNet-26/38/50 with ACmix of Pan et al., CVPR 2022, with the options of mmdet's and
    mmseg's ResNet, so that an existing config only needs another ``type``.

    Args:
        depth: Depth of the network: 26, 38, 50 or 101.
        in_channels: Number of image channels. Default: 3.
        stem_channels: Number of channels of the stem; ``base_channels`` if None (default).
        base_channels: Number C of channels of the first stage; every later stage doubles it.
            Default: 64.
        num_stages: Number of stages, 1 to 4. Default: 4.
        strides: Stride of the first block of each stage in pixels. Default: (1, 2, 2, 2).
        dilations: Dilation of the middle layers of each stage in pixels. Default: (1, 1, 1, 1).
        out_indices: Indices of the stages whose outputs are returned. Default: (0, 1, 2, 3).
        style: ``'pytorch'`` (default) has the stride in the ACmix layer, ``'caffe'`` in the 1x1
            convolution before it.
        deep_stem: Whether to use three 3x3 convolutions in place of the 7x7 (ResNet-C). Default:
            False.
        avg_down: Whether strided shortcuts use average pooling before their 1x1 convolution
            (ResNet-D, with ``deep_stem``). Default: False.
        contract_dilation: Whether the first block of a dilated stage has half the dilation.
            Default: False.
        frozen_stages: The stem and the stages up to this one (1 is the first stage, 0 the stem
            alone) keep their weights and stay in eval mode; -1 (default) freezes none.
        conv_cfg: Config of the convolutions that are not ACmix. Default: None.
        norm_cfg: Config of the norms. Default: ``dict(type='BN', requires_grad=True)``.
        norm_eval: Whether BatchNorm keeps its running statistics unchanged during training.
            Default: True.
        stage_with_acmix: Whether each stage has ACmix layers; the others keep 3x3 convolutions.
            Default: (True, True, True, True).
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
            classifiers and, except for the 3x3 convolutions, plain ResNets of torchvision. Default:
            None.

    Raises:
        ValueError: An argument is out of range, or lengths do not match ``num_stages``.

    Examples:
        >>> import torch
        >>> backbone = ACmixResNet(26, base_channels=16, norm_eval=False)
        >>> [tuple(out.shape) for out in backbone(torch.rand(2, 3, 64, 80))]
        [(2, 64, 16, 20), (2, 128, 8, 10), (2, 256, 4, 5), (2, 512, 2, 3)]
    """

    blocks_of_depth = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = 'pytorch',
        deep_stem: bool = False,
        avg_down: bool = False,
        contract_dilation: bool = False,
        frozen_stages: int = -1,
        conv_cfg: OptConfig = None,
        norm_cfg: Config = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        stage_with_acmix: Sequence[bool] = (True, True, True, True),
        acmix_cfg: OptConfig = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        if pretrained and init_cfg:
            raise ValueError(
                f'ACmixResNet: pretrained={pretrained!r} and init_cfg={init_cfg!r} both name '
                'initial weights; set one of them to None'
            )
        if pretrained:
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        super().__init__(init_cfg or _default_init_cfg())
        if depth not in self.blocks_of_depth:
            raise ValueError(
                f'ACmixResNet: depth must be in {[*self.blocks_of_depth]}, got {depth!r}'
            )
        if not 1 <= num_stages <= 4:
            raise ValueError(f'ACmixResNet: num_stages must be 1 to 4, got {num_stages}')
        if style not in ('pytorch', 'caffe'):
            raise ValueError(f"ACmixResNet: style must be 'pytorch' or 'caffe', got {style!r}")
        check_stages(
            'ACmixResNet', num_stages, out_indices, frozen_stages,
            strides=strides, dilations=dilations, stage_with_acmix=stage_with_acmix,
        )  # fmt: skip
        self.out_indices = out_indices
        self.deep_stem = deep_stem
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg

        stem_channels = stem_channels or base_channels
        self._make_stem(in_channels, stem_channels)
        blocks = self.blocks_of_depth[depth][:num_stages]
        rates = torch.linspace(0, drop_path_rate, sum(blocks), device='cpu')
        drop_path_rates = rates.split(blocks)
        zero_init = dict(type='Constant', val=0, override=dict(name='norm3'))
        common: dict[str, Any] = dict(
            style=style,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            init_cfg=zero_init if zero_init_residual and not init_cfg else None,
        )
        channels_in = stem_channels
        self.res_layers: list[str] = []
        for i, num_blocks in enumerate(blocks):
            channels, stride, dilation = base_channels * 2**i, strides[i], dilations[i]
            shortcut = self._shortcut(channels_in, channels, stride, avg_down)
            first_dilation = dilation // 2 if contract_dilation and dilation > 1 else dilation
            stage = Sequential()
            for block in range(num_blocks):
                stage.append(
                    ACmixBottleneck(
                        channels_in,
                        channels,
                        stride=1 if block else stride,
                        dilation=dilation if block else first_dilation,
                        downsample=None if block else shortcut,
                        acmix_cfg=(acmix_cfg or {}) if stage_with_acmix[i] else None,
                        drop_path_rate=float(drop_path_rates[i][block]),
                        **common,
                    )
                )
                channels_in = channels * ACmixBottleneck.expansion
            self.res_layers.append(f'layer{i + 1}')
            self.add_module(self.res_layers[-1], stage)
        self._freeze()
        # No warm start: an ACmix layer cannot reproduce a 3x3 convolution.
        register_checkpoint_conversion(self, 'ACmixResNet', warm_start=False)

    def _make_stem(self, in_channels: int, channels: int) -> None:
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

    def _shortcut(
        self, in_channels: int, channels: int, stride: int, avg_down: bool
    ) -> nn.Module | None:
        out_channels = channels * ACmixBottleneck.expansion
        if stride == 1 and in_channels == out_channels:
            return None
        pool = []
        if avg_down:
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
            tuple[Tensor]: One ``(B, 4 * base_channels * 2**i, H_i, W_i)`` for each stage i of
            ``out_indices``; with the default strides ``H_i`` is H / 4, / 8, / 16, / 32, rounded up.
        """
        if self.deep_stem:
            x = self.stem(x)
        else:
            x = self.relu(getattr(self, self.norm1_name)(self.conv1(x)))
        x = self.maxpool(x)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'ACmixResNet':
        """Set the training mode of all but the frozen stages and, with ``norm_eval``, BatchNorm."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            eval_batch_norms(self)
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            stem = ['stem'] if self.deep_stem else ['conv1', self.norm1_name]
            freeze(getattr(self, name) for name in stem + self.res_layers[: self.frozen_stages])


def _default_init_cfg() -> list[dict]:
    return [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
    ]
