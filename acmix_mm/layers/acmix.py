# SPDX-License-Identifier: Apache-2.0
"""The sliding-window ACmix layer of ResNet-ACmix."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.released import SLIDING_WINDOW, accept_released_names
from ..ops import gpu_layer, neighborhood_attention
from ..ops.acmix_layer import acmix_layer, cannot_fuse
from ..ops.checks import check_odd, check_positive
from ..ops.size_cache import cached_per_size
from ..ops.torch_compat import register_load_state_dict_pre_hook
from .base_module import BaseModule
from .fx import leaf_of_fx
from .path_mix import PathMix
from .projection import PointwiseConv, is_hooked, is_known_by_weights
from .recompute import recompute
from .renamed import renamed_arguments
from .shift_conv import ShiftConv
from .types import OptMultiConfig, PathWeights


@renamed_arguments(num_conv_groups='num_conv_pairs')
class ACmix(BaseModule):
    """Sliding-window attention and convolution on one set of projections.

    ``alpha * attention + beta * shift_conv`` with both paths fed by the same 1x1 projections to
    queries, keys and values (Pan et al., "On the Integration of Self-Attention and Convolution",
    CVPR 2022, Fig. 2c). It stands where a ``k x k`` convolution stood, computes what the released
    ResNet layer computes, and loads its checkpoints.

    Args:
        in_channels: Number C_in of input channels.
        out_channels: Number C_out of output channels, a multiple of ``num_heads``. In the attention
            path channel c belongs to head ``c // (C_out / N)``; in the convolution path, to head
            ``c % N``, as in the released code.
        kernel_att: Side of the attention window in pixels, odd. Default: 7.
        num_heads: Number N of heads. Default: 4.
        kernel_conv: Side of the convolution kernel in pixels, odd. Default: 3.
        stride: Stride of the layer in pixels. Default: 1.
        dilation: Dilation of the attention window and of the convolution in pixels. Default: 1.
        num_conv_pairs: Number of pairs of fully connected layer and convolution that are summed.
            1 (default) is the released code; 2 gives the published parameter counts.
        path_weights: ``'learned'`` (default), ``'complementary'`` or a fixed pair such as
            ``(1, 0)``, see :class:`PathMix`.
        with_cp: Whether to keep little more than the input for the backward pass, if the input
            requires a gradient, and to compute the rest again there. On CPUs wide layers, too, then
            run as one operator, which repeats the projections and the weights of the attention (for
            its other conditions see :func:`acmix_mm.ops.acmix_layer.cannot_fuse`). Elsewhere the
            layer is computed twice, and so hooks of its parts are called twice. It adds nothing but
            time in a block that recomputes its activations anyway. Default: False.
        init_cfg: Initialization config, see :class:`mmengine.model.BaseModule`; applied after the
            layer's own initialization. Default: None.

    Raises:
        ValueError: ``out_channels`` is not a multiple of ``num_heads``, a kernel side is even, a
            size is not positive, or ``path_weights`` is unknown.

    Examples:
        >>> layer = ACmix(64, 128, stride=2)
        >>> layer(torch.randn(2, 64, 15, 20)).shape
        torch.Size([2, 128, 8, 10])
    """

    # What mmcv's ConvModule reads from the convolution that it builds.
    groups = 1
    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_att: int = 7,
        num_heads: int = 4,
        kernel_conv: int = 3,
        stride: int = 1,
        dilation: int = 1,
        num_conv_pairs: int = 1,
        path_weights: PathWeights = 'learned',
        with_cp: bool = False,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        check_odd(of='ACmix', kernel_att=kernel_att, kernel_conv=kernel_conv)
        check_positive(
            of='ACmix', in_channels=in_channels, out_channels=out_channels, num_heads=num_heads,
            stride=stride, dilation=dilation, num_conv_pairs=num_conv_pairs,
        )  # fmt: skip
        if out_channels % num_heads:
            raise ValueError(
                f'ACmix: out_channels must be a multiple of num_heads={num_heads}, '
                f'got {out_channels}'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_att = kernel_att
        self.num_heads = num_heads
        self.head_channels = out_channels // num_heads
        self.kernel_size = (kernel_conv, kernel_conv)
        self.stride = (stride, stride)
        self.dilation = (dilation, dilation)
        self.padding = (dilation * (kernel_conv // 2),) * 2
        self.with_cp = with_cp

        self.qkv = PointwiseConv(in_channels, 3 * out_channels, chunks=3)
        self.mix = PathMix(path_weights)
        if self.mix.uses_attention:
            self.position = PointwiseConv(2, self.head_channels)
        if self.mix.uses_convolution:
            self.shift_conv = ShiftConv(
                3 * num_heads,
                self.head_channels,
                out_channels,
                kernel_conv,
                stride,
                dilation,
                num_conv_pairs=num_conv_pairs,
            )
        register_load_state_dict_pre_hook(self, _accept_released_names)

    def init_weights(self) -> None:
        """Initialize as the released layer does, whatever a backbone's initializer did before."""
        if not self.is_init:
            for module in self.children():
                module.reset_parameters()
        super().init_weights()

    @leaf_of_fx
    def forward(self, x: Tensor) -> Tensor:
        """Mix both paths.

        Args:
            x: ``(B, C_in, H, W)``, H and W of any size.

        Returns:
            Tensor: ``(B, C_out, ceil(H / stride), ceil(W / stride))``; on CPUs contiguous,
            whatever the memory format of x is.
        """
        if self._is_made_of_its_parts() and self._cannot_fuse(x) is None:
            return self._run_fused(x)
        if self.with_cp and x.requires_grad:
            return recompute(self, self._run_unfused, x)
        return self._run_unfused(x)

    def _run_unfused(self, x: Tensor) -> Tensor:
        # The type of the device comes first: elsewhere nothing else is asked in each call.
        if x.device.type in gpu_layer.DEVICES and self._is_made_of_its_parts():
            weights: Any = self.weights_of_one_operator()
            if gpu_layer.cannot_run(x, *weights) is None:
                sizes: Any = (self.kernel_att, self.stride[0], self.dilation[0])
                return gpu_layer.gpu_layer(x, *weights, *sizes)
        return self._run_parts(x)

    def _run_parts(self, x: Tensor) -> Tensor:
        q, k, v = (maps.unflatten(1, (self.num_heads, -1)) for maps in self.qkv(x))
        # The convolution path comes first, so that the backward pass, which runs in reverse order,
        # does not hold its gradients while that of the attention takes the most memory.
        convolution = attention = None
        if self.mix.uses_convolution:
            beta = self.mix.convolution_weight()
            convolution = self.shift_conv((q, k, v), beta, x, self.qkv)
        if self.mix.uses_attention:
            attention = self._attend(q, k, v)
        return self.mix(convolution, attention)

    def _is_made_of_its_parts(self) -> bool:
        """Whether one operator for both paths with learned weights computes what the parts do.

        It does not see hooks, adapters and the like, which parts may have.
        """
        return (
            type(self.mix) is PathMix
            and 'alpha' in self.mix._parameters
            and self.mix.uses_attention
            and self.mix.uses_convolution
            and type(self.shift_conv) is ShiftConv
            and {'fc_weight', 'kernel'} <= self.shift_conv._parameters.keys()
            and self.shift_conv.fc_bias is None
            and self.shift_conv.stride == self.stride[0]
            and self.shift_conv.dilation == self.dilation[0]
            and type(self.qkv) is type(self.position) is PointwiseConv
            and is_known_by_weights(self.qkv)
            and is_known_by_weights(self.position)
            and not any(is_hooked(part) or 'forward' in vars(part) for part in self.children())
        )

    def _cannot_fuse(self, x: Tensor) -> str | None:
        reach = self.dilation[0] * (max(self.kernel_att, *self.kernel_size) // 2)
        parameters = self.parameters()
        return cannot_fuse(reach, self.stride[0], x, *parameters, save_memory=self.with_cp)

    def _run_fused(self, x: Tensor) -> Tensor:
        alpha = self.mix.alpha
        assert isinstance(alpha, Tensor), 'the weights of the paths are learned'
        fc_weight, _, kernel = self.shift_conv.weighed(self.mix.convolution_weight())
        return acmix_layer(
            x,
            self.qkv.weight.flatten(1),
            self.qkv.bias,
            self._position(x)[0],
            fc_weight,
            kernel,
            alpha,
            self.kernel_att,
            self.stride[0],
            self.dilation[0],
        )

    def weights_of_one_operator(self) -> tuple[Tensor, ...]:
        """Return the weights of :func:`acmix_mm.ops.gpu_layer.gpu_layer`, in its order."""
        qkv, conv, position = self.qkv, self.shift_conv, self.position
        alpha, beta = self.mix.alpha, self.mix.convolution_weight()
        assert isinstance(alpha, Tensor), 'the weights of the paths are learned'
        assert isinstance(beta, Tensor), 'the weights of the paths are learned'
        return (
            qkv.weight.flatten(1), qkv.bias, conv.fc_weight, conv.kernel, beta,
            position.weight.flatten(1), position.bias, alpha,
        )  # fmt: skip

    def _position(self, maps: Tensor) -> Tensor:
        """(..., H, W) -> (1, D, H, W)."""
        weight = self.position.weight
        size = maps.shape[-2:]
        (position,) = self.position(coordinates(*size, weight.dtype, weight.device))
        return position

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        if stride > 1:
            q = q[..., ::stride, ::stride]
        # The logit q_i . (k_j + p_i - p_j) contains q_i . p_i for every j: softmax cancels it.
        # Negate the small map: k - position would negate the full-size gradient instead.
        k = k + -self._position(k)
        return neighborhood_attention(q, k, v, self.kernel_att, stride, dilation).flatten(1, 2)


@cached_per_size
def coordinates(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pixel coordinates from -1 to 1 over the map, x then y, the input of the position map.

    Args:
        height: Height H of the map in pixels.
        width: Width W of the map in pixels.
        dtype: Data type of the map.
        device: Device on which the map is made; nothing is copied from the host.

    Returns:
        Tensor: ``(1, 2, H, W)``, shared by all callers with this size: do not write to it.

    Examples:
        >>> coordinates(1, 3, torch.float32, torch.device('cpu')).flatten(2).tolist()
        [[[-1.0, 0.0, 1.0], [-1.0, -1.0, -1.0]]]
    """
    # Quotients of integers need no double precision, which some devices lack, to be exact but for
    # one rounding. Not torch.linspace, for which torch.compile compiles every length anew.
    wide = torch.promote_types(dtype, torch.float32)
    x, y = (
        (2 * torch.arange(length, device=device) - last).to(wide) / last
        for length, last in ((width, max(width - 1, 1)), (height, max(height - 1, 1)))
    )
    return torch.stack(torch.meshgrid(x, y, indexing='xy')).unsqueeze(0).to(dtype)


def _accept_released_names(
    layer: ACmix, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Rename, in place, parameters of a released ResNet-ACmix layer to ours."""
    accept_released_names(state_dict, prefix, SLIDING_WINDOW)
