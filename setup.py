# SPDX-License-Identifier: Apache-2.0
"""Build the C++ kernels, and put configs and tools into the package as OpenMMLab's packages do."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:  # in pip's isolated build
    BuildExtension = None
    TORCH_ERROR = error

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / 'acmix_mm' / 'ops' / 'csrc'


class BuildWithConfigs(build_py):
    """Put configs, tools and model index in `acmix_mm/.mim`, where mim and mmengine look them up.

    An editable install gets links to them.
    """

    def run(self) -> None:
        """Builds the package, then fills `.mim`."""
        super().run()
        package = ROOT / 'acmix_mm' if self.editable_mode else Path(self.build_lib, 'acmix_mm')
        mim = package / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True, exist_ok=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            if self.editable_mode:
                (mim / name).symlink_to(ROOT / name)
            elif (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, mim / name)
            else:
                shutil.copy(ROOT / name, mim / name)


def build_kernels() -> dict:
    """Return the C++ kernels as arguments of `setup`; none where they cannot be built.

    The package works without them, only slower, and warns about it when it runs: pip shows what a
    build prints only if the build fails, or with -v. The environment variable ACMIX_BUILD_KERNELS
    chooses:

    * not set: build the kernels if torch and a compiler are there,
    * 1: a build that ends without the kernels is an error, which names the reason,
    * 0: leave the kernels out.

    Raises:
        SystemExit: If ACMIX_BUILD_KERNELS has another value, or is 1 and they cannot be built.
    """
    choice = os.environ.get('ACMIX_BUILD_KERNELS', '')
    if choice not in ('', '0', '1'):
        sys.exit(f'acmix-mm: ACMIX_BUILD_KERNELS is {choice!r}; set it to 0 or 1, or not at all')
    if choice == '0':
        return {}
    if BuildExtension is None:
        return skip_kernels(
            f'the build environment has no torch ({TORCH_ERROR}); '
            'use pip install --no-build-isolation'
        )
    if sys.platform not in ('linux', 'darwin'):
        return skip_kernels(f'they use extensions of g++ and clang++, not built on {sys.platform}')

    class BuildOrSkip(BuildExtension):
        """Builds the kernels if there is a compiler that can."""

        def run(self) -> None:
            """Reports what failed, and goes on."""
            try:
                super().run()
            except Exception as error:
                skip_kernels(f'{type(error).__name__}: {error}')

        def get_outputs(self) -> list[str]:
            """Leaves out what could not be built."""
            return [path for path in super().get_outputs() if Path(path).exists()]

        def copy_extensions_to_source(self) -> None:
            """Copies what could be built, for an editable install."""
            if all(Path(path).exists() for path in super().get_outputs()):
                super().copy_extensions_to_source()

    # Compiled for OpenMP but not linked to it: torch brings its own, and there must be only one.
    openmp = ['-fopenmp'] if sys.platform == 'linux' else []
    sources = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob('*.cpp'))
    kernels = CppExtension(
        'acmix_mm.ops._C',
        sources,
        depends=sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob('*.h')),
        # -Wno-psabi: vectors are passed to inlined functions only, whatever the processor.
        extra_compile_args=['-O3', '-g0', '-Wno-psabi', *openmp],
    )
    return dict(ext_modules=[kernels], cmdclass={'build_ext': BuildOrSkip})


def skip_kernels(reason: str) -> dict:
    """Report why the kernels are not built.

    Raises:
        SystemExit: If the environment variable ACMIX_BUILD_KERNELS is 1.
    """
    if os.environ.get('ACMIX_BUILD_KERNELS') == '1':
        sys.exit(f'acmix-mm: ACMIX_BUILD_KERNELS=1, but the C++ kernels cannot be built: {reason}')
    print(f'acmix-mm: building without its C++ kernels: {reason}', file=sys.stderr)
    return {}


kernels = build_kernels()

setup(
    license='Apache-2.0',
    ext_modules=kernels.get('ext_modules', []),
    cmdclass={'build_py': BuildWithConfigs, **kernels.get('cmdclass', {})},
)
