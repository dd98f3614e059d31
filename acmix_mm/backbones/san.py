"""SAN-ACmix: a self-attention network whose patch-wise attention layers are ACmix layers."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, nn

from ..layers import PatchwiseACmix
from ..layers.path_mix import PathWeights
from ..registry import MODELS
from .common import check_stages, eval_batch_norms, freeze, recompute
from .loading import accept_checkpoints


class ACmixSANBlock(BaseModule):
    """Pre-activation bottleneck: norm, ReLU, ACmix, norm, ReLU, 1x1 convolution, and a shortcut.

    Args:
        channels: C, a multiple of 32; queries and keys have C / 16, values C / 4 channels.
        acmix_cfg: Other arguments of :class:`acmix_mm.layers.PatchwiseACmix`.
        norm_cfg: Of the norms.
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
        init_cfg: Of :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        channels: int,
        acmix_cfg: dict,
        norm_cfg: dict = dict(type='BN'),
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
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
        in_channels: C_in.
        channels: C.
        num_blocks: Number of blocks.
        norm_cfg: Of the norms.
        block_cfg: Other arguments of :class:`ACmixSANBlock`.
        init_cfg: Of :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_blocks: int,
        norm_cfg: dict,
        block_cfg: dict,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.blocks = Sequential(
            *(ACmixSANBlock(channels, norm_cfg=norm_cfg, **block_cfg) for _ in range(num_blocks))
        )
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H // 2, W // 2)."""
        return self.relu(self.norm(self.blocks(self.conv(self.pool(x)))))


@MODELS.register_module()
class ACmixSAN(BaseModule):
    """Self-attention network whose patch-wise attention layers are ACmix layers.

    SAN-10/15/19 with ACmix of Pan et al., CVPR 2022; SAN is the patch-wise network of
    Zhao et al., "Exploring Self-attention for Image Recognition", CVPR 2020 (Table 1). Its five
    stages have strides 2, 4, 8, 16 and 32; the last four, of 256 to 2048 channels with the default
    ``base_channels``, stand where those of a ResNet-50 do.

    Args:
        depth: 10, 15 or 19.
        in_channels: Of the image.
        base_channels: C of the stem and of the first stage, a multiple of 32; the next stage has
            4 C, and every later one doubles it.
        kernels_att: Side of the attention window of each stage, in pixels, odd.
        out_indices: Stages whose outputs are returned.
        frozen_stages: Stem and stages up to this one (1 = first stage, 0 = stem alone) keep their
            weights and stay in eval mode; -1 freezes none.
        norm_cfg: Of the norms.
        norm_eval: Keep the running statistics of BatchNorm as they are while training.
        num_conv_groups: See :class:`acmix_mm.layers.PatchwiseACmix`.
        path_weights: Likewise.
        with_cp: Recompute blocks in the backward pass instead of keeping their activations.
        warm_start: Start at alpha = 1, beta = 0 where a plain SAN is loaded.
        init_cfg: Of :class:`mmengine.model.BaseModule`. ``dict(type='Pretrained', ...)`` takes our
            checkpoints and plain patch-wise SANs of the authors.

    Raises:
        ValueError: ``depth`` is none of these, ``base_channels`` is no multiple of 32, or arguments
            of the stages do not fit together.

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
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        num_conv_groups: int = 1,
        path_weights: PathWeights = 'learned',
        with_cp: bool = False,
        warm_start: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if depth not in self.blocks_of_depth:
            raise ValueError(f'ACmixSAN: depth must be in {[*self.blocks_of_depth]}, got {depth!r}')
        if base_channels % 32:
            raise ValueError(
                f'ACmixSAN: base_channels must be a multiple of 32, got {base_channels}'
            )
        blocks = self.blocks_of_depth[depth]
        check_stages('ACmixSAN', len(blocks), out_indices, frozen_stages, kernels_att=kernels_att)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        self.stem = ConvModule(in_channels, base_channels, 1, norm_cfg=norm_cfg)
        self.stages = ModuleList()
        channels_in = base_channels
        for i, num_blocks in enumerate(blocks):
            channels = base_channels * 2 ** (i + 1) if i else base_channels
            acmix_cfg = dict(
                kernel_att=kernels_att[i],
                num_conv_groups=num_conv_groups,
                path_weights=path_weights,
            )
            block_cfg = dict(acmix_cfg=acmix_cfg, with_cp=with_cp)
            self.stages.append(
                ACmixSANStage(channels_in, channels, num_blocks, norm_cfg, block_cfg)
            )
            channels_in = channels
        self._freeze()
        accept_checkpoints(self, 'ACmixSAN', warm_start)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the stages asked for.

        Args:
            x: ``(B, in_channels, H, W)`` of at least 32x32 pixels.

        Returns:
            tuple[Tensor]: One ``(B, C_i, H_i, W_i)`` for each stage i of ``out_indices``; ``H_i``
            is H / 2, / 4, / 8, / 16, / 32, rounded down after each stage.

        Raises:
            ValueError: The image is too small.
        """
        smallest = 2 ** len(self.stages)
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f'ACmixSAN: images must have at least {smallest}x{smallest} pixels, '
                f'got {x.shape[2]}x{x.shape[3]}'
            )
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'ACmixSAN':
        """Switch to training, but for frozen stages and, with ``norm_eval``, BatchNorm."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            eval_batch_norms(self)
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            freeze([self.stem, *self.stages[: self.frozen_stages]])
