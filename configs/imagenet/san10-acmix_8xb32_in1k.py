# SAN-10-ACmix, 100 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/san10-acmix_8xb32_in1k.py
#
# The recipe of SAN's release (https://github.com/hszhao/SAN, imagenet_san10_patchwise.yaml). In the
# release all parameters decay; here, those that _base_/acmix.py names do not.
_base_ = [
    '../_base_/imagenet/classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    'mmpretrain::_base_/schedules/imagenet_bs256_coslr.py',
]

model = dict(
    backbone=dict(_delete_=True, type='ACmixSAN', depth=10, out_indices=(4,), norm_eval=False),
)
optim_wrapper = _base_.pop('no_decay')
