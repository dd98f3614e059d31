# SPDX-License-Identifier: Apache-2.0
"""Check, when acmix-mm is imported, that the libraries it needs are installed and compatible.

mmengine, mmcv, mmdet, mmseg and mmpretrain each come from two distributions, upstream's and the
OneDL fork's. The package therefore cannot list them as requirements for pip.
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

    Attributes:
        module: Name of the module to import.
        minimum: Oldest version that works.
        below: First version that no longer works, or None.
        distributions: Names of the distributions that install the library, the recommended one
            first.
        how: Options of ``pip install`` that the library needs, with a trailing space.
            Default: ``''``.
        imports: Another library that it imports but does not list as a requirement, so that pip
            does not install it. Default: ``''``.
        caution: What another version of it breaks, as a sentence. Default: ``''``.
    """

    module: str
    minimum: str
    below: str | None
    distributions: tuple[str, ...]
    how: str = ''
    imports: str = ''
    caution: str = ''

    @property
    def wanted(self) -> str:
        """Range of versions in the notation of pip, such as ``>=2.0,<3.0``."""
        return f'>={self.minimum}' + (f',<{self.below}' if self.below else '')

    def accepts(self, version: str) -> bool:
        """Return whether a version is in the range. A pre-release counts as its release."""
        release = Version(version).release
        return release >= Version(self.minimum).release and (
            self.below is None or release < Version(self.below).release
        )

    def install_command(self, distribution: str | None = None) -> str:
        """Return the command that installs a version in the range.

        Args:
            distribution: Name of the distribution to install, or None for the recommended one.
                Default: None.
        """
        name = (distribution or self.distributions[0]).removesuffix('-lite').removesuffix('-full')
        return f"pip install {self.how}'{name}{self.wanted}'"


# mmcv compiles its ops against torch during installation; pip's build isolation would hide torch.
MMCV_HOW = '--no-build-isolation --no-cache-dir '

TORCH = Library(
    'torch',
    '2.1',
    None,
    ('torch',),
    caution="mmcv's compiled ops work only with the torch that they were compiled for: use a new "
    'environment, or install mmcv again afterwards',
)
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
    """Find the installed distributions of a library, without importing it.

    Args:
        library: The library to find.

    Returns:
        dict[str, str]: Versions by names of distributions; empty if the library is not installed.
        A source checkout on the path appears under the name of the module.
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
    """Check that a library is installed in a version that works.

    Args:
        library: The library to check.
        required: Whether a missing library is an error.

    Raises:
        ImportError: The library is required and missing, or its version is out of range.
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
            f'{" and ".join(found)} are both installed, and each overwrites files of the other. '
            f'Uninstall both, then install one of them.',
            stacklevel=2,
        )
    for name, version in found.items():
        if not library.accepts(version):
            message = (
                f'acmix-mm needs {library.module} {library.wanted}, but {name} {version} is '
                f'installed. Install a version in that range: {library.install_command(name)}'
            )
            raise ImportError(f'{message}. {library.caution}' if library.caution else message)


def check_mmcv_ops() -> None:
    """Warn if mmcv's compiled ops are missing or cannot be loaded.

    This is not an error, because the backbones do not need the ops. Most of mmdet and mmseg does,
    and without them fails with a message that does not name the cause.
    """
    try:
        import_module('mmcv._ext')
        return
    except ModuleNotFoundError:
        problem = 'has no compiled ops (it is mmcv-lite, or was built where torch was missing)'
    except ImportError as error:
        problem = f'has compiled ops that this torch cannot load ({error})'
    (name, version), *_ = installed_distributions(MMCV).items()
    warnings.warn(
        f'{name} {version} {problem}. mmdet and mmseg need them. With torch installed, run: '
        f'pip uninstall {name}, then {MMCV.install_command(name)}',
        stacklevel=2,
    )


def check_scope(scope: str | None) -> None:
    """Check that the library of a config's ``default_scope`` can be imported.

    Args:
        scope: Name of the library. Names other than mmdet, mmseg and mmpretrain are not checked.

    Raises:
        ImportError: The library cannot be imported. The message gives the reason and the command
            that installs the library.
    """
    library = next((library for library in OPTIONAL if library.module == scope), None)
    if library is None:
        return
    try:
        import_module(f'{scope}.models')
    except Exception as error:  # torchvision built for another torch raises RuntimeError
        message = f'{scope} cannot be imported ({type(error).__name__}: {error})'
        if not installed_distributions(library):
            message += f'. Install it: {library.install_command()}'
        if library.imports:
            message += f'. It needs the {library.imports} that is built for your torch'
        raise ImportError(message) from error


def check_torch() -> None:
    """Check torch, the only library that the operators and layers need.

    Raises:
        ImportError: torch is missing, or its version is out of range.
    """
    check_library(TORCH, required=True)


def check_dependencies() -> None:
    """Check all libraries that the backbones need.

    Raises:
        ImportError: A library is missing or its version is out of range. The message names the
            version that was found, the range that works and how to install it.
    """
    for library in REQUIRED:
        check_library(library, required=True)
    for library in OPTIONAL:
        check_library(library, required=False)
    if any(installed_distributions(library) for library in (MMDET, MMSEG)):
        check_mmcv_ops()
