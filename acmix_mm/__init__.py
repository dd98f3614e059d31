"""ACmix backbones for mmdetection and mmsegmentation.

Importing this package registers everything that it offers; in a config,
`custom_imports = dict(imports=['acmix_mm'])` does so.
"""

from . import backbones, layers
from .version import __version__

__all__ = ['__version__', 'backbones', 'layers']
