# SPDX-License-Identifier: Apache-2.0
"""Export the model of a config and a checkpoint for programs other than its training.

    python tools/export.py CONFIG CHECKPOINT --format onnx --out model.onnx [--dynamic]

The formats are ONNX, exported programs of torch.export (.pt2) and TorchScript. The file is checked
before it gets its name: it is loaded by onnxruntime, or by torch, and compared with the model on
random images, of two sizes if sizes stay open. The input is the image as the config's
data_preprocessor hands it to the network: normalized, (B, 3, H, W).

--part says what is exported:
  features  the maps of the backbone, or of its neck if there is one; the default for detectors
  model     the default for others: logits of the size of the image for segmentors, logits for
            classifiers, and the maps of the head, before boxes are made from them, for one-stage
            detectors
"""

import logging
import sys
import time
import warnings
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from acmix_mm.layers import merge_convolutions
from acmix_mm.ops import use_backend
from acmix_mm.ops.backends.registry import PORTABLE
from acmix_mm.preflight.arguments import whole_number
from acmix_mm.runtime import (
    config_parser,
    mistakes_are_one_message,
    patch_mmengine,
    read_config,
    require_fit,
    require_outputs,
)
from acmix_mm.runtime.output import write_output
from acmix_mm.runtime.parts import Classification, DenseDetection, Features, Segmentation

FORMATS = ('onnx', 'exported_program', 'torchscript')
OPSET = 18
# Open heights and widths are multiples of it: detectors pad their images so, and no layer has to.
DIVISOR = 32
# The example for open sizes is at least this large, so that no number in the network, such as that
# of windows along a side, is 1, which would not stay open.
SMALLEST_EXAMPLE = (320, 352)
# Largest difference, relative to the largest value of the model's output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
ROUNDS = 5


@dataclass
class Check:
    """The comparison of a file with the model on one batch of images.

    Attributes:
        shape: Shape of the batch.
        difference: Largest absolute difference of an output.
        relative: The same, relative to the largest value of that output.
        seconds: Time that the file takes.
        eager: Time that the model takes.
    """

    shape: tuple[int, ...]
    difference: float
    relative: float
    seconds: float
    eager: float

    def __str__(self) -> str:
        return (
            f'{"x".join(map(str, self.shape))}: largest difference {self.difference:.1e}, relative '
            f'{self.relative:.1e}; {self.seconds * 1000:.1f} ms, the model '
            f'{self.eager * 1000:.1f} ms: {self.eager / self.seconds:.2f} times as fast'
        )


