"""tools/infer.py, with networks that were not trained."""

import json
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / 'configs' / 'demo' / 'mask-rcnn_resnet26-acmix_fpn_shapes.py'
SEGMENTOR = ROOT / 'configs' / 'demo' / 'sem-fpn_resnet26-acmix_shapes.py'
SHAPES = ('disc', 'square', 'triangle', 'star')


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """The configs, and checkpoints without class names, as converted ones are."""
    folder, files = tmp_path_factory.mktemp('checkpoints'), {}
    for config in (DETECTOR, SEGMENTOR):
        cfg = Config.fromfile(config)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        files[config] = folder / f'{config.stem}.pth'
        torch.save(model.state_dict(), files[config])
    return files


@pytest.fixture
def infer(tool, checkpoints, tmp_path):
    """Run the tool, and return the folder of its results."""

    def run(config, *inputs):
        options = ['--config', str(config), '--checkpoint', str(checkpoints[config])]
        options += ['--out', str(tmp_path / 'out'), '--score-threshold', '0.01']
        tool('infer.py').main([*map(str, inputs), *options])
        return tmp_path / 'out'

    return run


@pytest.fixture
def images(shapes, tmp_path):
    """A folder of images, one of them in a subfolder."""
    folder = tmp_path / 'images'
    (folder / 'more').mkdir(parents=True)
    first, second = sorted((shapes / 'val').glob('*.jpg'))[:2]
    mmcv.imwrite(mmcv.imread(first), str(folder / 'a.png'))
    (folder / 'more' / 'b.jpg').write_bytes(second.read_bytes())
    (folder / 'notes.txt').write_text('no image')
    return folder


def test_detector(infer, images):
    out = infer(DETECTOR, images)
    found = json.loads((out / 'predictions' / 'a.png.json').read_text())
    assert len(found) == 20
    for detection in found:
        assert detection['name'] == SHAPES[detection['label']], 'the classes of the config'
        assert len(detection['bbox']) == 4
        assert 0 <= detection['score'] <= 1
        assert detection['mask']['size'] == [256, 256]
    original = mmcv.imread(images / 'more' / 'b.jpg').astype(int)
    picture = mmcv.imread(out / 'pictures' / 'more' / 'b.jpg').astype(int)
    assert picture.shape == original.shape
    assert 1 < np.abs(picture - original).mean() < 60, 'predictions are drawn on the image'
    assert not list(out.rglob('notes*'))


def test_segmentor(infer, images):
    out = infer(SEGMENTOR, images / 'a.png', images / 'more' / '*.jpg')
    fractions = json.loads((out / 'predictions' / 'b.jpg.json').read_text())
    labels = mmcv.imread(out / 'predictions' / 'b.jpg.png', flag='unchanged')
    assert labels.shape == (256, 256)
    assert set(fractions) <= {'background', *SHAPES}
    assert sum(fractions.values()) == pytest.approx(1)
    names = ['background', *SHAPES]
    assert {names[i] for i in np.unique(labels)} == set(fractions)
    assert mmcv.imread(out / 'pictures' / 'a.png').shape == (256, 256, 3)


def test_video(infer, images, tmp_path):
    codec = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(tmp_path / 'film.mp4'), codec, 5, (256, 256))
    for _ in range(3):
        writer.write(mmcv.imread(images / 'a.png'))
    writer.release()
    out = infer(DETECTOR, tmp_path / 'film.mp4')
    assert len(json.loads((out / 'predictions' / 'film.mp4.json').read_text())) == 3
    assert len(mmcv.VideoReader(str(out / 'pictures' / 'film.mp4.mp4'))) == 3


def test_damaged_image_does_not_stop_the_others(infer, images, capsys):
    (images / 'broken.jpg').write_bytes((images / 'more' / 'b.jpg').read_bytes()[:100])
    with pytest.raises(SystemExit, match=r'No predictions for:\n.*broken.jpg: it cannot be read'):
        infer(SEGMENTOR, images)
    assert '2 of 3 inputs' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('names', 'says'),
    [
        (['nothing/*.jpg'], 'nothing/\\*.jpg: no images or videos there'),
        (['images/notes.txt'], 'notes.txt is neither an image .* nor a video'),
        (['images/more', 'images/more/b.jpg', 'other/b.jpg'], 'several inputs are called b.jpg'),
    ],
)
def test_inputs_that_cannot_be_used(tool, images, tmp_path, monkeypatch, names, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'b.jpg').write_bytes((images / 'more' / 'b.jpg').read_bytes())
    with pytest.raises(ValueError, match=says):
        tool('infer.py').find_inputs(names)


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR])
def test_inferencers_of_the_libraries(config, checkpoints, images, tmp_path):
    """The three lines of Python in the README; the config alone imports acmix_mm."""
    if config == DETECTOR:
        from mmdet.apis import DetInferencer as Inferencer
    else:
        from mmseg.apis import MMSegInferencer as Inferencer
    inferencer = Inferencer(str(config), str(checkpoints[config]), device='cpu')
    result = inferencer(str(images / 'a.png'), out_dir=str(tmp_path / 'out'))
    assert len(result['predictions']) == (1 if config == DETECTOR else 256)
    (picture,) = (tmp_path / 'out' / 'vis').iterdir()
    assert mmcv.imread(picture).shape == (256, 256, 3)


def test_checkpoint_of_another_network(tool, checkpoints, images, tmp_path):
    """The inferencers would predict with the random weights of the entries that it lacks."""
    arguments = ['--config', str(DETECTOR), '--checkpoint', str(checkpoints[SEGMENTOR])]
    with pytest.raises(SystemExit, match=r'sem-fpn.*does not fit the model: \d+ of the \d+ entr'):
        tool('infer.py').main([str(images), *arguments, '--out', str(tmp_path / 'out')])
    assert not [*tmp_path.glob('out/*')]


def test_classifiers_are_refused(tool):
    cfg = Config(dict(default_scope='mmpretrain'))
    with pytest.raises(SystemExit, match=r'must be mmdet or mmseg, got .mmpretrain.'):
        tool('infer.py').make_predictor(cfg, 'x.pth', 0.3)
