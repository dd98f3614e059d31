"""What the operators accept, and what each backend can run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu, triton_attention


def check_odd(name: str, value: int) -> None:
    """Raise unless ``value`` is a positive odd integer."""
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f'{name} must be a positive odd integer, got {value!r}')


def check_positive(name: str, value: int) -> None:
    """Raise unless ``value`` is a positive integer."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a positive integer, got {value!r}')


def _check_alike(op: str, **tensors: Tensor) -> None:
    """Raise unless all tensors are floating point, of one dtype and on one device."""
    (first, reference), *_ = tensors.items()
    if not reference.is_floating_point():
        raise TypeError(f'{op}: {first} must be a floating-point tensor, got {reference.dtype}')
    for name, tensor in tensors.items():
        for what in ('dtype', 'device'):
            if getattr(tensor, what) != getattr(reference, what):
                raise TypeError(
                    f'{op}: {name} and {first} must have the same {what}, '
                    f'got {getattr(tensor, what)} and {getattr(reference, what)}'
                )


def check_neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> None:
    """Raise one clear error for inputs that do not fit together."""
    op = 'neighborhood_attention'
    check_odd(f'{op}: kernel_size', kernel_size)
    check_positive(f'{op}: stride', stride)
    check_positive(f'{op}: dilation', dilation)
    _check_alike(op, q=q, k=k, v=v)
    if k.dim() != 5 or 0 in k.shape[1:]:
        raise ValueError(f'{op}: k must be a non-empty (B, N, D, H, W), got {tuple(k.shape)}')
    if v.shape != k.shape:
        raise ValueError(
            f'{op}: v must have the shape of k, got {tuple(v.shape)} and {tuple(k.shape)}'
        )
    # Written as torch does for slices: torch.export must find both equal for sizes left open.
    expected = (*k.shape[:3], *((size + stride - 1) // stride for size in k.shape[3:]))
    if q.shape != expected:
        raise ValueError(
            f'{op}: with k of shape {tuple(k.shape)} and stride {stride}, q must have shape '
            f'{expected} (one query per window), got {tuple(q.shape)}'
        )


def check_neighborhood_aggregation(weights: Tensor, v: Tensor, kernel_size: int) -> None:
    """Raise one clear error for inputs that do not fit together."""
    op = 'neighborhood_aggregation'
    check_odd(f'{op}: kernel_size', kernel_size)
    _check_alike(op, weights=weights, v=v)
    if v.dim() != 4 or 0 in v.shape[1:]:
        raise ValueError(f'{op}: v must be a non-empty (B, C, H, W), got {tuple(v.shape)}')
    batch_size, channels, height, width = v.shape
    groups = weights.shape[1] if weights.dim() == 5 else 0
    expected = (batch_size, groups, kernel_size**2, height, width)
    if groups == 0 or weights.shape != expected or channels % groups:
        raise ValueError(
            f'{op}: with v of shape {tuple(v.shape)} and kernel_size={kernel_size}, weights must '
            f'have shape ({batch_size}, G, {kernel_size**2}, {height}, {width}) with G a divisor '
            f'of {channels}, got {tuple(weights.shape)}'
        )


def check_pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor, parts: int) -> None:
    """Raise one clear error for inputs that do not fit together."""
    op = 'pointwise_conv'
    check_positive(f'{op}: parts', parts)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f'{op}: x must be a non-empty (B, C_in, H, W), got {tuple(x.shape)}')
    outputs = len(weight) if weight.dim() == 2 and weight.shape[1] == x.shape[1] else 0
    if outputs == 0 or outputs % parts:
        raise ValueError(
            f'{op}: weight must be (C_out, {x.shape[1]}) for x of shape {tuple(x.shape)}, with '
            f'C_out a multiple of parts={parts}, got {tuple(weight.shape)}'
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f'{op}: bias must have shape ({len(weight)},), got {tuple(bias.shape)}')


