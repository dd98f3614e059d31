"""ACmix backbones for mmdetection and mmsegmentation.

Importing this package registers everything that it offers; in a config,
`custom_imports = dict(imports=['acmix_mm'])` does so.
"""

from .dependencies import check_dependencies
from .version import __version__

check_dependencies()  # before anything below imports what may be missing

from . import backbones, layers  # noqa: E402
from .compat import adapt_mmengine  # noqa: E402

adapt_mmengine()

__all__ = ['__version__', 'backbones', 'layers']
