import pytest
from torch import nn
from upstream import mmpretrain

from acmix_mm.backbones.common import layer_depth
from acmix_mm.registry import MODELS

BACKBONES = {
    'ACmixSwin': dict(embed_dims=12, depths=(1, 2, 1, 1), use_abs_pos_embed=True),
    'ACmixPVT': dict(embed_dims=4, num_layers=(1, 2, 1, 1), norm_after_stage=True),
    'ACmixSAN': dict(depth=10, base_channels=32),
}


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('backbone.patch_embed.projection.weight', 0),
        ('backbone.absolute_pos_embed', 0),
        ('backbone.stem.conv.weight', 0),
        ('backbone.stages.0.pos_embed', 0),
        ('backbone.stages.0.patch_embed.norm.bias', 0),
        ('backbone.stages.0.blocks.0.norm1.weight', 1),
        ('backbone.stages.0.blocks.1.attn.qkv.weight', 2),
        ('backbone.stages.0.downsample.reduction.weight', 2),
        ('backbone.stages.0.norm.weight', 2),
        ('backbone.stages.1.patch_embed.projection.weight', 2),
        ('backbone.stages.1.conv.weight', 2),
        ('backbone.stages.1.blocks.10.ffn.layers.1.weight', 13),
        ('backbone.norm1.weight', 14),
        ('head.fc.weight', 14),
        ('neck.stages.0.weight', 14),
    ],
)
def test_layer_depth(name, layer):
    assert layer_depth(name, 'backbone.', (2, 11)) == (layer, 15)


class Classifier(nn.Module):
    """What the constructor sees of mmpretrain's ``ImageClassifier``."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(8, 3)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        return self.backbone.get_layer_depth(param_name, 'backbone.')


@pytest.mark.parametrize('backbone', BACKBONES)
def test_layer_wise_learning_rates_of_mmpretrain(backbone):
    """Each block learns half as fast as the next, and no parameter is left out."""
    model = Classifier(MODELS.build(dict(type=backbone, **BACKBONES[backbone])))
    depths = {'ACmixSAN': (2, 1, 2, 4, 1)}.get(backbone, (1, 2, 1, 1))
    cfg = dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1))
    constructor = mmpretrain('engine.optimizers').LearningRateDecayOptimWrapperConstructor
    groups = constructor(cfg, dict(layer_decay_rate=0.5))(model).optimizer.param_groups
    rates = {group['param_name']: group['lr'] for group in groups}
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    blocks = [f'backbone.stages.{i}.blocks.{j}.' for i, n in enumerate(depths) for j in range(n)]
    for number, block in enumerate(reversed(blocks), 1):
        of_block = {rate for name, rate in rates.items() if name.startswith(block)}
        assert of_block == {0.5**number}, block
    assert rates['head.weight'] == 1
    slowest = {name for name, rate in rates.items() if rate == 0.5 ** (sum(depths) + 1)}
    first, *_ = model.backbone.named_parameters()
    assert f'backbone.{first[0]}' in slowest


def test_layers_of_swin_are_those_of_mmpretrain():
    arch = dict(embed_dims=12, depths=[1, 2, 1, 1], num_heads=[1, 2, 3, 4])
    plain = mmpretrain('models.backbones').SwinTransformer(arch, out_indices=(1, 3))
    ours = MODELS.build(dict(type='ACmixSwin', arch=arch, out_indices=(1, 3)))
    for name, _ in plain.named_parameters():
        expected = plain.get_layer_depth(name)
        assert ours.get_layer_depth(name.replace('w_msa.', '')) == expected, name
