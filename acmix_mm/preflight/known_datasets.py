# SPDX-License-Identifier: Apache-2.0
"""Public data sets that configs name: where to get them, and their sizes."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownDataset:
    """Expected source and size of a public data set.

    Attributes:
        source: Where to get it.
        counts: Number of images, and of annotations where they are counted, by the end of the path
            of an annotation file or an image folder.
    """

    source: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def counts_of(self, paths: Iterable[str | None]) -> dict[str, int]:
        """Return the counts of the part at one of the paths; empty if it is unknown.

        Args:
            paths: Annotation file and folders of a dataset; None for those that it lacks.

        Examples:
            >>> KNOWN['CityscapesDataset'].counts_of(['data/cityscapes/leftImg8bit/val'])
            {'images': 500}
        """
        for end, counts in self.counts.items():
            if any(f'/{path.rstrip("/")}'.endswith(f'/{end}') for path in paths if path):
                return counts
        return {}


# By dataset class. docs/data.md shows the layout that the configs expect.
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
        'Cityscapes, https://www.cityscapes-dataset.com/downloads (leftImg8bit, gtFine), and mmseg '
        'makes the labelTrainIds: tools/dataset_converters/cityscapes.py',
        {'leftImg8bit/train': dict(images=2975), 'leftImg8bit/val': dict(images=500)},
    ),
    'PascalVOCDataset': KnownDataset(
        'PASCAL VOC 2012, http://host.robots.ox.ac.uk/pascal/VOC/voc2012, and mmseg adds the '
        'annotations of SBD: tools/dataset_converters/voc_aug.py',
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
