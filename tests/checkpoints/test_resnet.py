import pytest
import torch
from golden import Golden
from upstream import mmpretrain

from acmix_mm.backbones import ACmixResNet
from acmix_mm.checkpoints import identify


def test_released():
    released = Golden.load('resnet_1111').state_dict
    family, fmt = identify(released)
    assert (family.name, fmt.name) == ('ACmixResNet', 'released ResNet-ACmix classifier')
    conversion = fmt.convert(released)
    assert set(conversion.dropped) == {'fc.weight', 'fc.bias'}
    assert conversion.unknown == []
    layer = {k: v for k, v in conversion.state_dict.items() if k.startswith('layer2.0.conv2.')}
    assert {k.removeprefix('layer2.0.conv2.'): tuple(v.shape) for k, v in layer.items()} == {
        'qkv.weight': (384, 128, 1, 1),
        'qkv.bias': (384,),
        'position.weight': (32, 2, 1, 1),
        'position.bias': (32,),
        'shift_conv.fc_weight': (1, 9, 12),
        'shift_conv.kernel': (128, 9, 3, 3),
        'mix.alpha': (1,),
        'mix.beta': (1,),
    }
    keys = released['layer2.0.conv2.conv2.weight']
    assert torch.equal(layer['layer2.0.conv2.qkv.weight'][128:256], keys)


def test_plain():
    names = ['conv1.weight', 'bn1.running_mean', 'layer1.0.conv2.weight', 'layer4.2.bn3.bias']
    fmt = identify({name: torch.ones(1) for name in names})[1]
    assert fmt.name == 'plain ResNet (torchvision)'
    conversion = fmt.convert({name: torch.ones(1) for name in [*names, 'fc.bias', 'what']})
    assert list(conversion.state_dict) == names
    assert conversion.dropped == {'fc.bias': 'classifier head'}
    assert conversion.unknown == ['what']


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('variant', ['ResNetV1c', 'ResNetV1d'])
def test_plain_variants_of_mmpretrain(variant, depth):
    """Their stems, and in ResNet-D the first shortcut, are numbered in another way."""
    torch.manual_seed(0)
    narrow = dict(depth=depth, stem_channels=8, base_channels=8, out_indices=(0, 3))
    theirs = getattr(mmpretrain('models.backbones'), variant)(**narrow)
    family, fmt = identify(theirs.state_dict())
    assert (family.name, fmt.name) == ('ACmixResNet', 'plain ResNet-C or -D (mmpretrain)')
    options = dict(deep_stem=True, avg_down=variant == 'ResNetV1d', stage_with_acmix=(False,) * 4)
    ours = ACmixResNet(**narrow, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 33, 40)
    for out, expected in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(out, expected)
