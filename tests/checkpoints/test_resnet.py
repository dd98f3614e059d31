import torch
from golden import Golden

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
