# SPDX-License-Identifier: Apache-2.0
"""Whether :mod:`torch.func` or forward-mode differentiation is at work."""

import torch
from torch.autograd import forward_ad

NO_TRANSFORMS = 'compiled operators have neither forward derivatives nor transforms of torch.func'


def transforms_active() -> bool:
    """Return whether a transform of :mod:`torch.func` or a level of forward-mode AD is active.

    Such calls must be made of torch's own operators alone, which have forward derivatives and
    batching rules. An operator of :mod:`torch.library` has none, and would return tangents of 0.

    Examples:
        >>> x = torch.ones(2)
        >>> torch.func.vmap(lambda x: x + transforms_active())(x)
        tensor([2., 2.])
        >>> transforms_active()
        False
    """
    # No public function of torch tells. A level counts even if a tensor has no tangent of its own:
    # `torch.func.grad` within `jvp` hides it.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
