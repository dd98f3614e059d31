"""Exported layers are right for maps of other sizes than the example, in every respect."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from versions import needs_torch

from acmix_mm.layers import ACmix, PatchwiseACmix, WindowACmix
from acmix_mm.ops import use_backend
from acmix_mm.ops.backends.registry import PORTABLE

WINDOW = partial(WindowACmix, 8, 2, window_size=4)
SIZES = ((24, 20), (19, 35), (8, 16), (13, 17), (5, 30), (2, 3), (4, 4))


def randomized(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer.double().eval()


@needs_torch('2.7', 'torch.compiler.is_exporting')
@pytest.mark.parametrize(
    ('make', 'axes', 'smallest'),
    [
        (partial(ACmix, 8, 8, stride=2), (2, 3), 3),
        (partial(ACmix, 8, 8, kernel_att=3, dilation=2), (2, 3), 2),
        (partial(PatchwiseACmix, 8, 2, 8), (2, 3), 2),
        # The number of windows stays open if there are several along each axis.
        (partial(WINDOW, shift_size=1), (1, 2), 5),
        (partial(WINDOW, shift_size=3, roll_conv=False), (1, 2), 5),
        (partial(WINDOW, shift_size=2, mask_padding=True), (1, 2), 5),
        (partial(WINDOW, mask_padding=True), (1, 2), 5),
        (partial(WINDOW, shift_size=2, shift_small_maps=True), (1, 2), 5),
    ],
    ids=[
        'stride', 'dilation', 'patch-wise', 'shifted', 'unrolled', 'masked padding', 'no shift',
        'small maps',
    ],
)  # fmt: skip
def test_sizes(make, axes, smallest):
    torch.manual_seed(0)
    layer = randomized(make())

    def image(height: int, width: int) -> torch.Tensor:
        shape = (2, 8, height, width) if axes == (2, 3) else (2, height, width, 8)
        return torch.randn(shape, dtype=torch.float64)

    shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    with torch.no_grad(), ExitStack() as stack:
        for operator, backend in PORTABLE.items():
            stack.enter_context(use_backend(backend, operator))
        program = torch.export.export(layer, (image(40, 48),), dynamic_shapes=shapes, strict=False)
    run = program.module()
    for size in SIZES:
        x = image(*size)
        if min(size) < smallest:
            with pytest.raises(
                (RuntimeError, AssertionError), match=r'Expected input|Guard failed'
            ):
                run(x)
        else:
            torch.testing.assert_close(run(x), layer(x), msg=str(size))
