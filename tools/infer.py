# SPDX-License-Identifier: Apache-2.0
"""Draw and save what a detector or a segmentor predicts for images and videos.

    python tools/infer.py INPUT ... --config CONFIG --checkpoint FILE --out FOLDER

An input is an image, a video, a folder or a pattern such as 'photos/*.jpg'. ``FOLDER/pictures`` has
the pictures, and ``FOLDER/predictions`` a JSON file for each image or video: the boxes, scores,
classes and masks (RLE of COCO) of a detector, or the fraction of pixels of each class of a
segmentor, with a PNG of the label map. If an image cannot be read, this is reported, the others go
on, and the exit code is 1.
"""

import argparse
import glob
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.utils import track_iter_progress

from acmix_mm.atomic_write import write_atomically
from acmix_mm.preflight.data_paths import leaf_datasets
from acmix_mm.runtime import (
    load_config,
    mistakes_are_one_message,
    patch_mmengine,
    require_fit,
    require_inputs,
    require_outputs,
)

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')

# Takes the path of an image and returns what is saved of it, its label map if it has one, and its
# picture as RGB.
Predict = Callable[[Path], tuple[Any, np.ndarray | None, np.ndarray]]


def find_inputs(inputs: Sequence[str]) -> dict[Path, Path]:
    """Find images and videos.

    Args:
        inputs: Files, folders, which are searched with their subfolders, and patterns.

    Returns:
        dict[Path, Path]: Paths, and where the results lie in a folder.

    Raises:
        ValueError: An input does not exist, contains nothing, or is of an unknown kind.
    """
    found: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = [file for file in sorted(path.rglob('*')) if _is_known(file)]
            found |= {file: file.relative_to(path) for file in files}
        else:
            files = [path] if path.exists() else [Path(file) for file in sorted(glob.glob(name))]
            if unknown := [file for file in files if not _is_known(file)]:
                raise ValueError(
                    f'{unknown[0]} is neither an image ({", ".join(IMAGES)}) nor a video '
                    f'({", ".join(VIDEOS)})'
                )
            found |= {file: Path(file.name) for file in files}
        if not files:
            raise ValueError(f'{name}: no images or videos there')
    places = Counter(found.values())
    for file, place in found.items():
        if places[place] > 1:
            raise ValueError(
                f'several inputs are called {place}, such as {file}; name their folder'
            )
    return found


def _is_known(file: Path) -> bool:
    hidden = file.name.startswith('.')
    return file.suffix.lower() in (*IMAGES, *VIDEOS) and not hidden and not file.is_dir()


def make_predictor(cfg: Config, checkpoint: str, score_threshold: float) -> Predict:
    """Build the inferencer of mmdet or mmseg.

    Args:
        cfg: Config of a detector or a segmentor.
        checkpoint: Its weights.
        score_threshold: Score that a detection must have to be drawn.
    """
    if cfg.default_scope == 'mmdet':
        return _make_detector(cfg, checkpoint, score_threshold)
    if cfg.default_scope == 'mmseg':
        return _make_segmentor(cfg, checkpoint)
    sys.exit(
        'tools/infer.py is for detectors and segmentors: the default_scope of the config must be '
        f'mmdet or mmseg, got {cfg.default_scope!r}.'
    )


def _make_detector(cfg: Config, checkpoint: str, score_threshold: float) -> Predict:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(cfg, checkpoint, show_progress=False)
    require_fit(inferencer.model, checkpoint, complete=True)
    classes = _use_classes_of(inferencer, cfg)

    def predict(image: Path) -> tuple[Any, None, np.ndarray]:
        result = inferencer(str(image), return_vis=True, pred_score_thr=score_threshold)
        (found,) = result['predictions']
        detections = [
            dict(bbox=box, score=score, label=label, name=classes[label])
            for box, score, label in zip(
                found['bboxes'], found['scores'], found['labels'], strict=True
            )
        ]
        for detection, mask in zip(detections, found.get('masks', ()), strict=False):
            detection['mask'] = mask
        return detections, None, result['visualization'][0]

    return predict


def _make_segmentor(cfg: Config, checkpoint: str) -> Predict:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(cfg, checkpoint)
    require_fit(inferencer.model, checkpoint, complete=True)
    inferencer.show_progress = False
    classes = _use_classes_of(inferencer, cfg)

    def predict(image: Path) -> tuple[Any, np.ndarray, np.ndarray]:
        result = inferencer(str(image), return_vis=True)
        labels = result['predictions'].astype(np.uint8)
        counts = np.bincount(labels.flatten(), minlength=len(classes)) / labels.size
        fractions = {name: count for name, count in zip(classes, counts, strict=False) if count}
        return fractions, labels, result['visualization']

    return predict


