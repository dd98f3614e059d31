"""ResNet-ACmix: bottlenecks whose 3x3 convolution is an ACmix layer."""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from ..layers import ACmix
from ..registry import MODELS
from .common import check_stages, eval_batch_norms, freeze, recompute
from .loading import accept_checkpoints


class ACmixBottleneck(BaseModule):
    """1x1 convolution, ACmix (or a 3x3 convolution), 1x1 convolution, and a shortcut.

    Args:
        in_channels: C_in.
        channels: C of the middle layer; the block returns 4 C.
        stride: In pixels.
        dilation: Of the middle layer, in pixels.
        downsample: Shortcut to 4 C channels and the new size; None where nothing changes.
        style: ``'pytorch'`` strides in the middle layer, ``'caffe'`` in the first.
        acmix_cfg: Arguments of :class:`acmix_mm.layers.ACmix`; None keeps a 3x3 convolution.
        conv_cfg: Of the convolutions.
        norm_cfg: Of the norms.
        drop_path_rate: Probability of dropping the residual branch of an image.
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
        init_cfg: Of :class:`mmengine.model.BaseModule`.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        acmix_cfg: dict | None = None,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN'),
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
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
            self.conv2 = ACmix(
                channels, channels, stride=middle_stride, dilation=dilation, **acmix_cfg
            )
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
    mmseg's ResNet, so that an existing config needs another ``type`` and no more.

    Args:
        depth: 26, 38, 50 or 101.
        in_channels: Of the image.
        stem_channels: Of the stem; ``base_channels`` if None.
        base_channels: C of the first stage; every later stage doubles it.
        num_stages: 1 to 4.
        strides: Of the first block of each stage, in pixels.
        dilations: Of the ACmix layers of each stage, in pixels.
        out_indices: Stages whose outputs are returned.
        style: ``'pytorch'`` strides in the ACmix layer, ``'caffe'`` in the 1x1 before it.
        deep_stem: Three 3x3 convolutions for the 7x7 (ResNet-C).
        avg_down: Average pooling before the 1x1 of a strided shortcut (ResNet-D, with
            ``deep_stem``).
        contract_dilation: Halve the dilation of the first block of a dilated stage.
        frozen_stages: Stem and stages up to this one (1 = first stage, 0 = stem alone) keep their
            weights and stay in eval mode; -1 freezes none.
        conv_cfg: Of the convolutions that are not ACmix.
        norm_cfg: Of the norms.
        norm_eval: Keep the running statistics of BatchNorm as they are while training.
        stage_with_acmix: Stages with ACmix; the others keep 3x3 convolutions.
        acmix_cfg: Arguments of :class:`acmix_mm.layers.ACmix` for all of them, such as
            ``dict(num_conv_groups=2)`` or ``dict(path_weights=(1, 0))``.
        drop_path_rate: Of the last block; it grows linearly from 0 over the blocks.
        with_cp: Recompute blocks in the backward pass instead of keeping their activations.
        zero_init_residual: Start every residual branch at 0.
        pretrained: A checkpoint; short for ``init_cfg=dict(type='Pretrained', checkpoint=...)``.
            mmseg's segmentors hand their own ``pretrained`` on to it.
        init_cfg: Of :class:`mmengine.model.BaseModule`. ``dict(type='Pretrained', ...)`` takes our
            checkpoints, released ResNet-ACmix classifiers and, except for the 3x3 convolutions,
            plain ResNets of torchvision.

    Raises:
        ValueError: An argument is out of its range, or lengths do not match ``num_stages``.

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
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        stage_with_acmix: Sequence[bool] = (True, True, True, True),
        acmix_cfg: dict | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if pretrained and init_cfg:
            raise ValueError(
                f'ACmixResNet: pretrained={pretrained!r} and init_cfg={init_cfg!r} both say where '
                'to start; set one of them to None'
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
        drop_path_rates = iter(rates.tolist())
        zero_init = dict(type='Constant', val=0, override=dict(name='norm3'))
        common: dict[str, Any] = dict(
            style=style,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            init_cfg=zero_init if zero_init_residual and not init_cfg else None,
        )
        channels_in = stem_channels
        self.stages = []
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
                        drop_path_rate=next(drop_path_rates),
                        **common,
                    )
                )
                channels_in = channels * ACmixBottleneck.expansion
            self.stages.append(f'layer{i + 1}')
            self.add_module(self.stages[-1], stage)
        self._freeze()
        # No warm start: no ACmix layer computes what a plain 3x3 convolution did.
        accept_checkpoints(self, 'ACmixResNet', warm_start=False)

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
        """Features of the stages asked for.

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
        for i, name in enumerate(self.stages):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'ACmixResNet':
        """Switch to training, but for frozen stages and, with ``norm_eval``, BatchNorm."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            eval_batch_norms(self)
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            stem = ['stem'] if self.deep_stem else ['conv1', self.norm1_name]
            freeze(getattr(self, name) for name in stem + self.stages[: self.frozen_stages])


def _default_init_cfg() -> list[dict]:
    return [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
    ]
