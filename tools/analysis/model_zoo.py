"""Write the table of model sizes into docs/model_zoo.md.

    python tools/analysis/model_zoo.py [--check]

Parameters and multiply-adds are counted on ImageNet classifiers, at 224x224 with a linear head for
1000 classes, as the papers do. Beside them stand what the released code counts and what the paper
published.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from acmix_mm.analysis import measure_complexity
from acmix_mm.registry import MODELS

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'model_zoo.md'
BEGIN = '<!-- sizes: written by tools/analysis/model_zoo.py -->\n'
END = '<!-- sizes: end -->'
HEADER = (
    '| model | params (M) | with 2 pairs | released | published '
    '| FLOPs (G) | with 2 pairs | released | published |\n'
    '|---|---|---|---|---|---|---|---|---|\n'
)


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


def measure(backbone: dict, num_conv_groups: int) -> Counts:
    """Count a classifier whose ACmix layers have so many pairs in their convolution path."""
    option = dict(num_conv_groups=num_conv_groups)
    if backbone['type'] == 'ACmixResNet':
        option = dict(acmix_cfg=option)
    with torch.device('meta'):
        image = torch.empty(1, 3, 224, 224)
        classifier = Classifier(MODELS.build(backbone | option), image)
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


def update(page: str) -> str:
    """A page with a new table between the marks.

    Raises:
        ValueError: The marks are not there, once each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f'the page must have {BEGIN.strip()!r} and {END!r} once each')
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return before + BEGIN + HEADER + ''.join(map(row, ZOO)) + END + after


def main(argv: list[str] | None = None) -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description='Write the table of model sizes.')
    parser.add_argument('--check', action='store_true', help='fail if the table is not up to date')
    args = parser.parse_args(argv)
    old = PAGE.read_text()
    new = update(old)
    if args.check and new != old:
        sys.exit(f'{PAGE} is not up to date: run python tools/analysis/model_zoo.py')
    PAGE.write_text(new)


if __name__ == '__main__':
    main()
