"""Released classifiers with their heads: converted, and given to mmengine as they are."""

from pathlib import Path

import pytest
import torch
from golden import Golden, relative_error
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from versions import needs_mmpretrain

from acmix_mm.backbones import ACmixSwin
from acmix_mm.checkpoints.classifier import head_names, of_whole_model
from acmix_mm.preflight.weights import check_fit
from acmix_mm.runtime.foreign_classifier import ForeignClassifierHook

CONFIGS = Path(__file__).parents[2] / 'configs' / 'imagenet'


class Classifier(BaseModel):
    """What mmpretrain's ImageClassifier of configs/imagenet computes, with its names."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict(dict(fc=nn.Linear(channels, 10)))

    def forward(self, x: torch.Tensor, mode: str = 'tensor') -> torch.Tensor:
        return self.head['fc'](self.backbone(x)[-1].mean((2, 3)))


@pytest.fixture(scope='module')
def golden() -> Golden:
    return Golden.load('swin_tiny_like')


@pytest.fixture
def classifier() -> Classifier:
    backbone = ACmixSwin(embed_dims=24, depths=(2, 2, 2, 2), out_indices=(3,))
    return Classifier(backbone, 192).double().eval()


@pytest.fixture
def released(golden, tmp_path) -> Path:
    """A checkpoint in the layout of the release: weights and the state of their training."""
    file = tmp_path / 'acmix_swin_tiny.pth'
    torch.save(dict(model=golden.state_dict, epoch=299, max_accuracy=81.9), file)
    return file


def check_logits(classifier, golden):
    # The released code's features, after its norm and average pooling; its head is a linear layer.
    weight, bias = (golden.state_dict[f'head.{name}'].double() for name in ('weight', 'bias'))
    expected = golden.arrays['features'].double() @ weight.T + bias
    with torch.no_grad():
        logits = classifier(golden.input)
    assert relative_error(logits, expected) < 1e-6
    assert logits.argmax() == expected.argmax()


def test_converted_classifier_gives_the_released_logits(
    tool, golden, classifier, released, tmp_path, capsys
):
    target = tmp_path / 'ours.pth'
    tool('checkpoints/convert.py').main([str(released), str(target), '--classifier'])
    printed = capsys.readouterr().out.splitlines()
    assert '  head.weight -> head.fc.weight' in printed
    mapped = '  layers.0.blocks.0.attn.rate1 -> backbone.stages.0.blocks.0.attn.mix.alpha'
    assert mapped in printed
    assert printed[-1] == f'{target}: 161 entries from 161; 0 dropped, 0 unknown'
    classifier.load_state_dict(torch.load(target)['state_dict'])
    check_logits(classifier, golden)


def test_released_file_is_loaded_as_it_is(golden, classifier, released, tmp_path):
    """By the check before a test and, into a new model, by the runner of the tools."""
    check_fit(classifier, str(released), complete=True)
    check_logits(classifier, golden)
    for parameter in classifier.parameters():
        nn.init.zeros_(parameter)
    runner = Runner(
        classifier, str(tmp_path), default_scope='mmengine', experiment_name='released',
        log_level='ERROR',
    )  # fmt: skip
    average = EMAHook()
    runner.register_hook(average)
    runner.register_hook(ForeignClassifierHook())
    average.before_run(runner)
    runner.load_checkpoint(str(released))
    check_logits(classifier, golden)


def test_other_checkpoints_are_left_alone(classifier):
    ours = dict(state_dict=classifier.state_dict(), meta=dict(epoch=3))
    assert of_whole_model(ours) is ours['state_dict']
    bare = classifier.state_dict()
    assert of_whole_model(bare) is bare
    plain = nn.Linear(2, 2).state_dict()
    assert of_whole_model(plain) is plain
    hook, checkpoint = ForeignClassifierHook(), dict(bare)
    hook.after_load_checkpoint(None, checkpoint)
    assert checkpoint.keys() == bare.keys()
    assert of_whole_model(dict(epoch=3)) == dict(epoch=3)


def test_class_tokens_are_no_mean_of_a_map():
    weight = torch.ones(1)
    pvt = {'cls_token': weight, 'patch_embed1.proj.weight': weight, 'head.weight': weight}
    assert head_names(pvt) == {}
    assert of_whole_model(pvt) is pvt


def test_other_families_have_heads_too():
    names = of_whole_model(Golden.load('resnet_1111').state_dict)
    assert {'head.fc.weight', 'head.fc.bias', 'backbone.conv1.weight'} <= names.keys()
    assert len(names) == 131


def test_convert_says_that_there_is_no_head(tool, golden, tmp_path):
    source, target = tmp_path / 'in.pth', tmp_path / 'out.pth'
    torch.save({n: t for n, t in golden.state_dict.items() if 'head' not in n}, source)
    with pytest.raises(SystemExit, match='has no head that --classifier could keep'):
        tool('checkpoints/convert.py').main([str(source), str(target), '--classifier'])
    assert not target.exists()


@needs_mmpretrain
@pytest.mark.parametrize('name', ['swin-t-acmix_8xb128_in1k.py', 'swin-s-acmix_8xb128_in1k.py'])
def test_images_are_prepared_as_in_the_release(name):
    """Shorter side to 256 pixels, bicubic, of Pillow; the central 224x224; mean and sd of RGB."""
    cfg = Config.fromfile(CONFIGS / name)
    load, resize, crop, pack = cfg.test_dataloader.dataset.pipeline
    assert (load.type, crop.type, pack.type) == ('LoadImageFromFile', 'CenterCrop', 'PackInputs')
    assert resize == dict(
        type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'
    )
    assert crop.crop_size == 224
    prepare = cfg.get('data_preprocessor') or cfg.model.data_preprocessor
    assert prepare.mean == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
    assert prepare.std == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])
    assert prepare.to_rgb is True
    assert cfg.model.get('neck', {}).get('type') == 'GlobalAveragePooling'
    assert cfg.model.head.type == 'LinearClsHead'
    assert cfg.test_evaluator.type == 'Accuracy'
