# SPDX-License-Identifier: Apache-2.0
"""What is compared: ACmix, the released formula, plain convolutions and plain backbones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_mm.layers import ACmix
from acmix_mm.layers.acmix import coordinates
from acmix_mm.ops import available_backends, neighborhood_attention, pointwise_conv, shift_conv
from acmix_mm.ops.padding import reflect_pad2d
from acmix_mm.registry import MODELS

FORWARD, BOTH = 'forward', 'forward + backward'
# Middle layers of ResNet-50's stages on an 800x1336 image: (C, H, W).
STAGES = ((64, 200, 334), (128, 100, 167), (256, 50, 84), (512, 25, 42))
MATMUL_SIDE = 1024
MATMUL_FLOPS = 2 * MATMUL_SIDE**3
# Candidate beside the backends of an operator: a matrix product, which they are compared with.
ROOFLINE = 'roofline'


class ReleasedACmix(nn.Module):
    """The arithmetic of the released ResNet-ACmix layer, with the parameters of an ACmix layer.

    Keys, values and positions are unfolded to k_a^2 copies, the fully connected layer makes k_c^2
    maps, and a grouped convolution shifts and sums them.

    Args:
        layer: The layer whose parameters are used.
    """

    def __init__(self, layer: ACmix) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        layer = self.layer
        stride, heads, channels = layer.stride[0], layer.num_heads, layer.head_channels
        projections = zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
        q, k, v = (F.conv2d(x, weight, bias) for weight, bias in projections)
        maps = [t.unflatten(1, (heads, channels)) for t in (q, k, v)]
        (position,) = layer.position(coordinates(*x.shape[-2:], x.dtype, x.device))

        query, key, value = (t.flatten(0, 1) for t in maps)
        query = query[..., ::stride, ::stride] * channels**-0.5
        nearby = self._unfold(key) + position[..., None, ::stride, ::stride]
        weights = (query.unsqueeze(2) * (nearby - self._unfold(position))).sum(1).softmax(1)
        attention = (weights.unsqueeze(1) * self._unfold(value)).sum(2)
        attention = attention.view(len(x), -1, *attention.shape[-2:])

        fc = layer.shift_conv.fc_weight[0]
        mixed = F.conv2d(torch.cat(maps, 1).flatten(-2), fc[..., None, None])
        mixed = mixed.transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])
        padding = layer.kernel_size[0] // 2
        kernel = layer.shift_conv.kernel
        convolution = F.conv2d(mixed, kernel, None, stride, padding, groups=channels)
        return layer.mix.alpha * attention + layer.mix.convolution_weight() * convolution

    def _unfold(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, K * K, Ho, Wo)."""
        size, stride = self.layer.kernel_att, self.layer.stride[0]
        height, width = (-(-side // stride) for side in x.shape[-2:])
        unfolded = F.unfold(reflect_pad2d(x, size // 2), size, stride=stride)
        return unfolded.view(*x.shape[:2], size**2, height, width)


class Autocast(nn.Module):
    """A module that runs under autocast to bfloat16.

    Args:
        module: The module, whose parameters are float32.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Run the module; the shapes are those of the module."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.module(x)


class Operator(nn.Module):
    """An operator with random weights, run by one backend.

    Args:
        name: Name of the operator.
        backend: Name of the backend.
        channels: Number of channels of the layer that would call the operator.
        heads: Number of attention heads of that layer. Default: 4.
    """

    def __init__(self, name: str, backend: str, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.name, self.backend, self.head_channels = name, backend, channels // heads
        if name == 'shift_conv':
            self.fc_weight = nn.Parameter(torch.randn(1, 9, 3 * heads))
            self.kernel = nn.Parameter(torch.randn(1, channels, 9, 3, 3))
        elif name == 'pointwise_conv':
            self.weight = nn.Parameter(torch.randn(3 * channels, channels))
            self.bias = nn.Parameter(torch.randn(3 * channels))

    def forward(self, maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, 3 C, H, W) -> (B, C, H, W); pointwise_conv: (B, C, H, W) -> three such tensors."""
        if self.name == 'pointwise_conv':
            return pointwise_conv(maps, self.weight, self.bias, 3, backend=self.backend)
        maps = maps.unflatten(1, (-1, self.head_channels))
        if self.name == 'shift_conv':
            return shift_conv(maps, self.fc_weight, None, self.kernel, backend=self.backend)
        q, k, v = maps.chunk(3, 1)
        return neighborhood_attention(q, k, v, 7, backend=self.backend).flatten(1, 2)


class Square(nn.Module):
    """The product of a matrix with itself, which comes close to a processor's peak FLOP/s."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, N) -> (N, N)."""
        return x @ x


class DetectorStep(nn.Module):
    """Forward pass of Mask R-CNN in training, on a random image of the size of its input.

    Args:
        backbone: Config of the backbone.
    """

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        from mmdet.registry import MODELS as DETECTORS
        from mmengine.config import Config

        cfg = Config.fromfile(Path(__file__).parents[1] / 'configs' / 'mask_rcnn_acmix.py')
        cfg.model.backbone = backbone
        self.detector = DETECTORS.build(cfg.model)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> the sum of all losses."""
        from mmdet.testing import demo_mm_inputs

        shape = [tuple(image.shape[1:])]
        data = demo_mm_inputs(1, shape, num_items=[8], with_mask=True)
        data = self.detector.data_preprocessor(data, training=True)
        losses = self.detector(**data, mode='loss')
        return self.detector.parse_losses(losses)[0]


Case = tuple[nn.Module, tuple[int, ...]]  # a candidate and the shape of its input


def layer_case(kind: str, channels: int, height: int, width: int) -> Case:
    """Build a layer.

    Its kind is ``'acmix'``, the same in ``'bfloat16'``, its formula in the ``'released'`` code, or
    ``'conv3x3'``.
    """
    torch.manual_seed(0)
    shape = (1, channels, height, width)
    if kind == 'conv3x3':
        return nn.Conv2d(channels, channels, 3, padding=1, bias=False), shape
    layer = ACmix(channels, channels)
    if kind == 'acmix':
        return layer, shape
    return dict(bfloat16=Autocast, released=ReleasedACmix)[kind](layer), shape


def operator_case(kind: str, name: str, channels: int, height: int, width: int) -> Case:
    """Build an operator with the backend ``kind``, or the matrix product for ``ROOFLINE``."""
    if kind == ROOFLINE:
        return Square(), (MATMUL_SIDE, MATMUL_SIDE)
    shape = (1, channels if name == 'pointwise_conv' else 3 * channels, height, width)
    return Operator(name, kind, channels), shape


def backbone_cfg(kind: str, family: str) -> dict:
    """Return the config of a backbone with ACmix (``kind='acmix'``), or of mmdet's original."""
    families: dict[str, tuple[dict, dict]] = dict(
        resnet=(dict(type='ACmixResNet', depth=50), dict(type='mmdet.ResNet', depth=50)),
        swin=(dict(type='ACmixSwin'), dict(type='mmdet.SwinTransformer')),
        pvt=(dict(type='ACmixPVT'), dict(type='mmdet.PyramidVisionTransformer')),
    )
    acmix, original = families[family]
    return acmix if kind == 'acmix' else original


def backbone_case(kind: str, family: str, height: int, width: int) -> Case:
    """Build a whole backbone with random weights."""
    torch.manual_seed(0)
    return MODELS.build(backbone_cfg(kind, family)), (1, 3, height, width)


def detector_case(kind: str, family: str, height: int, width: int) -> Case:
    """Build a training step of Mask R-CNN."""
    torch.manual_seed(0)
    cfg = backbone_cfg(kind, family) | dict(out_indices=(0, 1, 2, 3))
    return DetectorStep(cfg), (1, 3, height, width)


BUILDERS: dict[str, Callable[..., Case]] = dict(
    layer=layer_case, operator=operator_case, backbone=backbone_case, detector=detector_case
)


@dataclass(frozen=True)
class Comparison:
    """Candidates that are measured against each other.

    Attributes:
        suite: Suite that the comparison belongs to, a key of ``BUILDERS``.
        arguments: Arguments of the builder after the name of the candidate.
        candidates: Names of the candidates. The first one is the baseline of all ratios.
        modes: Modes to measure: forward, forward and backward, or both.
    """

    suite: str
    arguments: tuple
    candidates: tuple[str, ...]
    modes: tuple[str, ...] = (FORWARD, BOTH)

    def build(self, candidate: str) -> Case:
        """Build a candidate and return the module with the shape of its input."""
        return BUILDERS[self.suite](candidate, *self.arguments)

    def __str__(self) -> str:
        words = [word for word in self.arguments if isinstance(word, str)]
        sizes = [str(size) for size in self.arguments if not isinstance(size, str)]
        return ' '.join([self.suite, *words, 'x'.join(sizes)])


def comparisons(suites: Sequence[str], quick: bool) -> list[Comparison]:
    """List the comparisons of some suites, with maps of an eighth of the size if ``quick``."""
    shrink = 8 if quick else 1

    def sized(channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, height // shrink, width // shrink

    found = []
    for name in ('neighborhood_attention', 'shift_conv', 'pointwise_conv'):
        # Triton's kernels need a GPU, the definitions are not meant to be fast, and the dense
        # convolution does not start from the maps.
        others = ('reference', 'triton', 'dense', 'portable')
        backends = [b for b in available_backends(name) if b not in others]
        for stage in ((64, 128, 128), *STAGES):
            found.append(Comparison('operator', (name, *sized(*stage)), (*backends, ROOFLINE)))
    found += [
        # One other candidate at a time: the memory that the released formula frees would slow down
        # a third one.
        Comparison('layer', sized(*stage), ('acmix', other))
        for stage in ((64, 128, 128), *STAGES)
        for other in ('released', 'conv3x3')
    ]
    found += [
        Comparison('layer', sized(*stage), ('acmix', 'bfloat16'), (FORWARD,)) for stage in STAGES
    ]
    candidates = ('acmix', 'mmdet')
    found += [
        Comparison('backbone', ('resnet', 800 // shrink, 1344 // shrink), candidates),
        Comparison('backbone', ('swin', 448 // shrink, 672 // shrink), candidates),
        Comparison('backbone', ('pvt', 448 // shrink, 672 // shrink), candidates),
        Comparison('detector', ('resnet', 800 // shrink, 1344 // shrink), candidates, (BOTH,)),
    ]
    return [comparison for comparison in found if comparison.suite in suites]
