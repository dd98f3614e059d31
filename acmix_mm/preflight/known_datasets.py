# SPDX-License-Identifier: Apache-2.0
"""Sources and sizes of the public data sets that the configs use."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownDataset:
    """Expected source and size of a public data set.

    Attributes:
        source: Where to get the data set.
        counts: Expected numbers of images and, for COCO, of annotations. The keys are the ends of
            paths of annotation files or image folders.
    """

    source: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def counts_of(self, paths: Iterable[str | None]) -> dict[str, int]:
        """Return the expected counts for the split that a data set reads.

        Args:
            paths: Paths of the annotation file and the image folders of the data set, or None
                for those that it does not have.

        Returns:
            dict[str, int]: Counts of the first split whose path matches; empty if none does.

        Examples:
            >>> KNOWN['CityscapesDataset'].counts_of(['data/cityscapes/leftImg8bit/val'])
            {'images': 500}
        """
        for end, counts in self.counts.items():
            if any(f'/{path.rstrip("/")}'.endswith(f'/{end}') for path in paths if path):
                return counts
        return {}


# By the name of the class of the data set. docs/data.md shows the layout that the configs expect.
KNOWN = {
    'CocoDataset': KnownDataset(
        'COCO 2017, `mim download mmdet --dataset coco2017` or https://cocodataset.org/#download '
        '(train and val images, train/val annotations)',
        {
            'instances_train2017.json': dict(images=118287, annotations=860001),
            'instances_val2017.json': dict(images=5000, annotations=36781),
        },
    ),
    'ADE20KDataset': KnownDataset(
        'ADE20K, `mim download mmsegmentation --dataset ade20k` or '
        'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
        {'images/training': dict(images=20210), 'images/validation': dict(images=2000)},
    ),
    'CityscapesDataset': KnownDataset(
        'Cityscapes, https://www.cityscapes-dataset.com/downloads (leftImg8bit, gtFine); '
        'tools/dataset_converters/cityscapes.py of mmseg makes the labelTrainIds',
        {'leftImg8bit/train': dict(images=2975), 'leftImg8bit/val': dict(images=500)},
    ),
    'PascalVOCDataset': KnownDataset(
        'PASCAL VOC 2012, http://host.robots.ox.ac.uk/pascal/VOC/voc2012; '
        'tools/dataset_converters/voc_aug.py of mmseg adds the annotations of SBD',
        {
            'Segmentation/train.txt': dict(images=1464),
            'Segmentation/val.txt': dict(images=1449),
            'Segmentation/aug.txt': dict(images=9118),
        },
    ),
    'ImageNet': KnownDataset(
        'ImageNet-1k, https://image-net.org/download.php',
        {'train': dict(images=1281167), 'val': dict(images=50000)},
    ),
}