@dataclass
class Report:
    """What was exported.

    Attributes:
        checks: One for each size.
        operators: How often the graph of an ONNX file contains each operator; empty for others.
    """

    checks: list[Check]
    operators: dict[str, int] = field(default_factory=dict)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = config_parser(__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--format', choices=FORMATS, required=True)
    parser.add_argument('--out', type=output_file, required=True, help='file to write')
    parser.add_argument('--part', choices=('features', 'model'), help='see above')
    parser.add_argument(
        '--size',
        type=whole_number(1),
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the images (default: 800 1280 for detection, the crop size of '
        'training for segmentation, 224 224 for classification)',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help=f'leave open the number of images, and height and width, which are multiples of '
        f'{DIVISOR}',
    )
    parser.add_argument('--half', action='store_true', help='half precision')
    parser.add_argument(
        '--merge',
        action='store_true',
        help='make the convolution path of each ACmix layer one plain convolution of its input, '
        'which has more multiply-adds than the grouped one but suits GPUs',
    )
    args = parser.parse_args(argv)
    if args.dynamic and args.format == 'torchscript':
        parser.error(
            'argument --dynamic: a trace is right for images of one size only; use --format '
            'exported_program or onnx'
        )
    return args


def output_file(path: str) -> str:
    """Return the path of a file to write, if there can be one."""
    if Path(path).is_dir():
        raise ArgumentTypeError(f'{path!r} is a folder, give the path of a file')
    return path


def require_onnx() -> None:
    """End the process with one message if what writes and runs ONNX files is not installed."""
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        sys.exit(f'--format onnx needs {", ".join(missing)}. Run: pip install {" ".join(missing)}')


def default_size(cfg: Config) -> tuple[int, int]:
    """Return the height and width of images that are usual for a config."""
    if cfg.default_scope == 'mmseg':
        return cfg.model.data_preprocessor.get('size') or (512, 512)
    return (224, 224) if cfg.default_scope == 'mmpretrain' else (800, 1280)


def network(cfg: Config, checkpoint: str, part: str | None) -> nn.Module:
    """Return the part of a model that is exported, with the weights of a checkpoint.

    Args:
        cfg: Config of the model.
        checkpoint: File or address.
        part: ``'features'``, ``'model'``, or None for the default.
    """
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    patch_mmengine()  # which checkpoints can be loaded
    require_fit(model, checkpoint, complete=True)
    model = model.eval().requires_grad_(False)
    scope = cfg.default_scope
    if part == 'features' or (part is None and scope == 'mmdet'):
        return Features(model)
    if scope == 'mmseg' and hasattr(model, 'decode_head') and hasattr(model, 'align_corners'):
        return Segmentation(model)
    if scope == 'mmpretrain' and hasattr(model, 'head'):
        return Classification(model)
    if scope == 'mmdet':
        from mmdet.models import SingleStageDetector

        if isinstance(model, SingleStageDetector):
            return DenseDetection(model)
    sys.exit(
        '--part model exports classifiers, segmentors with a decode_head and one-stage detectors, '
        f'not {type(model).__name__}; --part features exports its backbone and neck.'
    )


def prepared(model: nn.Module, merge: bool, half: bool) -> nn.Module:
    """Return a copy of a network in the form in which it is exported."""
    model = deepcopy(model)
    if merge:
        merge_convolutions(model)
    return model.half() if half else model


@contextmanager
def portable() -> Iterator[None]:
    """Context in which a graph is recorded from torch's own operators, without noise of the tools.

    They log and warn of what they do not need, such as torchvision.
    """
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'onnxscript')]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        for operator, backend in PORTABLE.items():
            stack.enter_context(use_backend(backend, operator))
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def record(model: nn.Module, image: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """Record a network with torch.export.

    Args:
        model: The network.
        image: An image of the size that the program is for, or any if sizes stay open.
        dynamic: Whether batch size, height and width stay open.
    """
    shapes = None
    if dynamic:
        sides = map(max, image.shape[2:], SMALLEST_EXAMPLE)
        image = image.new_zeros(2, 3, *sides)
        batch, height, width = map(torch.export.Dim, ('batch', 'height', 'width'))
        shapes = dict(image={0: batch, 2: DIVISOR * height, 3: DIVISOR * width})
    # The other mode, strict, compiles Python code and does not see `is_in_onnx_export`.
    return torch.export.export(model, (image,), dynamic_shapes=shapes, strict=False)


def write_onnx(program: torch.export.ExportedProgram, cfg: Config, path: str) -> dict[str, int]:
    """Write an exported program as an ONNX file, and return how often it has each operator."""
    outputs = program.graph_signature.user_outputs
    names = [f'output_{i}' for i in range(len(outputs))]
    onnx = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, output_names=names, verbose=False
    )
    assert onnx is not None, 'it is None for other exporters than dynamo'
    # Masks and products of weights that are larger than what the exporter computes beforehand.
    limits = dict(input_size_limit=2**24, output_size_limit=2**24)
    import_module('onnxscript').optimizer.optimize(onnx.model, **limits)
    preprocessor = cfg.model.get('data_preprocessor') or {}
    onnx.model.metadata_props.update(
        {name: str(preprocessor[name]) for name in ('mean', 'std', 'bgr_to_rgb')
         if name in preprocessor}
    )  # fmt: skip
    onnx.save(path)
    operators: dict[str, int] = {}
    for node in onnx.model.graph:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return operators


def load(format_: str, path: str) -> Callable[[Tensor], list[Tensor]]:
    """Load a file as those who use it do."""
    if format_ == 'onnx':
        runtime = import_module('onnxruntime')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # an error is raised, too
        session = runtime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return lambda image: [
            torch.from_numpy(array) for array in session.run(None, dict(image=image.numpy()))
        ]
    if format_ == 'exported_program':
        model = torch.export.load(path).module()
    else:
        model = torch.jit.load(path)
    return lambda image: [*model(image)]


