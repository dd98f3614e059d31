# SPDX-License-Identifier: Apache-2.0
"""The base class of the layers: mmengine's where it is installed."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING or find_spec('mmengine') is not None:
    from mmengine.model import BaseModule
else:

    class BaseModule(nn.Module):
        """Stand-in for :class:`mmengine.model.BaseModule`, so that the layers need torch alone.

        Args:
            init_cfg: Must be None: initialization configs are mmengine's.

        Raises:
            ValueError: ``init_cfg`` is given.
        """

        def __init__(self, init_cfg: Any = None) -> None:
            super().__init__()
            if init_cfg is not None:
                raise ValueError(
                    f'init_cfg={init_cfg!r} needs mmengine, which is not installed; '
                    'leave init_cfg out or `pip install mmengine`'
                )
            self.init_cfg = None
            self.is_init = False

        def init_weights(self) -> None:
            """Mark the weights as initialized: the layers have set them."""
            self.is_init = True


__all__ = ['BaseModule']
