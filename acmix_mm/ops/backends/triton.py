# SPDX-License-Identifier: Apache-2.0
"""Neighbourhood attention by Triton kernels, for NVIDIA GPUs.

The kernels are imported when this backend is first asked for, not with acmix-mm.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..transforms import NO_TRANSFORMS, transforms_active

MINIMUM = (3, 5)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@cache
def missing() -> str | None:
    """Return the reason why the kernels cannot be imported, or None if they can."""
    try:
        import triton
    except Exception as error:  # a broken installation raises errors of any type
        return f'triton cannot be imported ({type(error).__name__}: {error}); `pip install triton`'
    if tuple(map(int, triton.__version__.split('.')[:2])) < MINIMUM:
        return f'triton {triton.__version__} is installed, and 3.5 or newer is needed'
    return None


def _kernels() -> Any:
    from . import triton_kernels

    return triton_kernels


def cannot_run(tensor: Tensor, *_: Any) -> str | None:
    """Return why the kernels cannot take these arguments, or None if they can.

    They need an NVIDIA GPU of the Ampere generation or later, or Triton's interpreter.
    """
    if (reason := missing()) is not None:
        return reason
    if tensor.dtype not in DTYPES:
        names = ', '.join(map(str, DTYPES))
        return f'the dtype must be one of {names}, got {tensor.dtype}'
    if transforms_active():
        return NO_TRANSFORMS
    if _kernels().INTERPRETED:
        wrong = tensor.dtype == torch.bfloat16
        return "Triton's interpreter multiplies bfloat16 wrongly" if wrong else None
    if tensor.device.type != 'cuda' or torch.version.hip:
        return f'the tensors must be on an NVIDIA GPU, got {tensor.device}'
    capability = torch.cuda.get_device_capability(tensor.device)
    if capability < (8, 0):
        return f'the GPU must have compute capability 8.0 or higher, got {capability}'
    return None


def by_name_only(*_: Any) -> str | None:
    """Return why automatic choice does not take the kernels, or None if it does."""
    return "Triton's interpreter is for tests" if _kernels().INTERPRETED else None


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`."""
    return _kernels().neighborhood_attention(q, k, v, *window)


def acmix_layer(*tensors: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """See :func:`acmix_mm.ops.gpu_layer.gpu_layer`."""
    from . import triton_layer

    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return triton_layer.run(*tensors, kernel_size, stride, dilation, keep)[0]
