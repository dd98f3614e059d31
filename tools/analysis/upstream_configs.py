# SPDX-License-Identifier: Apache-2.0
"""Count the configs of other libraries in which an ACmix backbone can replace the plain one.

    python tools/analysis/upstream_configs.py [mmdet] [mmseg] [mmpretrain] [--page]

In every config of an installed library that has a ResNet, a Swin or a PVT, the type of the backbone
is changed as docs/user_guide.md says, and the new backbone is built: on the meta device, that is,
without memory for its weights, and without loading any. Configs that cannot be changed so are
listed with the reason. ``--page`` writes the result into docs/compatibility.md.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import mmcv.ops  # noqa: F401  registers deformable convolutions
import torch
from mmengine.config import Config

from acmix_mm.preflight.type_name import type_name
from acmix_mm.registry import MODELS
from acmix_mm.runtime.markdown import replace_between_marks, table
from acmix_mm.runtime.output import write_output

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'compatibility.md'
# What replaces the type of a plain backbone.
REPLACEMENTS: dict[str, dict[str, Any]] = {
    'ResNet': dict(type='ACmixResNet'),
    'ResNetV1c': dict(type='ACmixResNet', deep_stem=True),
    'ResNetV1d': dict(type='ACmixResNet', deep_stem=True, avg_down=True),
    'SwinTransformer': dict(type='ACmixSwin'),
    'PyramidVisionTransformer': dict(type='ACmixPVT'),
    'PyramidVisionTransformerV2': dict(
        type='ACmixPVT',
        patch_sizes=(7, 3, 3, 3),
        paddings=(3, 1, 1, 1),
        use_abs_pos_embed=False,
        norm_after_stage=True,
        use_conv_ffn=True,
    ),
}


@dataclass(frozen=True)
class Result:
    """Whether the backbones of a config can be replaced.

    Attributes:
        config: Path of the config within the library's folder of configs.
        backbone: Class of its backbone, without a scope; of the first one that can be replaced, if
            there are several. None if it has no backbone.
        refusal: Why a backbone cannot be replaced, or the config not be read; None if all can be
            replaced, or none is of our families.
    """

    config: str
    backbone: str | None
    refusal: str | None = None


def find_backbones(node: Any) -> Iterator[dict]:
    """Yield the configs of all backbones in a config of a model, also of models within it."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == 'backbone' and isinstance(value, dict) and 'type' in value:
                yield value
            yield from find_backbones(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from find_backbones(value)


def class_name(cfg: dict) -> str:
    """Return the name of a config's class without its scope: ``ResNet`` for ``mmdet.ResNet``."""
    return type_name(cfg['type'])


def examine(name: str, model: dict) -> Result:
    """Replace the backbones of a model and build them.

    Args:
        name: Path of the config.
        model: Config of the model.
    """
    backbones = list(find_backbones(model))
    ours = [cfg for cfg in backbones if class_name(cfg) in REPLACEMENTS]
    if not ours:
        return Result(name, class_name(backbones[0]) if backbones else None)
    refusal = None
    for cfg in ours:
        try:
            with torch.device('meta'):
                MODELS.build({**cfg, **REPLACEMENTS[class_name(cfg)]})
        except Exception as error:
            refusal = ' '.join(str(error).split()) or type(error).__name__
    return Result(name, class_name(ours[0]), refusal)


def configs_of(library: str) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every config of an installed library, without its base configs."""
    folder = Path(import_module(library).__path__[0]) / '.mim' / 'configs'
    for path in sorted(folder.rglob('*.py')):
        if '_base_' not in path.parts:
            yield path.relative_to(folder).as_posix(), path


def examine_library(library: str) -> list[Result]:
    """Examine every config of a library."""
    results = []
    for name, path in configs_of(library):
        try:
            cfg = Config.fromfile(path, import_custom_modules=False)
        except Exception as error:  # of the library: a base config is missing, for example
            results.append(Result(name, None, f'cannot be read, {type(error).__name__}'))
        else:
            results.append(examine(name, cfg.get('model', {})))
    return results


def report(results: dict[str, list[Result]]) -> str:
    """Format a table of the counts, and a list of the configs that are refused or not readable.

    Args:
        results: Results by library.
    """
    rows, refused = [], []
    for library, of_library in results.items():
        title = f'{library} {import_module(library).__version__}'
        for backbone, replacement in REPLACEMENTS.items():
            of_class = [result for result in of_library if result.backbone == backbone]
            built = sum(result.refusal is None for result in of_class)
            if of_class:
                rows.append((title, backbone, replacement['type'], f'{built} of {len(of_class)}'))
        others = sum(result.backbone not in REPLACEMENTS for result in of_library)
        rows.append((title, 'others', '', str(others)))
        refused += [f'* `{library}/{r.config}`: {r.refusal}\n' for r in of_library if r.refusal]
    text = table(('library', 'backbone', 'replaced by', 'configs'), rows)
    return '\n'.join([text, *(['Not replaced:\n', ''.join(refused)] if refused else [])])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'libraries',
        nargs='*',
        metavar='LIBRARY',
        default=LIBRARIES,
        help=f'default: {" ".join(LIBRARIES)}',
    )
    parser.add_argument('--page', action='store_true', help='write into docs/compatibility.md')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print the report, or write it into the page."""
    args = parse_args(argv)
    if args.page and set(args.libraries) != set(LIBRARIES):
        raise SystemExit(f'--page writes the results of all libraries: name {", ".join(LIBRARIES)}')
    text = report({library: examine_library(library) for library in args.libraries})
    if args.page:
        writer = 'tools/analysis/upstream_configs.py'
        write_output(PAGE, replace_between_marks(PAGE.read_text(), 'configs', writer, text))
    else:
        print(text, end='')


if __name__ == '__main__':
    main()
