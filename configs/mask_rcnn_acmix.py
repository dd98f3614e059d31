# A config to start with: Mask R-CNN with a ResNet-50-ACmix backbone, 12 epochs of COCO.
#
#   python tools/train.py configs/mask_rcnn_acmix.py
#   python tools/train.py configs/mask_rcnn_acmix.py --cfg-options data_root=/disk/coco
#   python tools/test.py configs/mask_rcnn_acmix.py work_dirs/mask_rcnn_acmix/epoch_12.pth
_base_ = './resnet_acmix/mask-rcnn_resnet50-acmix_fpn_1x_coco.py'
