"""Values that no network can have end in one message that names the argument and the value."""

import pytest
import torch

from acmix_mm.registry import MODELS

DEPTH = {'ACmixResNet': 26, 'ACmixSAN': 10}
WIDTH = {
    'ACmixResNet': 'base_channels',
    'ACmixSAN': 'base_channels',
    'ACmixPVT': 'embed_dims',
    'ACmixSwin': 'embed_dims',
}
VALUES = [
    *(('width', value) for value in (0, -16, 1.5, '64', None, [64])),
    *(('in_channels', value) for value in (0, -3, 3.0, None)),
    *(('drop_path_rate', value) for value in (2.0, -1, 1, float('nan'), '0.1', None)),
    *(('out_indices', value) for value in (3, (), (7,), (-1,), (1.5,), None, 'ab')),
    *(('frozen_stages', value) for value in (1.5, -2, 9, '1', None)),
    *(('strides', value) for value in (2, (1,), None)),
    *(('acmix_cfg', value) for value in (7, 'x', [1])),
]


CASES = [
    (backbone, WIDTH[backbone] if name == 'width' else name, value)
    for backbone in WIDTH
    for name, value in VALUES
    if not (backbone == 'ACmixSAN' and name in ('strides', 'drop_path_rate'))  # it has neither
    and not (backbone == 'ACmixSwin' and name == 'width' and value is None)  # its default
]


@pytest.mark.parametrize(('backbone', 'name', 'value'), CASES)
def test_planted_argument(backbone, name, value):
    cfg = dict(type=backbone, **{name: value})
    if backbone in DEPTH:
        cfg['depth'] = DEPTH[backbone]
    # The blocks of a ResNet take acmix_cfg.
    says = rf'^({backbone}|ACmixBottleneck): {name} must '
    with pytest.raises(ValueError, match=says) as error, torch.device('meta'):
        MODELS.build(cfg)
    assert str(value) in str(error.value)
