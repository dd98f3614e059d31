"""Builds the package, with the configs and tools inside it as OpenMMLab's packages ship theirs."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


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


extras = {name: read_requirements(name) for name in ('det', 'seg', 'test', 'dev')}

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
    cmdclass={'build_py': BuildWithConfigs},
    zip_safe=False,
)
