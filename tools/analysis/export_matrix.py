# SPDX-License-Identifier: Apache-2.0
"""Export one network of each family in every format, and measure the files.

    python tools/analysis/export_matrix.py [--page]

Backbone and FPN of a RetinaNet with random weights, for images of 320x352 pixels. ONNX files run in
onnxruntime. For comparison, the same is done with mmdet's plain backbones, which have the same
blocks, and for SAN, which has none there, with its attention alone. It takes about 20 minutes.
``--page`` writes the table into docs/export.md.
"""

import argparse
import runpy
from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from acmix_mm.runtime.markdown import replace_between_marks, table

ROOT = Path(__file__).resolve().parents[2]
EXPORT: dict[str, Any] = runpy.run_path(str(ROOT / 'tools' / 'export.py'))
PAGE = ROOT / 'docs' / 'export.md'
CONFIGS = {
    'ResNet-50': 'resnet_acmix/retinanet_resnet50-acmix_fpn_1x_coco.py',
    'SAN-10': 'san_acmix/retinanet_san10-acmix_fpn_1x_coco.py',
    'PVT-T': 'pvt_acmix/retinanet_pvt-t-acmix_fpn_1x_coco.py',
    'Swin-T': 'swin_acmix/retinanet_swin-t-acmix_fpn_1x_coco.py',
}
PLAIN: dict[str, dict[str, Any]] = {
    'ResNet-50': dict(_delete_=True, type='ResNet', depth=50),
    'SAN-10': dict(acmix_cfg=dict(path_weights=(1, 0))),
    'PVT-T': dict(_delete_=True, type='PyramidVisionTransformer', num_layers=[2, 2, 2, 2]),
    'Swin-T': dict(_delete_=True, type='SwinTransformer', out_indices=(1, 2, 3)),
}
CASES = (
    ('onnx', False),
    ('onnx', True),
    ('exported_program', False),
    ('exported_program', True),
    ('torchscript', False),
)
HEADER = (
    'network', 'format', 'sizes', 'largest relative difference', 'nodes', 'nodes, plain network',
    'times as fast as the model', 'OpenVINO',
)  # fmt: skip


def write_checkpoint(cfg: Config, path: Path) -> None:
    """Write random weights for the model of a config, away from their start, which hides errors."""
    torch.manual_seed(0)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    torch.save(dict(state_dict=model.state_dict()), path)


def export(cfg: Config, folder: Path, format_: str, dynamic: bool) -> Any:
    """Export the backbone and neck of a config, and return the report."""
    cfg.dump(folder / 'config.py')
    checkpoint, out = folder / 'weights.pth', folder / f'model.{format_}'
    write_checkpoint(cfg, checkpoint)
    arguments = [folder / 'config.py', checkpoint, '--format', format_, '--out', out]
    options = ['--size', '320', '352', *(['--dynamic'] if dynamic else [])]
    return EXPORT['main']([*map(str, arguments), *options])


def openvino_difference(file: Path, checks: list[Any]) -> str:
    """Run an ONNX file in OpenVINO, and return how far it is from onnxruntime, or nothing.

    Args:
        file: The file.
        checks: Comparisons of the file with the model, whose shapes are used.
    """
    if find_spec('openvino') is None:
        return ''
    # Some CPUs would take bfloat16 otherwise.
    options = dict(INFERENCE_PRECISION_HINT='f32')
    openvino = import_module('openvino').compile_model(file, 'CPU', options)
    onnxruntime, largest = EXPORT['load']('onnx', str(file)), 0.0
    for check in checks:
        image = torch.randn(check.shape, generator=torch.Generator().manual_seed(0))
        outputs = openvino([image.numpy()]).values()
        for ours, theirs in zip(outputs, onnxruntime(image), strict=True):
            off = (torch.from_numpy(ours) - theirs).abs().max() / theirs.abs().max()
            largest = max(largest, float(off.nan_to_num(float('inf'))))
    return f'{largest:.0e}'


def plain_number_of_nodes(cfg: Config, folder: Path, dynamic: bool) -> str:
    """Export a plain network as ONNX, and return how many nodes it has, or that it cannot be."""
    try:
        return str(sum(export(cfg, folder, 'onnx', dynamic).operators.values()))
    except SystemExit as error:  # the plain Swin of mmdet fixes the number of images
        print(error)
        return 'not exported'


def rows(name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the rows of one network."""
    for format_, dynamic in CASES:
        print(f'\n{name}, {format_}, {"open" if dynamic else "one size"}', flush=True)
        cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[name])
        report = export(cfg, folder, format_, dynamic)
        nodes = plain_nodes = openvino = ''
        if format_ == 'onnx':
            openvino = openvino_difference(folder / f'model.{format_}', report.checks)
            cfg.merge_from_dict(deepcopy(dict(model=dict(backbone=PLAIN[name]))))
            nodes = str(sum(report.operators.values()))
            plain_nodes = plain_number_of_nodes(cfg, folder, dynamic)
        yield (
            name,
            format_,
            'open' if dynamic else 'one',
            f'{max(check.relative for check in report.checks):.0e}',
            nodes,
            plain_nodes,
            f'{report.checks[0].eager / report.checks[0].seconds:.2f}',
            openvino,
        )


def main(argv: list[str] | None = None) -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', metavar='NETWORK', help=f'from {", ".join(CONFIGS)}')
    parser.add_argument('--page', action='store_true', help='write into docs/export.md')
    args = parser.parse_args(argv)
    if not set(args.names) <= set(CONFIGS):
        parser.error(f'there is {", ".join(CONFIGS)}, got {" ".join(args.names)}')
    if args.page and args.names:
        parser.error('argument --page: writes the results of all networks, name none')
    with TemporaryDirectory() as folder:
        names = args.names or CONFIGS
        text = table(HEADER, [row for name in names for row in rows(name, Path(folder))])
    if args.page:
        page = replace_between_marks(
            PAGE.read_text(), 'matrix', 'tools/analysis/export_matrix.py', text
        )
        PAGE.write_text(page)
    else:
        print(f'\n{text}')


if __name__ == '__main__':
    main()
