"""Builds the package, with the configs and tools inside it as OpenMMLab's packages ship theirs."""

import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:  # pip's isolated build
    BuildExtension = None

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / 'acmix_mm' / 'ops' / 'csrc'


def read_version() -> str:
    """Reads the version without importing the package, which needs torch."""
    text = (ROOT / 'acmix_mm' / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text).group(1)


def read_requirements(name: str) -> list[str]:
    """Reads the requirements of `requirements/<name>.txt`, without its comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in (line.partition('#')[0].strip() for line in lines) if line]


class BuildWithConfigs(build_py):
    """Puts configs, tools and model index in `acmix_mm/.mim`, where mim and mmengine look them up.

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
    """The C++ kernels as arguments of `setup`; none where they cannot be built.

    The package works without them, only slower: `acmix_mm.ops.available_backends` tells.
    """
    if BuildExtension is None:
        return skip_kernels('torch is not in sight; pip needs --no-build-isolation to see it')
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
    """Says why the kernels are not built."""
    print(f'acmix-mm: building without its C++ kernels: {reason}', file=sys.stderr)
    return {}


extras = {name: read_requirements(name) for name in ('det', 'seg', 'pretrain', 'test', 'dev')}
kernels = build_kernels()

setup(
    name='acmix-mm',
    version=read_version(),
    description='ACmix backbones (ResNet, SAN, PVT, Swin) for mmdetection and mmsegmentation',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    author='The acmix-mm authors',
    keywords='computer vision, object detection, semantic segmentation, self-attention, ACmix',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['acmix_mm', 'acmix_mm.*']),
    package_data={'acmix_mm': ['py.typed']},
    python_requires='>=3.10',
    install_requires=read_requirements('runtime'),
    extras_require=extras,
    ext_modules=kernels.get('ext_modules', []),
    cmdclass={'build_py': BuildWithConfigs, **kernels.get('cmdclass', {})},
    zip_safe=False,
)
