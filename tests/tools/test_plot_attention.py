"""tools/analysis/plot_attention.py, with networks that were not trained."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from acmix_mm.layers import ACmix
from acmix_mm.layers.attention_maps import recorded_inputs

ROOT = Path(__file__).parents[2]
SEGMENTOR = ROOT / 'configs' / 'demo' / 'sem-fpn_resnet26-acmix_shapes.py'
BACKBONES: dict[str, dict[str, Any]] = {
    'ACmixResNet': dict(depth=26, base_channels=8, stage_with_acmix=(True,) * 4),
    'ACmixSwin': dict(embed_dims=8, depths=(2, 2), num_heads=(1, 2), strides=(4, 2),
                      out_indices=(1,)),
    'ACmixPVT': dict(embed_dims=8, num_layers=(1, 1), num_heads=(1, 2), out_indices=(1,),
                     num_stages=2, patch_sizes=(4, 2), strides=(4, 2), paddings=(0, 0),
                     sr_ratios=(4, 2), mlp_ratios=(2, 2)),
    'ACmixSAN': dict(depth=10, base_channels=32),
}  # fmt: skip
RESIZE = [dict(type='Resize', scale=(192, 96), keep_ratio=True)]
PIPELINES: dict[str, list[dict]] = {
    'as it is': [],
    'resized': RESIZE,
    'resized out of shape': [dict(type='Resize', scale=(130, 110), keep_ratio=False)],
    'resized by Pillow': [
        dict(type='Resize', scale=(100, 60), backend='pillow', interpolation='bicubic')
    ],
    'flipped': [*RESIZE, dict(type='RandomFlip', prob=1.0)],
    'flipped, both ways': [*RESIZE, dict(type='RandomFlip', prob=1.0, direction='diagonal')],
    'padded': [*RESIZE, dict(type='Pad', size_divisor=64)],
}


@pytest.fixture(scope='module')
def plot_attention(tool):
    return tool('analysis/plot_attention.py')


@cache
def base_config() -> Config:
    return Config.fromfile(SEGMENTOR)


def config(transforms: list[dict]) -> Config:
    cfg = deepcopy(base_config())
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        *transforms,
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    init_default_scope('mmseg')
    return cfg


def backbone_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(dict(type=name, **BACKBONES[name])).eval()


@pytest.fixture
def image(tmp_path):
    """An image of 80x140 pixels."""
    path = tmp_path / 'image.png'
    mmcv.imwrite(np.random.default_rng(0).integers(0, 255, (80, 140, 3), np.uint8), str(path))
    return path


def spot(path: Path, point: tuple[int, int] | None, radius: float = 0.1) -> Path:
    """A gray image of the same size with a bright spot at a point."""
    rows, columns = np.mgrid[:80, :140]
    picture = np.full((80, 140), 100.0)
    if point is not None:
        distance = np.hypot(columns - point[0], rows - point[1])
        picture += 150 * np.exp(-0.5 * (distance / radius) ** 2)
    mmcv.imwrite(np.repeat(picture.round().astype(np.uint8)[..., None], 3, 2), str(path))
    return path


POINTS = [(0, 0), (139, 79), (57, 31), (100, 12)]


@pytest.mark.parametrize('pipeline', PIPELINES)
@pytest.mark.parametrize('point', POINTS, ids=str)
def test_point_of_the_image_is_found_in_the_input(plot_attention, tmp_path, pipeline, point):
    cfg, corner = config(PIPELINES[pipeline]), point in POINTS[:2]
    file = spot(tmp_path / 'spot.png', point, radius=0.1 if corner else 2)
    _, data, place = plot_attention.read_image(cfg, file)
    height, width = place.size
    change = data['inputs'][0, :height, :width].double().numpy() - 100
    rows, columns = np.mgrid[:height, :width]
    center = [(axis * change).sum() / change.sum() for axis in (columns, rows)]
    found = place.inside(np.array(point))
    # Interpolation repeats the corners of the image.
    np.testing.assert_allclose(found, center, rtol=0, atol=0.8 if corner else 0.03)
    np.testing.assert_allclose(place.outside(found), point, rtol=0, atol=1e-3)


def test_point_of_a_turned_image(plot_attention):
    place = plot_attention.Place(np.array([[0, -2.0, 159], [2.0, 0, 1]]), (281, 160))
    points = np.array([(0, 0), (139, 5.5)])
    np.testing.assert_array_equal(place.inside(points), [(159, 1), (148, 279)])
    np.testing.assert_allclose(place.outside(place.inside(points)), points)


def first_input(backbone: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The input of the first ACmix layer, (C, H, W)."""
    with recorded_inputs(backbone) as recorded, torch.no_grad():
        backbone(image[None].float() / 50)
    x = next(iter(recorded.values()))[0]
    return x.permute(2, 0, 1) if type(backbone).__name__ in ('ACmixSwin', 'ACmixPVT') else x


