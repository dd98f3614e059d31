# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/model_zoo.md: sizes of backbones, and models with their results.

    python tools/analysis/model_zoo.py [--check]

Parameters and multiply-adds are counted for ImageNet classifiers with a linear head for 1000
classes on images of 224x224 pixels, as in the papers. They are shown beside the counts of the
released code and the published numbers. The models, their training and their results come from the
metafiles of configs/.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.fileio import load
from torch import Tensor, nn

from acmix_mm.complexity import measure_complexity
from acmix_mm.registry import MODELS
from acmix_mm.runtime.markdown import replace_between_marks, table
from acmix_mm.runtime.output import write_output

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'model_zoo.md'
SIZES_HEADER = (
    'model',
    *('params (M)', 'with 2 pairs', 'released', 'published'),
    *('FLOPs (G)', 'with 2 pairs', 'released', 'published'),
)
MODELS_HEADER = (
    'config', 'backbone', 'training', 'results', 'published', 'plain backbone, published',
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Size of a classifier.

    Attributes:
        params: Millions of parameters. None (default) means unknown.
        flops: Billions of multiply-adds. None (default) means unknown.
    """

    params: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Model:
    """A backbone in the table of sizes.

    Attributes:
        name: Name of the backbone.
        backbone: Config of the backbone.
        released: Size that the released code has. Default: unknown.
        published: Size that the authors state. Default: unknown.
    """

    name: str
    backbone: dict
    released: Counts = Counts()
    published: Counts = Counts()


RESNET = dict(type='ACmixResNet', out_indices=(3,))
SAN = dict(type='ACmixSAN', out_indices=(4,))
PVT = dict(type='ACmixPVT', out_indices=(3,))
SWIN = dict(type='ACmixSwin', out_indices=(3,))

# The published sizes are those in the README of the released code. The released sizes were counted
# on that code, which does not contain all of these backbones.
ZOO = (
    Model('ResNet-26-ACmix', RESNET | dict(depth=26), Counts(10.488), Counts(10.6, 2.3)),
    Model('ResNet-38-ACmix', RESNET | dict(depth=38), Counts(14.411), Counts(14.6, 2.9)),
    Model('ResNet-50-ACmix', RESNET | dict(depth=50), Counts(18.334), Counts(18.6, 3.6)),
    Model('ResNet-101-ACmix', RESNET | dict(depth=101)),
    Model('SAN-10-ACmix', SAN | dict(depth=10), published=Counts(12.1, 1.9)),
    Model('SAN-15-ACmix', SAN | dict(depth=15), published=Counts(16.6, 2.7)),
    Model('SAN-19-ACmix', SAN | dict(depth=19), published=Counts(21.2, 3.4)),
    Model('PVT-T-ACmix', PVT | dict(num_layers=(2, 2, 2, 2)), published=Counts(13, 2.0)),
    Model('PVT-S-ACmix', PVT | dict(num_layers=(3, 4, 6, 3)), published=Counts(25, 3.9)),
    Model('PVT-M-ACmix', PVT | dict(num_layers=(3, 4, 18, 3))),
    Model('PVT-L-ACmix', PVT | dict(num_layers=(3, 8, 27, 3))),
    Model('Swin-T-ACmix', SWIN | dict(depths=(2, 2, 6, 2)), Counts(28.65, 4.649), Counts(30, 4.6)),
    Model(
        'Swin-S-ACmix', SWIN | dict(depths=(2, 2, 18, 2)), Counts(50.345, 8.999), Counts(51, 9.0)
    ),
    Model(
        'Swin-B-ACmix',
        SWIN | dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    ),
)


class Classifier(nn.Module):
    """A backbone, global average pooling and a linear layer for 1000 classes.

    Args:
        backbone: The backbone.
        image: Example of an input, from which the number of features is determined.
    """

    def __init__(self, backbone: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone(image)[-1].shape[1], 1000)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1000)."""
        return self.head(self.backbone(image)[-1].mean((2, 3)))


def measure(backbone: dict, num_conv_pairs: int) -> Counts:
    """Count parameters and multiply-adds of a classifier with a backbone."""
    cfg = dict(backbone, acmix_cfg=dict(num_conv_pairs=num_conv_pairs))
    with torch.device('meta'):
        image = torch.empty(1, 3, 224, 224)
        classifier = Classifier(MODELS.build(cfg), image)
    complexity = measure_complexity(classifier, image)
    return Counts(complexity.params / 1e6, complexity.macs / 1e9)


def size_row(model: Model) -> list[str]:
    """Return the cells of a backbone in the table of sizes."""
    measured = [measure(model.backbone, pairs) for pairs in (1, 2)]
    cells = [model.name]
    for kind in ('params', 'flops'):
        exact = [getattr(counts, kind) for counts in (*measured, model.released)]
        cells += ['' if count is None else f'{count:.3f}' for count in exact]
        published = getattr(model.published, kind)
        cells.append('' if published is None else str(published))
    return cells


def sizes_table() -> str:
    """Format the table with the sizes of all backbones."""
    return table(SIZES_HEADER, [size_row(model) for model in ZOO])


def models_tables() -> str:
    """Format one table for each data set, with the models that the metafiles list."""
    rows: dict[str, list[list[str]]] = {}
    for metafile in load(ROOT / 'model-index.yml')['Import']:
        for model in load(ROOT / metafile)['Models']:
            rows.setdefault(model['Metadata']['Training Data'], []).append(model_row(model))
    return '\n'.join(f'### {data}\n\n{table(MODELS_HEADER, rows[data])}' for data in sorted(rows))


def model_row(model: dict) -> list[str]:
    """Return the cells of a model. Results that were not measured or published are left blank."""
    data = model['Metadata']
    unit = 'Epochs' if 'Epochs' in data else 'Iterations'
    results = ', '.join(format_metrics(result) for result in model.get('Results') or ())
    return [
        f'[{model["Name"]}](../{model["Config"]})',
        data['Backbone'],
        f'{data[unit]} {unit.lower()}',
        results,
        published(model.get('Published')),
        published(model.get('Plain Backbone')),
    ]


def published(entry: dict | None) -> str:
    """Format the metrics of a metafile's figures from elsewhere, as a link to their source."""
    return f'[{format_metrics(entry)}]({entry["Source"]})' if entry else ''


def format_metrics(entry: dict) -> str:
    """Format the metrics of a metafile's result, such as ``box AP 38.0, mask AP 34.5``."""
    return ', '.join(f'{name} {value}' for name, value in entry.get('Metrics', {}).items())


def main(argv: list[str] | None = None) -> None:
    """Write the tables of the page, or check that they are up to date."""
    parser = argparse.ArgumentParser(description='Write the tables of docs/model_zoo.md.')
    parser.add_argument(
        '--check', action='store_true', help='write nothing, and fail if the page is out of date'
    )
    args = parser.parse_args(argv)
    old = PAGE.read_text()
    new = old
    for name, text in (('sizes', sizes_table()), ('models', models_tables())):
        new = replace_between_marks(new, name, 'tools/analysis/model_zoo.py', text)
    if not args.check:
        write_output(PAGE, new)
    elif new != old:
        sys.exit(f'{PAGE} is out of date: run python tools/analysis/model_zoo.py')


if __name__ == '__main__':
    main()