def _use_classes_of(inferencer: Any, cfg: Config) -> Sequence[str]:
    """Let an inferencer use the class names of the config, and return them.

    Checkpoints that were published or converted have none, and the inferencer takes those of COCO
    or Cityscapes then.
    """
    import importlib

    datasets = importlib.import_module(f'{cfg.default_scope}.registry').DATASETS
    dataset = next(leaf_datasets(cfg.test_dataloader.dataset))
    metainfo = datasets.build(dict(dataset, lazy_init=True)).metainfo
    meta = {key: metainfo[key] for key in ('classes', 'palette') if metainfo.get(key)}
    inferencer.model.dataset_meta = dict(inferencer.model.dataset_meta, **meta)
    inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta
    return inferencer.model.dataset_meta['classes']


def infer_image(predict: Predict, image: Path, out: Path, place: Path) -> None:
    """Save the predictions and the picture of an image."""
    if mmcv.imread(image) is None:
        raise ValueError('it cannot be read as an image')
    content, labels, picture = predict(image)
    write_atomically(out / 'predictions' / f'{place}.json', json.dumps(content, indent=1))
    if labels is not None:
        mmcv.imwrite(labels, str(out / 'predictions' / f'{place}.png'))
    mmcv.imwrite(mmcv.rgb2bgr(picture), str(out / 'pictures' / place))


def infer_video(predict: Predict, video: Path, out: Path, place: Path) -> None:
    """Save the predictions of all frames of a video, and a video of the pictures.

    Raises:
        ValueError: Frames are missing, or a video cannot be written.
    """
    frames = mmcv.VideoReader(str(video))
    if not len(frames):
        raise ValueError('it cannot be read as a video')
    file = out / 'pictures' / f'{place}.mp4'
    file.parent.mkdir(parents=True, exist_ok=True)
    content = []
    with TemporaryDirectory() as folder:
        image, unfinished = Path(folder, 'frame.png'), Path(folder, 'pictures.mp4')
        codec, size = cv2.VideoWriter.fourcc(*'mp4v'), (frames.width, frames.height)
        writer = cv2.VideoWriter(str(unfinished), codec, frames.fps or 25, size)
        if not writer.isOpened():
            raise ValueError('OpenCV cannot write videos here (codec mp4v)')
        try:
            for frame in frames:
                # The inferencers draw on files alone with the right order of colors.
                mmcv.imwrite(frame, str(image))
                found, _, picture = predict(image)
                content.append(found)
                writer.write(mmcv.rgb2bgr(picture))
        finally:
            writer.release()
        if len(content) < len(frames):
            raise ValueError(f'only {len(content)} of its {len(frames)} frames can be read')
        shutil.move(unfinished, file)
    write_atomically(out / 'predictions' / f'{place}.json', json.dumps(content, indent=1))


def infer_all(predict: Predict, inputs: dict[Path, Path], out: Path) -> Iterator[str]:
    """Save the predictions of all inputs, and yield what is wrong with those that have none."""
    for path, place in _with_progress(inputs.items(), len(inputs)):
        infer = infer_video if path.suffix.lower() in VIDEOS else infer_image
        try:
            infer(predict, path, out, place)
        except Exception as error:  # a damaged file may fail anywhere; the others go on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield f'{path}: {reason}'


def _with_progress(items: Iterable, number: int) -> Iterable:
    return track_iter_progress((items, number), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw and save the predictions for the inputs that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('inputs', nargs='+', metavar='INPUT')
    parser.add_argument('--config', required=True, help='config of a detector or a segmentor')
    parser.add_argument('--checkpoint', required=True, help='checkpoint file or URL')
    parser.add_argument('--out', required=True, help='folder of the results')
    parser.add_argument(
        '--score-threshold',
        type=float,
        default=0.3,
        help='score that a detection must have to be drawn (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    vars(args).update(cfg_options={}, work_dir=None, launcher='none', local_rank=0)
    cfg = load_config(args, ['model', 'test_dataloader'])
    require_inputs(cfg, [], [args.checkpoint])
    require_outputs({'--out': args.out}, {})
    try:
        inputs = find_inputs(args.inputs)
    except ValueError as error:
        sys.exit(f'{error}.')
    patch_mmengine()
    with mistakes_are_one_message(cfg):
        predict = make_predictor(cfg, args.checkpoint, args.score_threshold)
    faults = list(infer_all(predict, inputs, Path(args.out)))
    print(f'\n{len(inputs) - len(faults)} of {len(inputs)} inputs: {args.out}')
    if faults:
        sys.exit('\n'.join(['No predictions for:', *faults]))


if __name__ == '__main__':
    main()
