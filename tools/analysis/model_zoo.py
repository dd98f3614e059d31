# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/model_zoo.md: sizes of backbones, and models with their results.

    python tools/analysis/model_zoo.py [--check]

Parameters and multiply-adds are counted on ImageNet classifiers, at 224x224 with a linear head for
1000 classes, as the papers do. Beside them stand what the released code counts and what the paper
published. The models, their training and their results come from the metafiles of configs/.
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
from acmix_mm.runtime.markdown import replace_between_marks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'model_zoo.md'
SIZES_HEADER = (
    '| model | params (M) | with 2 pairs | released | published '
    '| FLOPs (G) | with 2 pairs | released | published |\n'
    '|---|---|---|---|---|---|---|---|---|\n'
)
MODELS_HEADER = '| config | backbone | training | results | published |\n|---|---|---|---|---|\n'


@dataclass(frozen=True)
class Counts:
    """Millions of parameters and billions of multiply-adds; None is not known."""

    params: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Model:
    """One row of the table."""

    name: str
    backbone: dict
    released: Counts = Counts()
    published: Counts = Counts()


RESNET = dict(type='ACmixResNet', out_indices=(3,))
SAN = dict(type='ACmixSAN', out_indices=(4,))
PVT = dict(type='ACmixPVT', out_indices=(3,))
SWIN = dict(type='ACmixSwin', out_indices=(3,))

# Published: README of the authors' release. Released: counted on its code, where it has any.
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
    """A backbone, global average pooling and a linear layer for 1000 classes."""

    def __init__(self, backbone: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone(image)[-1].shape[1], 1000)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1000)."""
        return self.head(self.backbone(image)[-1].mean((2, 3)))


def measure(backbone: dict, num_conv_pairs: int) -> Counts:
    """Count parameters and FLOPs of a classifier with a backbone."""
    cfg = dict(backbone, acmix_cfg=dict(num_conv_pairs=num_conv_pairs))
    with torch.device('meta'):
        image = torch.empty(1, 3, 224, 224)
        classifier = Classifier(MODELS.build(cfg), image)
    complexity = measure_complexity(classifier, image)
    return Counts(complexity.params / 1e6, complexity.macs / 1e9)


def row(model: Model) -> str:
    """One line of the table."""
    measured = [measure(model.backbone, pairs) for pairs in (1, 2)]
    cells = [model.name]
    for kind in ('params', 'flops'):
        exact = [getattr(counts, kind) for counts in (*measured, model.released)]
        cells += ['' if count is None else f'{count:.3f}' for count in exact]
        published = getattr(model.published, kind)
        cells.append('' if published is None else str(published))
    return f'| {" | ".join(cells)} |\n'


def sizes() -> str:
    """The table of all backbones."""
    return SIZES_HEADER + ''.join(map(row, ZOO))


def models() -> str:
    """A table for each data set, of the models that the metafiles list."""
    tables: dict[str, str] = {}
    for metafile in load(ROOT / 'model-index.yml')['Import']:
        for model in load(ROOT / metafile)['Models']:
            data = model['Metadata']['Training Data']
            tables[data] = tables.get(data, '') + model_row(model)
    return '\n'.join(
        f'### {data}\n\n{MODELS_HEADER}{rows}' for data, rows in sorted(tables.items())
    )


def model_row(model: dict) -> str:
    """One line of such a table. What was not measured or published stays blank."""
    data = model['Metadata']
    unit = 'Epochs' if 'Epochs' in data else 'Iterations'
    results = ', '.join(metrics(result) for result in model.get('Results') or ())
    published = metrics(model.get('Published', {}))
    if published:
        published = f'[{published}]({model["Published"]["Source"]})'
    cells = [
        f'[{model["Name"]}](../{model["Config"]})',
        data['Backbone'],
        f'{data[unit]} {unit.lower()}',
        results,
        published,
    ]
    return f'| {" | ".join(cells)} |\n'


def metrics(entry: dict) -> str:
    """The metrics of a result, such as ``box AP 38.0, mask AP 34.5``."""
    return ', '.join(f'{name} {value}' for name, value in entry.get('Metrics', {}).items())


def main(argv: list[str] | None = None) -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description='Write the tables of docs/model_zoo.md.')
    parser.add_argument('--check', action='store_true', help='fail if they are not up to date')
    args = parser.parse_args(argv)
    old = PAGE.read_text()
    new = old
    for name, text in (('sizes', sizes()), ('models', models())):
        new = replace_between_marks(new, name, 'tools/analysis/model_zoo.py', text)
    if args.check and new != old:
        sys.exit(f'{PAGE} is not up to date: run python tools/analysis/model_zoo.py')
    PAGE.write_text(new)


if __name__ == '__main__':
    main()
