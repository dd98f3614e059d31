"""The convolution path from the input of a layer on, for tests of all backends."""

import torch.nn.functional as F
from torch import Tensor

from acmix_mm.ops import Projection, available_backends, shift_conv

#: Backends that do not need to know the projection that the maps come from.
FROM_MAPS = tuple(name for name in available_backends('shift_conv') if name != 'dense')


def project_and_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int = 1,
    dilation: int = 1,
    backend: str | None = None,
    given: int | None = None,
) -> Tensor:
    """Project x to maps, of which the first ones are given to the operator, by default all."""
    num_maps = fc_weight.shape[-1]
    channels = len(weight) // num_maps
    rows = channels * (num_maps if given is None else given)
    first = F.linear(x.movedim(1, -1), weight[:rows], None if bias is None else bias[:rows])
    maps = first.movedim(-1, 1).unflatten(1, (-1, channels))
    arguments = (maps, fc_weight, fc_bias, kernel, stride, dilation)
    return shift_conv(*arguments, backend=backend, projection=Projection(x, weight, bias))
