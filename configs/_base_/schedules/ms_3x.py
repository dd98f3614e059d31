# What makes 36 epochs at several scales of a config for 12 epochs of COCO; its warm-up, 1000
# iterations, is that of the transformers for all.
ms_3x = dict(
    train_cfg=dict(max_epochs=36),
    train_dataloader=dict(
        dataset=dict(
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
                dict(type='RandomFlip', prob=0.5),
                dict(type='PackDetInputs'),
            ]
        )
    ),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
        dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
    ],
)
