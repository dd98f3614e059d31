"""benchmarks/inference.py measures the network that was exported, and the detector around it."""

import mmcv
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from acmix_mm.runtime.parts import Features
from benchmarks import inference


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """An image, and a checkpoint of the demo's detector with random weights."""
    folder = tmp_path_factory.mktemp('inference')
    cfg = Config.fromfile(inference.DEMO)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(cfg.model).state_dict(), folder / 'weights.pth')
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mmcv.imwrite(image, str(folder / 'image.png'))
    return str(folder / 'image.png'), str(folder / 'weights.pth')


def test_detector_with_features_from_elsewhere(files):
    image, checkpoint = files
    detector = init_detector(inference.DEMO, checkpoint, device='cpu')
    given = inference.network_input(detector, image)
    assert given.shape[:2] == (1, 3)
    assert not given.shape[2] % 32
    features = Features(detector)
    calls = []

    def run(x):
        calls.append(x)
        return features(x)

    found = inference_detector(inference.with_features(detector, run), image).pred_instances
    assert torch.equal(*calls, given)
    expected = inference_detector(detector, image).pred_instances
    assert len(calls) == 1, 'the detector itself was not changed'
    assert torch.equal(found.bboxes, expected.bboxes)
    assert torch.equal(found.masks, expected.masks)


def test_prints_a_row_for_both(files, monkeypatch, capsys):
    def ways(config, checkpoint, features, size):
        assert features(torch.zeros(1, 3, *size))
        return dict(eager=features, compiled=features, ONNX=features)

    monkeypatch.setattr(inference, 'three_ways', ways)
    image, checkpoint = files
    threads = str(torch.get_num_threads())
    inference.main([image, '--checkpoint', checkpoint, '--rounds', '1', '--threads', threads])
    *_, header, _, alone, whole = capsys.readouterr().out.splitlines()
    assert header == '|  | eager | compiled | ONNX |'
    for row in (alone, whole):
        assert all(float(figure) > 0 for figure in row.split('|')[2:-1])


@pytest.mark.parametrize(
    ('image', 'checkpoint', 'says'),
    [
        ('nowhere.jpg', None, 'There is no image nowhere.jpg'),
        (__file__, None, 'test_inference.py cannot be read as an image'),
        (None, 'nowhere.pth', 'checkpoint nowhere.pth cannot be loaded'),
    ],
)
def test_mistakes_are_one_message(files, image, checkpoint, says):
    with pytest.raises(SystemExit, match=says):
        inference.main([image or files[0], '--checkpoint', checkpoint or files[1]])


@pytest.mark.parametrize('option', ['--rounds', '--threads'])
def test_numbers_that_are_too_small(files, option, capsys):
    with pytest.raises(SystemExit):
        inference.main([files[0], option, '0'])
    assert f'argument {option}: must be a whole number of at least 1' in capsys.readouterr().err
