"""Configs that train and evaluate on two real images each.

The images are from a small subset of COCO, whose folder the environment variable
``ACMIX_COCO_MINI`` names: with instances for mmdet, with semantic maps of 133 classes for mmseg.
"""

import json
import os

import pytest

COCO = os.environ.get('ACMIX_COCO_MINI', '')
needs_coco = pytest.mark.skipif(not COCO, reason='needs ACMIX_COCO_MINI, a folder of images')

STEPS = """
load = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=(128, 128))
"""
LOADERS = """
loader = dict(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(loader, dataset=train)
val_dataloader = dict(loader, dataset=val)
test_dataloader = val_dataloader
"""
INSTANCES = f"""{STEPS}
data_root = {COCO!r} + '/'
images = dict(data_root=data_root, indices=2)
truth = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
pack = dict(type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
train = dict(images, pipeline=[load, truth, resize, pack])
val = dict(images, pipeline=[load, resize, pack])
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_optimizer=False))
_base_.model.test_cfg.rcnn.score_thr = 0.0  # the model is hardly trained, so all scores are low
{LOADERS}"""
SEMANTIC = f"""{STEPS}
images = dict(
    _delete_=True, type='BaseSegDataset', data_root={COCO!r}, indices=2,
    metainfo=dict(classes='{{{{ fileDirname }}}}/classes.txt'))
truth = dict(type='LoadAnnotations')
pack = dict(type='PackSegInputs')
train = dict(images, data_prefix=dict(img_path='train2017', seg_map_path='semantic/train2017'),
             pipeline=[load, truth, resize, pack])
val = dict(images, data_prefix=dict(img_path='val2017', seg_map_path='semantic/val2017'),
           pipeline=[load, resize, truth, pack])
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, save_optimizer=False))
_base_.model.data_preprocessor.size = (128, 128)
_base_.model.decode_head.num_classes = 133
{LOADERS}"""


def write_config(file, text, library):
    """Write a config of mmdet or mmseg in which real images replace its data."""
    file.write_text(text + dict(mmdet=INSTANCES, mmseg=SEMANTIC)[library])
    names = [f'class {label}' for label in range(133)]
    (file.parent / 'classes.txt').write_text('\n'.join(names))


def last_metrics(work_dir):
    """Return the last entry of a training run's log: the metrics of its last evaluation."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return json.loads(log.read_text().splitlines()[-1])
