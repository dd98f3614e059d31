# SPDX-License-Identifier: Apache-2.0
"""Draw what the ACmix layers of a network attend to for one point of an image.

    python tools/analysis/plot_attention.py IMAGE --config CONFIG --checkpoint FILE --point X,Y

The image goes through the test pipeline of the config. Each row of the picture is a layer of the
backbone: the attention of the cell of its map that contains the point, drawn on the image; an
enlarged part of the same; and the norms of the two summands of its output, alpha * attention and
beta * convolution, in one scale of colors. What gets no attention at all, such as pixels outside a
window, stays gray.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import BytesIO
from math import isfinite, log2
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import set_random_seed
from torch import Tensor, nn

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix
from acmix_mm.layers.attention_maps import (
    Layer,
    acmix_layers,
    attention_map,
    path_outputs,
    recorded_inputs,
)
from acmix_mm.preflight.arguments import whole_number
from acmix_mm.preflight.data_paths import leaf_datasets
from acmix_mm.preflight.type_name import type_name
from acmix_mm.runtime import (
    load_config,
    mistakes_are_one_message,
    patch_mmengine,
    require_fit,
    require_inputs,
    require_outputs,
)
from acmix_mm.runtime.output import write_output

# Left, top, right and bottom of a part of an image, in its pixels, whose centers are whole numbers.
Box = tuple[float, float, float, float]

# Most samples along a side of a panel; and how much of the image an enlarged part may show.
SAMPLES = 480
ENLARGED = 0.6


@dataclass(frozen=True)
class Place:
    """Where the pixels of an image are in the input of a network.

    Attributes:
        matrix: ``(2, 3)``, from a pixel ``(x, y, 1)`` of the image to one ``(x, y)`` of the input.
            Whole numbers are the centers of pixels.
        size: Height and width of the input up to the last pixel that shows the image.
    """

    matrix: np.ndarray
    size: tuple[int, int]

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Take pixels of the image, ``(..., 2)`` as x and y, to those of the input."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Take pixels of the input, ``(..., 2)``, to those of the image."""
        return (points - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T

    def shows(self, pixels: np.ndarray) -> np.ndarray:
        """Return whether pixels ``(..., 2)`` are in the input. It may show a part of the image."""
        last = np.array(self.size)[::-1] - 0.5
        return np.asarray(((pixels >= -0.5) & (pixels <= last)).all(-1))


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map are in the input of a network.

    Attributes:
        size: Height and width of the map in cells, before they are reduced.
        side: Side of a cell in pixels of the input.
        centered: Whether cells are centered at multiples of their side, see :func:`is_centered`.
        ratio: How many cells along each side have been reduced to one.
    """

    size: tuple[int, int]
    side: int
    centered: bool
    ratio: int = 1

    @property
    def start(self) -> float:
        """Where the first cell begins in pixels, whose centers are whole numbers."""
        return -self.side / 2 if self.centered else -0.5

    def cells(self, pixels: np.ndarray) -> np.ndarray:
        """Return the cells, ``(..., 2)`` as column and row, of pixels of the input.

        If cells are centered, pixels beyond the last one belong to it. If not, they belong to none,
        and get a cell that is not in the map.
        """
        cells = np.floor((pixels - self.start) / self.side).astype(int)
        if self.centered:
            cells = np.clip(cells, 0, np.array(self.size)[::-1] - 1)
        return cells // self.ratio

    def corners(self, first: Sequence[int], last: Sequence[int]) -> np.ndarray:
        """Return the corners, ``(4, 2)``, of a rectangle of cells, in pixels of the input."""
        (left, top), (right, bottom) = (
            np.asarray(cell) * self.ratio * self.side + self.start
            for cell in (first, np.add(last, 1))
        )
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


@dataclass(frozen=True)
class Drawing:
    """What is drawn of a layer.

    Attributes:
        name: Name of the layer in the backbone.
        query: The corners of the cell of the point, ``(4, 2)``, in pixels of the input.
        label: What the weights are.
        signed: Whether weights may be negative.
        weights: The weight of each cell, or None without an attention path.
        weights_grid: The cells of the weights.
        norms: Title and map of each path that the layer has.
        norms_grid: The cells of these maps.
    """

    name: str
    query: np.ndarray
    label: str
    signed: bool
    weights: np.ndarray | None
    weights_grid: Grid
    norms: dict[str, np.ndarray]
    norms_grid: Grid


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the model of a config with the weights of a checkpoint, in eval mode."""
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    require_fit(model, checkpoint, complete=True)
    return model.eval().requires_grad_(False).to(get_device())


def read_image(cfg: Config, image: Path) -> tuple[np.ndarray, dict[str, Any], Place]:
    """Run the test pipeline of a config.

    Where the pixels go is not computed from the settings of the transforms: an image whose colors
    are the coordinates of its pixels goes the same way.

    Args:
        cfg: The config.
        image: Path of the image.

    Returns:
        tuple: The image in gray, ``(H, W)``; what the pipeline makes of it; and where its
        pixels are in it.

    Raises:
        ValueError: The image cannot be read, or the pipeline does something else than to scale,
            flip, turn, crop or pad it.
    """
    if mmcv.imread(image) is None:
        raise ValueError(f'{image} cannot be read as an image.')
    transforms = [
        transform
        for transform in next(leaf_datasets(cfg.test_dataloader.dataset))['pipeline']
        if not type_name(transform['type']).endswith('LoadAnnotations')
    ]
    loaded = Compose(transforms[:1])(dict(img_path=str(image), img_id=0))
    picture = np.asarray(loaded['img'], np.float32)
    height, width = picture.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    where = dict(loaded, img=np.dstack([columns, rows, np.ones_like(rows)]))
    # Pillow resizes images of whole numbers alone, with the same geometry as OpenCV.
    exact = [
        transform | dict(backend='cv2', interpolation='bilinear')
        if transform.get('backend') == 'pillow'
        else transform
        for transform in map(dict, transforms)
    ]
    outputs = []
    for steps, results in ((transforms, loaded), (exact, where)):
        set_random_seed(0)  # a pipeline may be random
        outputs.append(Compose(steps[1:])(results))
    place = _place(outputs[1]['inputs'].numpy(), (height, width))
    return picture.reshape(height, width, -1).mean(-1), outputs[0], place


def _place(coordinates: np.ndarray, size: tuple[int, int]) -> Place:
    """Find out where pixels have gone.

    Args:
        coordinates: ``(3, H', W')``, what has become of an image of x, y and 1.
        size: Its height and width.
    """
    x, y, inside = coordinates.astype(float)
    shown = np.isclose(inside, 1)  # not where the pipeline has padded
    # Interpolation repeats the outermost pixels.
    kept = shown & (x > 0) & (y > 0) & (x < size[1] - 1) & (y < size[0] - 1)
    source = np.stack([x[kept], y[kept], inside[kept]], 1)
    target = np.argwhere(kept)[:, ::-1]
    solution, _, rank, _ = np.linalg.lstsq(source, target, rcond=None)
    if rank < 3 or np.abs(source @ solution - target).max() > 1:
        raise ValueError(
            'A point of the image cannot be followed: the test pipeline leaves almost nothing of '
            'the image, or does something else than to scale, flip, turn, crop and pad it.'
        )
    height, width = (np.argwhere(shown).max(0) + 1).tolist()
    return Place(solution.T, (height, width))


def choose_layers(layers: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Return the layers with the given names, or in the modules with these names.

    Args:
        layers: Names of all layers.
        asked: Names, with or without ``backbone.``; None for all.

    Raises:
        ValueError: A name fits none.
    """
    chosen = []
    for name in [''] if asked is None else asked:
        short = name.removeprefix('backbone.')
        found = [layer for layer in layers if f'{layer}.'.startswith(f'{short}.' if short else '')]
        if not found:
            similar = get_close_matches(short, layers, 1)
            hint = f' Did you mean {similar[0]}?' if similar else ''
            raise ValueError(
                f'--layers {name}: the backbone has no such ACmix layer.{hint} It has '
                f'{", ".join(layers)}.'
            )
        chosen += found
    return [layer for layer in layers if layer in chosen]


def grid_of(size: Sequence[int], inputs: Sequence[int], centered: bool) -> Grid:
    """Return where the cells of a map are.

    Args:
        size: Height and width of the map.
        inputs: Height and width of the input of the network.
        centered: Whether the first cell is centered at the first pixel, see :func:`is_centered`.

    Raises:
        ValueError: The network reduces the input by something else than a power of two.
    """
    # Each reduction may round, up or down.
    length, number = max(zip(inputs, size, strict=True))
    fitting = [
        side
        for side in (2**power for power in range(max(inputs).bit_length()))
        if all(abs(pixels / side - cells) < 1 for pixels, cells in zip(inputs, size, strict=True))
    ]
    if not fitting:
        raise ValueError(
            f'An input of {inputs[0]}x{inputs[1]} pixels has become a map of {size[0]}x{size[1]} '
            'cells; only networks that reduce it by a power of two can be drawn.'
        )
    side = min(fitting, key=lambda side: abs(log2(side * number / length)))
    return Grid((size[0], size[1]), side, centered)


def is_centered(backbone: nn.Module) -> bool:
    """Return whether the cells of maps are centered at each multiple of the stride.

    They are if convolutions with odd kernels and as much padding on both sides reduce the image, as
    in a ResNet. Where patches without overlap are embedded, or pooled, cells lie side by side from
    the first pixel on.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride = (
                size if isinstance(size, int) else size[0]
                for size in (module.kernel_size, module.stride)
            )
            if stride > 1:
                return kernel % 2 == 1
    return False


def look(
    name: str,
    layer: Layer,
    x: Tensor,
    place: Place,
    pixel: np.ndarray,
    inputs: Sequence[int],
    centered: bool,
    head: int | None,
) -> Drawing:
    """Compute what is drawn of a layer.

    Args:
        name: Its name.
        layer: The layer.
        x: Its input.
        place: Where the pixels of the image are in the input of the network.
        pixel: The pixel ``(x, y)`` of the input of the network.
        inputs: Height and width of the input of the network.
        centered: See :func:`is_centered`.
        head: Index of a head, or None for the mean of all.

    Raises:
        ValueError: The layer has no such head.
    """
    attention, convolution = path_outputs(layer, x)
    paths = {'alpha * attention': attention, 'beta * convolution': convolution}
    maps = {title: path[0].float() for title, path in paths.items() if path is not None}
    size = next(iter(maps.values())).shape[1:]
    grid = grid_of(size, inputs, centered)
    column, row = np.clip(grid.cells(pixel), 0, np.array(size[::-1]) - 1).tolist()
    norms = {title: path.square().mean(0).sqrt().cpu().numpy() for title, path in maps.items()}
    label, weights, weights_grid = 'no attention path', None, grid
    if layer.mix.uses_attention:
        heads = attention_map(layer, x, row, column)[0].float().cpu()
        part = 'group' if isinstance(layer, PatchwiseACmix) else 'head'
        if head is not None and head >= len(heads):
            raise ValueError(
                f'--head {head}: {name} has {len(heads)} {part}s, from 0 to {len(heads) - 1}.'
            )
        mean = f'mean of {len(heads)} {part}s' if len(heads) > 1 else f'its one {part}'
        label = mean if head is None else f'{part} {head}'
        weights = (heads.mean(0) if head is None else heads[head]).numpy()
        weights_grid = _grid_of_values(layer, x, inputs, centered)
        padding = 1 - visible(weights, weights_grid, place)
        if padding >= 0.005:
            label += f'\n{padding:.0%} of it on padding around the image'
    query = grid.corners((column, row), (column, row))
    # The last cell also stands for pixels beyond it, which rounding down has left over.
    query = np.where(query == query.max(0), np.maximum(query, pixel), query)
    signed = isinstance(layer, PatchwiseACmix)
    return Drawing(name, query, label, signed, weights, weights_grid, norms, grid)


def _grid_of_values(layer: Layer, x: Tensor, inputs: Sequence[int], centered: bool) -> Grid:
    """Return where the cells of the values of a layer are, which may be reduced."""
    channels_last = not isinstance(layer, ACmix | PatchwiseACmix)
    grid = grid_of(x.shape[1:3] if channels_last else x.shape[2:], inputs, centered)
    ratio = layer.sr_ratio if isinstance(layer, SpatialReductionACmix) else 1
    return replace(grid, ratio=ratio)


def draw(
    picture: np.ndarray, place: Place, point: Sequence[float], drawings: Sequence[Drawing]
) -> Figure:
    """Draw a row for each layer.

    Args:
        picture: The image in gray, ``(H, W)``.
        place: Where its pixels are in the input of the network.
        point: The point ``(x, y)`` of the image.
        drawings: What is drawn of the layers.
    """
    height, width = picture.shape
    whole = (-0.5, -0.5, width - 0.5, height - 0.5)
    parts = [_enlarged(drawing, place, whole) for drawing in drawings]
    columns = 4 if any(parts) else 3
    tall = min(max(3.1 * height / width, 1.3), 5.0) + 0.45
    figure = Figure(figsize=(3.75 * columns, tall * len(drawings)), layout='constrained')
    rows = figure.subplots(len(drawings), columns, squeeze=False)
    for axes, drawing, part in zip(rows, drawings, parts, strict=True):
        for panel in axes:
            panel.set_axis_off()
        axes[0].set_title(f'{drawing.name}: {drawing.label}', fontsize=9)
        if drawing.weights is not None:
            _draw_attention(axes[0], picture, place, point, drawing, whole)
        if part is not None:
            left, top, right, bottom = part
            frame = Rectangle(
                (left, top), right - left, bottom - top, fill=False, edgecolor='orange'
            )
            axes[0].add_patch(frame)
            _draw_attention(axes[1], picture, place, point, drawing, part)
            axes[1].set_title('the orange part of it', fontsize=9)
        _draw_norms(axes[-2:], place, point, drawing, whole)
    return figure


def _draw_attention(
    panel: Axes,
    picture: np.ndarray,
    place: Place,
    point: Sequence[float],
    of: Drawing,
    box: Box,
) -> None:
    """Draw the weights on a part of the image, and the cell of the point."""
    weights = of.weights
    assert weights is not None
    height, width = picture.shape
    panel.imshow(picture, cmap='gray', vmin=0, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    largest = float(np.abs(weights).max())
    overlay = panel.imshow(
        sample(np.where(weights == 0, np.nan, weights), of.weights_grid, place, box),
        cmap='RdBu_r' if of.signed else 'viridis',
        vmin=-largest if of.signed else 0,
        vmax=largest,
        extent=_extent(box),
        alpha=0.65,
    )
    left, top, right, bottom = box
    panel.set(xlim=(left, right), ylim=(bottom, top))
    panel.add_patch(Polygon(place.outside(of.query), fill=False, edgecolor='red'))
    panel.plot(*point, '+', color='red', markersize=9)
    panel.figure.colorbar(overlay, ax=panel, shrink=0.85, pad=0.02)


def _draw_norms(
    axes: Sequence[Axes], place: Place, point: Sequence[float], of: Drawing, box: Box
) -> None:
    """Draw the norms of both paths, in one scale."""
    largest = max(float(norms.max()) for norms in of.norms.values())
    for panel, (title, norms) in zip(axes, of.norms.items(), strict=False):
        shown = sample(norms, of.norms_grid, place, box)
        drawn = panel.imshow(shown, extent=_extent(box), cmap='magma', vmin=0, vmax=largest)
        panel.plot(*point, '+', color='cyan', markersize=9)
        mean = np.sqrt(np.square(norms).mean())
        panel.set_title(f'norm of {title}\n(root mean square {mean:.2g})', fontsize=9)
        panel.figure.colorbar(drawn, ax=panel, shrink=0.85, pad=0.02)


def _extent(box: Box) -> Box:
    left, top, right, bottom = box
    return left, right, bottom, top


def sample(values: np.ndarray, grid: Grid, place: Place, box: Box) -> np.ndarray:
    """Sample a map over a part of the image.

    Args:
        values: Map of cells.
        grid: Where they are.
        place: Where the pixels of the image are.
        box: Left, top, right and bottom of the part, in pixels of the image.

    Returns:
        np.ndarray: An image of the part. NaN where no cell is.
    """
    left, top, right, bottom = box
    step = max(right - left, bottom - top) / SAMPLES
    x, y = (np.arange(begin + step / 2, end, step) for begin, end in ((left, right), (top, bottom)))
    pixels = place.inside(np.stack(np.meshgrid(x, y), -1))
    cells = grid.cells(pixels)
    column, row = cells[..., 0], cells[..., 1]
    height, width = values.shape
    known = (row >= 0) & (column >= 0) & (row < height) & (column < width) & place.shows(pixels)
    found = values[np.where(known, row, 0), np.where(known, column, 0)]
    return np.where(known, found, np.nan)


def visible(weights: np.ndarray, grid: Grid, place: Place) -> float:
    """Return the share of the weights whose cells touch the image: all but those on padding."""
    height, width = place.size
    right, bottom = grid.cells(np.array([width - 1, height - 1]))
    magnitude = np.abs(weights)
    return float(magnitude[: bottom + 1, : right + 1].sum() / magnitude.sum())


def _enlarged(of: Drawing, place: Place, whole: Box) -> Box | None:
    """Return the part of an image that gets attention, or None if that is most of it."""
    if of.weights is None:
        return None
    rows, columns = np.nonzero(of.weights)
    corners = place.outside(
        of.weights_grid.corners((columns.min(), rows.min()), (columns.max(), rows.max()))
    )
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    margin = 0.25 * max(right - left, bottom - top)
    box = (
        max(left - margin, whole[0]),
        max(top - margin, whole[1]),
        min(right + margin, whole[2]),
        min(bottom + margin, whole[3]),
    )
    share = (box[2] - box[0]) * (box[3] - box[1]) / ((whole[2] + 0.5) * (whole[3] + 0.5))
    return box if share < ENLARGED else None


def point(text: str) -> tuple[float, float]:
    """Parse a point of an image."""
    try:
        x, y = map(float, text.split(','))
    except ValueError:
        x = y = float('nan')
    if not (isfinite(x) and isfinite(y)):
        raise ArgumentTypeError(f'must be two numbers X,Y such as 320,240, got {text!r}')
    return x, y


def check_point(asked: tuple[float, float], size: Sequence[int]) -> None:
    """Raise ValueError if a point is not in an image of a size, height and width."""
    height, width = size
    x, y = asked
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise ValueError(
            f'--point {x:g},{y:g} is outside of the image, which is {width} pixels wide and '
            f'{height} high: x is from 0 to {width - 1} and y from 0 to {height - 1}.'
        )


def plot(
    cfg: Config,
    checkpoint: str,
    image: Path,
    asked: tuple[float, float],
    layers: Sequence[str] | None = None,
    head: int | None = None,
) -> Figure:
    """Run a network and draw what its layers attend to.

    Args:
        cfg: Config of the network.
        checkpoint: Its weights.
        image: Path of the image.
        asked: The point ``(x, y)`` of the image.
        layers: Names of layers, see :func:`choose_layers`.
        head: See :func:`look`.

    Raises:
        ValueError: Something of what is asked for does not fit.
    """
    init_default_scope(cfg.default_scope)
    picture, data, place = read_image(cfg, image)
    check_point(asked, picture.shape)
    pixel = place.inside(np.array(asked))
    if not place.shows(pixel):
        raise ValueError(
            f'--point {asked[0]:g},{asked[1]:g} is in a part of the image that the test pipeline '
            'cuts off.'
        )
    model: Any = load_model(cfg, checkpoint)
    backbone = getattr(model, 'backbone', model)
    found = acmix_layers(backbone)
    if not found:
        raise ValueError(
            f'{cfg.filename}: its backbone, {type(backbone).__name__}, has no ACmix layers.'
        )
    names = choose_layers([*found], layers)
    inputs = model.data_preprocessor(pseudo_collate([data]), False)['inputs']
    with recorded_inputs(backbone) as recorded, torch.no_grad():
        backbone(inputs)
    centered = is_centered(backbone)
    drawings = [
        look(name, found[name], recorded[name], place, pixel, inputs.shape[2:], centered, head)
        for name in names
    ]
    return draw(picture, place, asked, drawings)


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('image', type=Path, metavar='IMAGE')
    parser.add_argument('--config', required=True, help='config of a network with ACmix layers')
    parser.add_argument('--checkpoint', required=True, help='checkpoint file or URL')
    parser.add_argument(
        '--point',
        type=point,
        required=True,
        metavar='X,Y',
        help='pixel of the image, counted from 0,0 at the top left',
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='names of layers in the backbone, such as layer4.1.conv2, or of modules that contain '
        'them, such as layer4 (default: all)',
    )
    parser.add_argument(
        '--head', type=whole_number(0), help='draw one head (default: the mean of all)'
    )
    parser.add_argument('--out', default='attention.png', help='picture to write')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the arguments ask for."""
    args = parse_args(argv)
    vars(args).update(cfg_options={}, work_dir=None, launcher='none', local_rank=0)
    require_outputs({}, {'--out': args.out})
    formats = Figure().canvas.get_supported_filetypes()
    suffix = Path(args.out).suffix.removeprefix('.').lower()
    if suffix not in formats:
        sys.exit(f'--out {args.out}: its suffix must be one of {", ".join(sorted(formats))}.')
    if not args.image.is_file():
        sys.exit(f'There is no image {args.image} (working directory: {Path.cwd()}).')
    cfg = load_config(args, ['model', 'test_dataloader'])
    require_inputs(cfg, [], [args.checkpoint])
    patch_mmengine()
    content = BytesIO()
    try:
        with mistakes_are_one_message(cfg):
            figure = plot(cfg, args.checkpoint, args.image, args.point, args.layers, args.head)
    except ValueError as error:
        sys.exit(str(error))
    try:
        figure.savefig(content, format=suffix, dpi=110)
    except RuntimeError as error:  # such as TeX, which .pgf needs, is not installed
        sys.exit(f'--out {args.out}: {error}')
    write_output(args.out, content.getvalue())
    print(args.out)


if __name__ == '__main__':
    main()
