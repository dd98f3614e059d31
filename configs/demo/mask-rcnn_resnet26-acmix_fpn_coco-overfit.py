# A narrow Mask R-CNN that overfits 8 images of COCO: a test with real data that runs on a CPU.
#
#   python tools/train.py configs/demo/mask-rcnn_resnet26-acmix_fpn_coco-overfit.py \
#       --cfg-options data_root=/disk/coco
_base_ = [
    '../_base_/models/mask-rcnn_resnet26-acmix_narrow.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

custom_imports = dict(imports=['acmix_mm'])

images = dict(
    data_root='data/coco/',
    ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'),
    indices=8,
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=(256, 256), keep_ratio=True),
        dict(
            type='PackDetInputs',
            # CocoMetric reads `instances`, the ground truth in pixels of the original image.
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
        ),
    ],
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=20,
        dataset=dict(type='CocoDataset', _scope_='mmdet', **images),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=images,
)
test_dataloader = val_dataloader
# Without an annotation file, CocoMetric takes the ground truth from the images' `instances`, which
# are those of the 8 images.
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
# There is no weight decay, so no parameter has to be exempt from it as in ../_base_/acmix.py.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', T_max=max_epochs, convert_to_iter_based=True, eta_min=1e-5),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
del images, max_epochs  # otherwise mmengine keeps them as keys of the config