def check_shift_conv(
    parts: Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int,
    dilation: int,
) -> None:
    """Raise one clear error for inputs that do not fit together."""
    op = 'shift_conv'
    check_positive(f'{op}: stride', stride)
    check_positive(f'{op}: dilation', dilation)
    shapes = [tuple(maps.shape) for maps in parts]
    if not parts or any(len(shape) != 5 or 0 in shape[1:] for shape in shapes):
        raise ValueError(f'{op}: maps must be a non-empty (B, M, G, H, W), got {_listed(shapes)}')
    # Lists, not a set: sizes that torch.export leaves open cannot be hashed.
    if any([shape[0], *shape[2:]] != [shapes[0][0], *shapes[0][2:]] for shape in shapes):
        raise ValueError(f'{op}: tensors of maps may differ in M only, got {_listed(shapes)}')
    _check_alike(op, **{f'maps[{i}]': maps for i, maps in enumerate(parts)})
    if kernel.dim() != 5 or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f'{op}: kernel must be (P, C, k*k, k, k), got {tuple(kernel.shape)}')
    num_maps, groups = sum(shape[1] for shape in shapes), shapes[0][2]
    pairs, channels, _, _, size = kernel.shape
    check_odd(f'{op}: kernel side', int(size))  # a tensor while torch.jit traces
    if kernel.shape[2] != size**2 or channels % groups:
        raise ValueError(
            f'{op}: kernel must be (P, C, k*k, k, k) with C divisible by the {groups} channels of '
            f'a map, got {tuple(kernel.shape)}'
        )
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        'fc_weight': (fc_weight, (pairs, size**2, num_maps)),
    }
    if fc_bias is not None:
        expected['fc_bias'] = (fc_bias, (pairs, size**2))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f'{op}: {name} must have shape {shape} for {num_maps} maps and a kernel of shape '
                f'{tuple(kernel.shape)}, got {tuple(tensor.shape)}'
            )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ', '.join(map(str, shapes)) or 'none'


def can_run_reference(*tensors: Tensor, raise_error: bool = False) -> bool:
    """The definition runs wherever torch does."""
    return True


def can_run_tiled(*tensors: Tensor, raise_error: bool = False) -> bool:
    """Tiles need nothing beyond ``F.scaled_dot_product_attention``, which every device has."""
    return True


def can_run_composed(*tensors: Tensor, raise_error: bool = False) -> bool:
    """A grouped convolution runs wherever torch does."""
    return True


def can_run_cpu(*tensors: Tensor, raise_error: bool = False) -> bool:
    """The compiled kernels run where they were built, on CPU tensors."""
    reason = cpu.MISSING
    if reason is None and any(tensor.device.type != 'cpu' for tensor in tensors):
        reason = f'the tensors must be on the CPU, got {tensors[0].device}'
    return _verdict('cpu', reason, raise_error)


def can_run_pointwise_cpu(*tensors: Tensor, raise_error: bool = False) -> bool:
    """The compiled matrix product is for single and double precision: oneDNN is best for half."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        names = ', '.join(sorted(map(str, dtypes)))
        reason = f'the tensors must all be float32 or all float64, got {names}'
        return _verdict('cpu', reason, raise_error)
    if torch.is_autocast_enabled('cpu'):
        return _verdict('cpu', 'autocast wants half precision', raise_error)
    return can_run_cpu(*tensors, raise_error=raise_error)


def can_run_torch(*tensors: Tensor, raise_error: bool = False) -> bool:
    """A convolution runs wherever torch does."""
    return True


_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def can_run_triton(*tensors: Tensor, raise_error: bool = False) -> bool:
    """The Triton kernels run on NVIDIA GPUs from Ampere on, or in Triton's interpreter."""
    reason, tensor = triton_attention.MISSING, tensors[0]
    if reason is None and tensor.dtype not in _TRITON_DTYPES:
        names = ', '.join(map(str, _TRITON_DTYPES))
        reason = f'the dtype must be one of {names}, got {tensor.dtype}'
    if reason is None and triton_attention.INTERPRETED:
        if tensor.dtype == torch.bfloat16:
            reason = "Triton's interpreter multiplies bfloat16 wrongly"
    elif reason is None:
        if tensor.device.type != 'cuda' or torch.version.hip:
            reason = f'the tensors must be on an NVIDIA GPU, got {tensor.device}'
        elif (capability := torch.cuda.get_device_capability(tensor.device)) < (8, 0):
            reason = f'the GPU must have compute capability 8.0 or higher, got {capability}'
    return _verdict('triton', reason, raise_error)


def _verdict(backend: str, reason: str | None, raise_error: bool) -> bool:
    if reason is not None and raise_error:
        raise RuntimeError(f'backend {backend!r} cannot run: {reason}')
    return reason is None
