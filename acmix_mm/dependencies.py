"""Checks, when acmix-mm is imported, that the libraries it stands on are there and fit together.

mmengine, mmcv, mmdet, mmseg and mmpretrain each come from two distributions, upstream's and the
OneDL fork's, so pip cannot be told to require them; what it would say is said here.
"""

import re
import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version


@dataclass(frozen=True)
class Library:
    """A library that acmix-mm works with.

    Args:
        module (str): The name it is imported by.
        minimum (str): The oldest version that will do.
        below (str, optional): The first version that will no longer do.
        distributions (tuple[str, ...]): The names it is installed by, the one to advise first.
        how (str): Options of `pip install` that it needs.
        imports (str): What it imports and does not require, so that pip does not install it.
    """

    module: str
    minimum: str
    below: str | None
    distributions: tuple[str, ...]
    how: str = ''
    imports: str = ''

    @property
    def wanted(self) -> str:
        """The range of versions as pip writes it."""
        return f'>={self.minimum}' + (f',<{self.below}' if self.below else '')

    def accepts(self, version: str) -> bool:
        """Whether a version is in the range; a pre-release counts as its release."""
        release = Version(version).release
        return release >= Version(self.minimum).release and (
            self.below is None or release < Version(self.below).release
        )

    def install_command(self, distribution: str | None = None) -> str:
        """The command that installs a version in the range, of the distribution in use if any."""
        name = (distribution or self.distributions[0]).removesuffix('-lite').removesuffix('-full')
        return f"pip install {self.how}'{name}{self.wanted}'"


# mmcv's ops are compiled when it is installed, against the torch that pip's isolation would hide.
MMCV_HOW = '--no-build-isolation --no-cache-dir '

TORCH = Library('torch', '2.5', None, ('torch',))
MMENGINE = Library('mmengine', '0.10', '1.0', ('onedl-mmengine', 'mmengine'))
MMCV = Library('mmcv', '2.0', '3.0', ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'), MMCV_HOW)
MMDET = Library('mmdet', '3.0', '4.0', ('onedl-mmdetection', 'mmdet'))
MMSEG = Library('mmseg', '1.0', '2.0', ('onedl-mmsegmentation', 'mmsegmentation'))
MMPRETRAIN = Library(
    'mmpretrain', '1.0', '2.0', ('onedl-mmpretrain', 'mmpretrain'), imports='torchvision'
)

REQUIRED = (TORCH, MMENGINE, MMCV)
OPTIONAL = (MMDET, MMSEG, MMPRETRAIN)


def installed_distributions(library: Library) -> dict[str, str]:
    """Finds the installed distributions of a library, without importing it.

    Returns:
        dict[str, str]: Their versions by their names; empty if the library is not installed. A
        source checkout on the path goes by the module's name.
    """
    found = {}
    for name in library.distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found or _source_checkout(library.module)


def _source_checkout(module: str) -> dict[str, str]:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    version_file = Path(spec.origin).with_name('version.py')
    text = version_file.read_text() if version_file.exists() else ''
    version = re.search(r"^__version__ = ['\"](.+?)['\"]", text, re.MULTILINE)
    return {module: version.group(1)} if version else {}


def check_library(library: Library, required: bool) -> None:
    """Checks one library's presence and version.

    Args:
        library (Library): The library.
        required (bool): Whether acmix-mm cannot do without it.

    Raises:
        ImportError: If it is missing though required, or its version is out of the range.
    """
    found = installed_distributions(library)
    if not found:
        if required:
            raise ImportError(
                f'acmix-mm needs {library.module} ({library.wanted}), which is not installed. '
                f'Install it: {library.install_command()}'
            )
        return
    if len(found) > 1:
        warnings.warn(
            f'{" and ".join(found)} are both installed, and each overwrites files of the other: '
            f'uninstall both, then install one of them.',
            stacklevel=2,
        )
    for name, version in found.items():
        if not library.accepts(version):
            raise ImportError(
                f'acmix-mm needs {library.module} {library.wanted}, but {name} {version} is '
                f'installed. Install a version in that range: {library.install_command(name)}'
            )


def check_mmcv_ops() -> None:
    """Warns if mmcv's compiled ops are missing or do not load.

    The backbones do without them, so it is no error; nearly everything in mmdet and mmseg needs
    them, and fails on them with a message that does not say why.
    """
    try:
        import_module('mmcv._ext')
        return
    except ModuleNotFoundError:
        problem = 'has no compiled ops (it is mmcv-lite, or was built without torch in sight)'
    except ImportError as error:
        problem = f'has compiled ops that this torch cannot load ({error})'
    (name, version), *_ = installed_distributions(MMCV).items()
    warnings.warn(
        f'{name} {version} {problem}, and mmdet and mmseg need them. With torch installed: '
        f'pip uninstall {name}, then {MMCV.install_command(name)}',
        stacklevel=2,
    )


def check_scope(scope: str | None) -> None:
    """Checks that the library of a config's `default_scope` can be imported.

    Args:
        scope (str, optional): A module's name. Others than mmdet, mmseg and mmpretrain pass.

    Raises:
        ImportError: It cannot. The message says why, and how to get it.
    """
    library = next((library for library in OPTIONAL if library.module == scope), None)
    if library is None:
        return
    try:
        import_module(f'{scope}.models')
    except Exception as error:  # of any kind: of another torch, torchvision raises a RuntimeError
        message = f'{scope} cannot be imported ({type(error).__name__}: {error})'
        if not installed_distributions(library):
            message += f'. Install it: {library.install_command()}'
        if library.imports:
            message += f'. It needs the {library.imports} that is built for your torch'
        raise ImportError(message) from error


def check_dependencies() -> None:
    """Checks all libraries.

    Raises:
        ImportError: If a library is missing or its version is out of the range that acmix-mm
            works with. The message says what was found, what is needed and how to get it.
    """
    for library in REQUIRED:
        check_library(library, required=True)
    for library in OPTIONAL:
        check_library(library, required=False)
    if any(installed_distributions(library) for library in (MMDET, MMSEG)):
        check_mmcv_ops()
