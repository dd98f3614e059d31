# SPDX-License-Identifier: Apache-2.0
"""The public operators. Each checks its arguments, chooses a backend and calls it."""

from collections.abc import Sequence

from torch import Tensor

from . import checks
from .autocast import autocast_to_lower_precision
from .backends.registry import run
from .overrides import overridable
from .projection import Projection


@overridable
@autocast_to_lower_precision()
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of every query to the ``kernel_size x kernel_size`` window around its pixel.

    ``out[i] = sum_j softmax_j(scale * q[i] . k[j]) v[j]``, j over the window of pixel
    ``stride * i``, with steps of ``dilation``. k and v are reflection-padded
    (:func:`numpy.pad`'s ``reflect``), so every window is full. This is the attention path of
    ResNet-ACmix (Pan et al., CVPR 2022); its relative position enters as ``k - p``.

    Args:
        q: ``(B, N, D, ceil(H / stride), ceil(W / stride))``, N heads of D channels.
        k: ``(B, N, D, H, W)``.
        v: ``(B, N, D, H, W)``.
        kernel_size: Window side K in pixels, odd.
        stride: Pixels between the windows of neighboring queries.
        dilation: Pixels between neighboring keys of a window.
        scale: Factor of the logits; ``D ** -0.5`` if None.
        backend: One of ``available_backends('neighborhood_attention')``. None (default) means the
            one set by :func:`use_backend`, or else the best that can take the tensors.

    Returns:
        Tensor: The shape of q.

    Raises:
        ValueError: Shapes, ``kernel_size``, ``stride`` or ``dilation`` do not fit, or there is no
            such backend.
        TypeError: The tensors are not floating point, or their dtypes or devices differ.
        RuntimeError: The backend asked for cannot run on this device or was not built.

    Examples:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 4, 8, 9, 5).unbind()
        >>> neighborhood_attention(q, k, v, kernel_size=7).shape
        torch.Size([2, 4, 8, 9, 5])
    """
    checks.check_neighborhood_attention(q, k, v, kernel_size, stride, dilation)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return run('neighborhood_attention', backend, q, k, v, kernel_size, stride, dilation, scale)


@overridable
@autocast_to_lower_precision()
def neighborhood_aggregation(
    weights: Tensor, v: Tensor, kernel_size: int, backend: str | None = None
) -> Tensor:
    """Sum the ``kernel_size x kernel_size`` window around every pixel with given weights.

    ``out[c, i] = sum_j weights[c % G, j, i] v[c, i + j]``, with v reflection-padded. This is the
    aggregation of patch-wise self-attention (Zhao et al., "Exploring Self-attention for Image
    Recognition", CVPR 2020, Sec. 3.2 and 4.1); every C / G channels share their weights.

    Args:
        weights: Weights of the window positions, ``(B, G, K * K, H, W)``.
        v: Values, ``(B, C, H, W)``, C a multiple of G.
        kernel_size: Window side K in pixels, odd.
        backend: One of ``available_backends('neighborhood_aggregation')``, or None as for
            :func:`neighborhood_attention`.

    Returns:
        Tensor: ``(B, C, H, W)``.

    Raises:
        ValueError: Shapes or ``kernel_size`` do not fit, or there is no such backend.
        TypeError: The tensors are not floating point, or their dtypes or devices differ.

    Examples:
        >>> import torch
        >>> weights = torch.full((1, 2, 9, 4, 5), 1 / 9)
        >>> neighborhood_aggregation(weights, torch.ones(1, 16, 4, 5), 3).shape
        torch.Size([1, 16, 4, 5])
    """
    checks.check_neighborhood_aggregation(weights, v, kernel_size)
    return run('neighborhood_aggregation', backend, weights, v, kernel_size)


@overridable
@autocast_to_lower_precision('fc_weight', 'fc_bias', 'kernel')
def shift_conv(
    maps: Tensor | Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int = 1,
    dilation: int = 1,
    backend: str | None = None,
    projection: Projection | None = None,
) -> Tensor:
    """Mix maps by a fully connected layer, shift them by a grouped convolution and sum.

    The convolution path of ACmix (Pan et al., CVPR 2022, Fig. 2c): ``k*k`` mixtures of
    the M maps, one per kernel position, go through a zero-padded ``k x k`` convolution with one
    group per channel of a map. P pairs of (fully connected layer, convolution) are summed.
    Backends that multiply the weights with each other do so in the precision of the weights, also
    under autocast.

    Args:
        maps: ``(B, M, G, H, W)``, M maps of G channels; or several tensors, such as q, k and v,
            whose maps are taken one tensor after the other.
        fc_weight: ``(P, k*k, M)``.
        fc_bias: ``(P, k*k)``, added inside the image only, or None.
        kernel: ``(P, C, k*k, k, k)``, C a multiple of G, k odd.
        stride: Stride of the convolution in pixels.
        dilation: Dilation of the convolution in pixels.
        backend: One of ``available_backends('shift_conv')``, or None as for
            :func:`neighborhood_attention`.
        projection: The 1x1 projection that makes the maps, if there is one. A backend may then
            start from its input, and ``maps`` may hold the first ones of the M maps alone, at least
            one.

    Returns:
        Tensor: ``(B, C, ceil(H / stride), ceil(W / stride))``, in the dtype of the maps; channel c
        is of group ``c // (C / G)``.

    Raises:
        ValueError: Shapes, ``stride`` or ``dilation`` do not fit, or there is no such backend.
        TypeError: The maps are not floating point or their dtypes or devices differ; or those of
            the weights do, or the weights are less precise than the maps.
        RuntimeError: The backend asked for cannot run on these arguments or was not built.

    Examples:
        >>> import torch
        >>> maps = torch.randn(2, 12, 16, 9, 5)
        >>> shift_conv(maps, torch.randn(1, 9, 12), None, torch.randn(1, 64, 9, 3, 3)).shape
        torch.Size([2, 64, 9, 5])
    """
    maps = (maps,) if isinstance(maps, Tensor) else tuple(maps)
    arguments = (maps, fc_weight, fc_bias, kernel, stride, dilation, projection)
    checks.check_shift_conv(*arguments)
    return run('shift_conv', backend, *arguments)


@overridable
@autocast_to_lower_precision()
def pointwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, chunks: int = 1, backend: str | None = None
) -> tuple[Tensor, ...]:
    """Convolve with a 1x1 kernel and return the result in chunks: queries, keys and values.

    The first stage of ACmix (Pan et al., CVPR 2022, Sec. 4.1).

    Args:
        x: ``(B, C_in, H, W)``.
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)``.
        chunks: Number of results, a divisor of C_out.
        backend: One of ``available_backends('pointwise_conv')``, or None as for
            :func:`neighborhood_attention`.

    Returns:
        tuple[Tensor, ...]: ``chunks`` tensors ``(B, C_out / chunks, H, W)``.

    Raises:
        ValueError: Shapes or ``chunks`` do not fit, or there is no such backend.
        RuntimeError: The backend asked for cannot run on these tensors or was not built.

    Examples:
        >>> import torch
        >>> q, k, v = pointwise_conv(
        ...     torch.rand(2, 3, 5, 6), torch.rand(24, 3), torch.rand(24), chunks=3)
        >>> q.shape
        torch.Size([2, 8, 5, 6])
    """
    checks.check_pointwise_conv(x, weight, bias, chunks)
    return run('pointwise_conv', backend, x, weight, bias, chunks)


@overridable
@autocast_to_lower_precision()
def window_attention(
    qkv: Tensor,
    bias: Tensor,
    window_size: int,
    masks: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention in windows that divide a map, with a bias for each pair of their pixels.

    ``out[i] = sum_j softmax_j(scale * q[i] . k[j] + bias[i, j]) v[j]``, j over the window that
    contains pixel i. This is the attention path of Swin-ACmix (Liu et al., "Swin Transformer",
    ICCV 2021, Eq. 4), which shifts its windows by rolling the map: ``masks`` keep apart what
    rolling brings together.

    Args:
        qkv: Queries, keys and values as a linear projection writes them, ``(B, H, W, 3, N, D)``,
            N heads of D channels; H and W are multiples of ``window_size``.
        bias: ``(N, M * M, M * M)``, for queries and keys; the pixels of a window are taken row by
            row.
        window_size: Window side M in pixels.
        masks: What is added to the logits besides, for the rows and for the columns of the pixels
            of a window. A pair of ``(A, M, M)`` and ``(A', M, M)``, for the rows, or columns, of
            queries and of keys in the last A rows and the last A' columns of windows. None
            (default) for no masks.
        scale: Factor of ``q . k``; ``D ** -0.5`` if None.
        dropout_p: Dropout probability of the attention weights. Default: 0.
        backend: One of ``available_backends('window_attention')``, or None as for
            :func:`neighborhood_attention`.

    Returns:
        Tensor: ``(B, H, W, N, D)``.

    Raises:
        ValueError: Shapes or ``window_size`` do not fit, or there is no such backend.
        TypeError: The tensors are not floating point, or their dtypes or devices differ.
        RuntimeError: The backend asked for cannot run on these arguments or was not built.

    Examples:
        >>> import torch
        >>> window_attention(torch.randn(2, 14, 21, 3, 4, 8), torch.randn(4, 49, 49), 7).shape
        torch.Size([2, 14, 21, 4, 8])
    """
    checks.check_window_attention(qkv, bias, window_size, masks)
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    return run('window_attention', backend, qkv, bias, window_size, masks, scale, dropout_p)