@pytest.mark.parametrize('name', ['ACmixSwin', 'ACmixPVT', 'ACmixSAN'])
@pytest.mark.parametrize('pipeline', ['resized', 'flipped, both ways', 'padded'])
def test_cell_of_the_point_is_the_one_that_sees_it(plot_attention, tmp_path, name, pipeline):
    cfg, backbone = config(PIPELINES[pipeline]), backbone_of(name)
    inputs = {}
    for point in (None, *POINTS[2:]):
        _, data, place = plot_attention.read_image(cfg, spot(tmp_path / 'spot.png', point))
        inputs[point] = first_input(backbone, data['inputs'])
    size = inputs[None].shape[1:]
    grid = plot_attention.grid_of(size, data['inputs'].shape[1:], centered=False)
    for point in POINTS[2:]:
        cell = grid.cells(place.inside(np.array(point)))
        change = (inputs[point] - inputs[None]).square().sum(0)
        row, column = divmod(int(change.argmax()), size[1])
        assert cell.tolist() == [column, row]


@pytest.mark.parametrize('name', BACKBONES)
def test_cells_are_centered_where_their_receptive_fields_are(plot_attention, name):
    backbone = backbone_of(name)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):  # every change goes through
            module.weight.data.abs_()
    centered = plot_attention.is_centered(backbone)
    assert centered == (name == 'ACmixResNet')
    gray = torch.full((3, 64, 96), 100.0)
    before, misses = first_input(backbone, gray), []
    grid = plot_attention.grid_of(before.shape[1:], gray.shape[1:], centered)
    for x in range(40, 48):
        image = gray.clone()
        image[:, 33, x] = 200
        change = (first_input(backbone, image) - before).abs().sum(0)
        columns = (change > 1e-4 * change.max()).nonzero()[:, 1].double()
        expected = (x - grid.start) / grid.side - 0.5
        misses.append(float(columns.mean()) - expected)
    assert np.abs(misses).max() <= 0.5
    assert abs(np.mean(misses)) < 0.1


@pytest.mark.parametrize('point', [(83, 46), (0, 0)])
@pytest.mark.parametrize('name', BACKBONES)
def test_attention_lies_around_the_point(plot_attention, image, name, point):
    """In a flipped, resized and padded input; and every layer's cell contains the point."""
    transforms = [*PIPELINES['flipped, both ways'], dict(type='Pad', size_divisor=32)]
    cfg, backbone = config(transforms), backbone_of(name)
    _, data, place = plot_attention.read_image(cfg, image)
    corner, point = point == (0, 0), np.array(point)
    pixel, inputs = place.inside(point), data['inputs']
    with recorded_inputs(backbone) as recorded, torch.no_grad():
        backbone(inputs[None].float() / 50)
    for layer, x in recorded.items():
        drawing = plot_attention.look(
            layer, backbone.get_submodule(layer), x, place, pixel, inputs.shape[1:],
            plot_attention.is_centered(backbone), None,
        )  # fmt: skip
        corners = place.outside(drawing.query)
        assert (corners.min(0) <= point + 1e-3).all()
        assert (corners.max(0) >= point - 1e-3).all()
        if corner:  # reduced keys leave it out
            continue
        weights = np.where(drawing.weights == 0, np.nan, drawing.weights)
        whole = plot_attention.sample(
            weights, drawing.weights_grid, place, (-0.5, -0.5, 139.5, 79.5)
        )
        rows, columns = np.nonzero(np.isfinite(whole))
        scale = plot_attention.SAMPLES / 140
        here = np.array([(columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)])
        assert (here[0] <= (point + 0.5) * scale).all()
        assert (here[1] >= (point + 0.5) * scale).all()
        if name == 'ACmixPVT':
            assert np.isfinite(whole).mean() > 0.9, 'it attends to the whole image'
        first = layer == next(iter(recorded))
        if first and name in ('ACmixResNet', 'ACmixSAN'):  # the window is not cut by the border
            middle = here.mean(0) / scale - 0.5
            side = drawing.weights_grid.side / 1.2  # the image is enlarged by 1.2
            np.testing.assert_allclose(middle, corners.mean(0), rtol=0, atol=1)
            window = 7 if name == 'ACmixResNet' else 3
            np.testing.assert_allclose((here[1] - here[0]) / scale, window * side, atol=1)