def compare(
    run: Callable[[Tensor], list[Tensor]],
    model: nn.Module,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Check:
    """Compare a loaded file with the model, in single precision, on random images."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    given = images.to(dtype)
    with torch.no_grad():
        outputs, expected = run(given), model(images)
        difference = relative = 0.0
        for ours, theirs in zip(outputs, expected, strict=True):
            if not theirs.isfinite().all():
                raise ValueError('the model itself gives NaN or infinite values')
            if ours.shape != theirs.shape:
                raise ValueError(f'an output has shape {[*ours.shape]}, not {[*theirs.shape]}')
            off = (ours.float() - theirs).abs().max().nan_to_num(float('inf'))
            difference = max(difference, float(off))
            relative = max(relative, float(off / theirs.abs().max()))
        times = [(seconds(run, given), seconds(model, images)) for _ in range(ROUNDS)]
    return Check(shape, difference, relative, *map(median, zip(*times, strict=True)))


def seconds(function: Callable[[Tensor], Any], images: Tensor) -> float:
    """Return how long one call takes."""
    begin = time.perf_counter()
    function(images)
    return time.perf_counter() - begin


def shapes_to_check(size: Sequence[int], dynamic: bool, format_: str) -> list[tuple[int, ...]]:
    """Return the shapes of images: of the given size and, if sizes stay open, of others."""
    height, width = size
    shapes: list[tuple[int, ...]] = [(1, 3, height, width)]
    if dynamic:
        shapes.append((2, 3, height + DIVISOR, width + 2 * DIVISOR))
    if dynamic and format_ == 'onnx':  # exported programs refuse what is much smaller
        shapes.append((1, 3, DIVISOR, DIVISOR))
    return shapes


def export(cfg: Config, model: nn.Module, size: Sequence[int], args: Namespace) -> Report:
    """Export a network, check the file, and give it its name if it is right."""
    dtype = torch.float16 if args.half else torch.float32
    image = torch.zeros(1, 3, *size, dtype=dtype)
    with TemporaryDirectory() as folder:
        path = str(Path(folder, 'model.pt2'))  # torch.export.load warns of other suffixes
        operators: dict[str, int] = {}
        with portable():
            ready = prepared(model, args.merge, args.half)
            if args.format == 'torchscript':
                torch.jit.trace(ready, image, check_trace=False).save(path)
            else:
                program = record(ready, image, args.dynamic)
                if args.format == 'onnx':
                    operators = write_onnx(program, cfg, path)
                else:
                    torch.export.save(program, path)
        run = load(args.format, path)
        shapes = shapes_to_check(size, args.dynamic, args.format)
        report = Report([compare(run, model, shape, dtype) for shape in shapes], operators)
        for check in report.checks:
            print(check)
            if not check.relative <= TOLERANCE[dtype]:
                sys.exit(
                    f'{args.out} was not written: its outputs differ from those of the model by '
                    f'{check.relative:.1e}, more than {TOLERANCE[dtype]:.0e} of the largest value.'
                )
        content = Path(path).read_bytes()
    write_output(args.out, content)
    print(f'{args.out}: {len(content) / 2**20:.1f} MiB')
    if operators:
        print(
            f'opset {OPSET}, {sum(operators.values())} nodes: '
            + ', '.join(f'{count} {name}' for name, count in sorted(operators.items()))
        )
    return report


def main(argv: list[str] | None = None) -> Report:
    """Export, and return what was exported."""
    args = parse_args(argv)
    if args.format == 'onnx':
        require_onnx()
    require_outputs({}, {'--out': str(args.out)})
    cfg = read_config(args)
    size = args.size or default_size(cfg)
    if args.dynamic and any(side % DIVISOR for side in size):
        sys.exit(f'--dynamic needs a --size of multiples of {DIVISOR}, got {size[0]} {size[1]}.')
    with mistakes_are_one_message(cfg):
        model = network(cfg, args.checkpoint, args.part)
    try:
        return export(cfg, model, size, args)
    except Exception as error:  # those of exporters and of runtimes may be of any type
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines() or ['']
        sys.exit(
            f'{args.out} was not written: {args.format} does not take this model '
            f'({type(cause).__name__}: {reason[0]}).'
        )


if __name__ == '__main__':
    main()