def test_reduction_by_something_else_than_a_power_of_two(plot_attention):
    with pytest.raises(ValueError, match=r'input of 96x120 pixels has become a map of 32x40 cells'):
        plot_attention.grid_of((32, 40), (96, 120), False)
    for side in (2, 8, 32):
        for pixels in (65, 250, 799):  # rounded up, and down
            for cells in (-(-pixels // side), pixels // side):
                assert plot_attention.grid_of((cells, cells), (pixels, pixels), False).side == side


@pytest.mark.parametrize('centered', [False, True])
def test_nothing_is_drawn_where_the_image_is_cut_off(plot_attention, image, centered):
    cfg = config([dict(type='mmcv.CenterCrop', crop_size=(64, 48))])
    _, _, place = plot_attention.read_image(cfg, image)
    grid = plot_attention.grid_of((3, 4), place.size, centered)
    assert place.size == (48, 64)
    drawn = plot_attention.sample(np.ones((3, 4)), grid, place, (-0.5, -0.5, 139.5, 79.5))
    rows, columns = np.nonzero(np.isfinite(drawn))
    scale = plot_attention.SAMPLES / 140
    borders = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    np.testing.assert_allclose(np.array(borders) / scale, (38, 16, 102, 64), atol=0.5)


@pytest.mark.parametrize(('centered', 'start'), [(False, -0.5), (True, -2)])
def test_reduced_cells(plot_attention, centered, start):
    """They consist of whole cells of the map, also if these overlap as in PVTv2."""
    grid = plot_attention.Grid((5, 7), 4, centered, ratio=2)
    (left, top), _, (right, bottom), _ = grid.corners((1, 0), (2, 1))
    assert (left, top) == (start + 8, start)
    assert (right, bottom) == (start + 24, start + 16)
    pixels = np.arange(28)
    cells = grid.cells(np.stack([pixels, pixels], -1))[:, 0]
    borders = (np.nonzero(np.diff(cells))[0] + 0.5).tolist()
    np.testing.assert_allclose(borders, np.array([8, 16, 24]) + start, atol=0.5)


def test_share_on_padding(plot_attention, image):
    cfg = config([dict(type='Pad', size=(160, 160))])
    _, _, place = plot_attention.read_image(cfg, image)
    assert place.size == (80, 140)
    grid = plot_attention.Grid((20, 20), 8, False)
    assert plot_attention.visible(np.ones((20, 20)), grid, place) == pytest.approx(10 * 18 / 400)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    cfg = config(RESIZE)
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp('checkpoints') / 'segmentor.pth'
    torch.save(MODELS.build(cfg.model).state_dict(), file)
    return file


@pytest.fixture
def plot(plot_attention, checkpoint, image, tmp_path):
    """Run the tool with some options changed, and return the path of the picture."""

    def run(*options: str, **changed: Any) -> Path:
        paths = dict(image=image, config=SEGMENTOR, checkpoint=checkpoint, point='57,31')
        paths |= dict(out=tmp_path / 'pictures' / 'attention.png') | changed
        named = [f'--{name}={value}' for name, value in paths.items() if name != 'image']
        plot_attention.main([str(paths['image']), *named, *options])
        return Path(paths['out'])

    return run


def test_draws_layers(plot, plot_attention, monkeypatch, capsys):
    figures = []
    savefig = plot_attention.Figure.savefig
    monkeypatch.setattr(
        plot_attention.Figure,
        'savefig',
        lambda figure, *args, **options: (
            figures.append(figure),
            savefig(figure, *args, **options),
        ),
    )
    out = plot('--layers', 'layer4.0.conv2', 'backbone.layer2', '--head', '1')
    assert out.read_bytes().startswith(b'\x89PNG')
    assert capsys.readouterr().out.endswith(f'{out}\n')
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert [title for title in titles if title.startswith('layer')] == [
        'layer2.0.conv2: head 1',
        'layer2.1.conv2: head 1',
        'layer4.0.conv2: head 1',
    ]
    assert sum(title.startswith('norm of alpha * attention') for title in titles) == 3
    assert sum(title.startswith('norm of beta * convolution') for title in titles) == 3


def test_layer_without_attention_has_norms_alone(plot_attention, image):
    _, _, place = plot_attention.read_image(config([]), image)
    torch.manual_seed(0)
    layer = ACmix(8, 8, path_weights=(0, 1)).eval()
    drawing = plot_attention.look(
        'conv', layer, torch.rand(1, 8, 20, 35), place, np.array([30, 20]), (80, 140), True, None
    )
    assert drawing.weights is None
    assert list(drawing.norms) == ['beta * convolution']
    picture = np.zeros((80, 140))
    titles = [
        axes.get_title() for axes in plot_attention.draw(picture, place, (30, 20), [drawing]).axes
    ]
    assert titles[0] == 'conv: no attention path'


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (dict(point='140,31'), '--point 140,31 is outside of the image, which is 140 pixels wide '
         'and 80 high: x is from 0 to 139 and y from 0 to 79'),
        (dict(point='-1,31'), '--point -1,31 is outside of the image'),
        (dict(head=4), '--head 4: layer1.0.conv2 has 4 heads, from 0 to 3'),
        (dict(layers='layer3.0.conv3'),
         r'--layers layer3.0.conv3: .* Did you mean layer3.0.conv2\? It has layer1.0.conv2, .*'),
        (dict(image='nowhere.jpg'), 'There is no image nowhere.jpg'),
        (dict(image=SEGMENTOR), f'{SEGMENTOR} cannot be read as an image'),
        (dict(out='attention.docx'), '--out attention.docx: its suffix must be one of .*png'),
        (dict(out='/dev/null/a.png'), '--out /dev/null: nothing can be written there'),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(plot, options, says):
    with pytest.raises(SystemExit, match=says) as error:
        plot(**options)
    assert '\n' not in str(error.value).strip()


def test_format_that_needs_a_missing_program(plot, monkeypatch):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(SystemExit, match=r"--out attention.pgf: '\w+' not found"):
        plot(out='attention.pgf')


@pytest.mark.parametrize('point', ['57', '57,a', '1,2,3', 'nan,1', ''])
def test_malformed_point(plot, point, capsys):
    with pytest.raises(SystemExit) as error:
        plot(point=point)
    assert error.value.code == 2
    assert f"must be two numbers X,Y such as 320,240, got '{point}'" in capsys.readouterr().err


def test_backbone_without_acmix(plot, tmp_path):
    (tmp_path / 'plain.py').write_text(
        f"_base_ = '{SEGMENTOR}'\n"
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18), "
        'neck=dict(in_channels=[64, 128, 256, 512]))\n'
    )
    cfg = Config.fromfile(tmp_path / 'plain.py')
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(SystemExit, match=r'plain.py: its backbone, ResNet, has no ACmix layers'):
        plot(config=tmp_path / 'plain.py', checkpoint=tmp_path / 'plain.pth')


def test_point_that_the_pipeline_cuts_off(plot, tmp_path):
    (tmp_path / 'crop.py').write_text(
        f"_base_ = '{SEGMENTOR}'\n"
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='mmcv.CenterCrop', crop_size=(64, 48)), dict(type='PackSegInputs')]))\n"
    )
    plot('--layers', 'layer4', config=tmp_path / 'crop.py', point='45,20')
    with pytest.raises(
        SystemExit, match=r'--point 10,20 is in a part .* that the test pipeline cuts'
    ):
        plot(config=tmp_path / 'crop.py', point='10,20')


def test_pipeline_that_cannot_be_followed(plot_attention, image):
    cfg = config([dict(type='mmcv.Normalize', mean=[1, 2, 3], std=[50, 60, 70])])
    with pytest.raises(ValueError, match='A point of the image cannot be followed'):
        plot_attention.read_image(cfg, image)
