"""tools/export.py writes files that compute what the model computes, or nothing."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from versions import needs_torch

from acmix_mm.backbones import ACmixSAN
from acmix_mm.preflight.libraries import check_scope


@MODELS.register_module()
class OneStageSAN(ACmixSAN):
    blocks_of_depth = {10: (1,)}  # type: ignore[dict-item]


# One stage of each family, with every kind of layer: exporters take seconds for every block.
STAGE = dict(num_stages=1, out_indices=(0,))
BACKBONES: dict[str, dict[str, Any]] = {
    # At 32x32 pixels its map of 8x8 is smaller than the window.
    'ResNet': dict(
        type='acmix_mm.ACmixResNet', depth=26, base_channels=8, stem_channels=8, strides=(1,),
        dilations=(1,), stage_with_acmix=(True,), acmix_cfg=dict(kernel_att=19), **STAGE,
    ),
    'SAN': dict(
        type='mmdet.OneStageSAN', depth=10, base_channels=32, kernels_att=(3,), out_indices=(0,)
    ),
    'PVT': dict(
        type='acmix_mm.ACmixPVT', embed_dims=8, num_layers=(1,), num_heads=(2,), patch_sizes=(4,),
        strides=(4,), paddings=(0,), sr_ratios=(2,), mlp_ratios=(2,), pretrain_img_size=32, **STAGE,
    ),
    # At 32x32 pixels its map of 8x8 is padded to two windows of 5x5 along each axis.
    'Swin': dict(
        type='acmix_mm.ACmixSwin', embed_dims=8, depths=(2,), num_heads=(2,), strides=(4,),
        window_size=5, out_indices=(0,),
    ),
}  # fmt: skip
CHANNELS = dict(ResNet=32, SAN=32, PVT=16, Swin=8)
SIZE = ('--size', '64', '96')


@pytest.fixture(scope='module')
def export(tool):
    return tool('export.py')


def write_model(folder: Path, family: str) -> list[str]:
    """Write a config of a detector and a checkpoint with random weights, and return their paths."""
    neck = dict(type='FPN', in_channels=[CHANNELS[family]], out_channels=8, num_outs=2)
    head = dict(type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)
    model = dict(type='RetinaNet', backbone=BACKBONES[family], neck=neck, bbox_head=head)
    cfg = Config(
        dict(default_scope='mmdet', custom_imports=dict(imports=['acmix_mm']), model=model)
    )
    config, checkpoint = folder / 'config.py', folder / 'weights.pth'
    cfg.dump(config)
    torch.manual_seed(0)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return [str(config), str(checkpoint)]


@needs_torch('2.9', 'torch.onnx.export of exported programs')
@pytest.mark.parametrize('family', BACKBONES)
def test_onnx_of_any_size(export, tmp_path, family):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    out = tmp_path / 'model.onnx'
    paths = write_model(tmp_path, family)
    report = export.main([*paths, *SIZE, '--format', 'onnx', '--out', str(out), '--dynamic'])
    shapes = [check.shape for check in report.checks]
    assert shapes == [(1, 3, 64, 96), (2, 3, 96, 160), (1, 3, 32, 32)]
    assert all(check.relative < 1e-5 for check in report.checks)
    assert report.operators['Softmax' if family != 'SAN' else 'ReduceSum'] > 0
    assert out.stat().st_size > 1000
    # What the checks compare depends on both paths.
    cfg = Config.fromfile(paths[0])
    model, other = (export.network(cfg, paths[1], None) for _ in range(2))
    mixes = [module.mix for module in other.modules() if hasattr(module, 'mix')]
    image = torch.randn(1, 3, 64, 96)
    for name in ('alpha', 'beta'):
        for mix in mixes:
            getattr(mix, name).data.mul_(1.1)
        assert not torch.allclose(model(image)[0], other(image)[0], rtol=1e-3, atol=1e-4), name


@needs_torch('2.7', 'torch.compiler.is_exporting')
@pytest.mark.parametrize(
    'options', [['torchscript'], ['exported_program', '--dynamic'], ['exported_program', '--merge']]
)
def test_formats_of_torch(export, tmp_path, options, caplog):
    out = tmp_path / 'new' / 'model'
    paths = write_model(tmp_path, 'PVT')
    report = export.main(
        [*paths, *SIZE, '--out', str(out), '--part', 'model', '--format', *options]
    )
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warned, 'torch warns of suffixes that it does not know'
    assert len(report.checks) == 1 + ('--dynamic' in options)
    assert all(check.relative < 1e-5 for check in report.checks)
    run = export.load(options[0], str(out))
    assert [[*map_.shape[1:]] for map_ in run(torch.zeros(1, 3, 64, 96))] == [
        [27, 16, 24], [27, 8, 12], [36, 16, 24], [36, 8, 12]
    ]  # fmt: skip


def test_half_precision(export, tmp_path):
    out = tmp_path / 'model.pt2'
    paths = write_model(tmp_path, 'PVT')
    export.main([*paths, *SIZE, '--out', str(out), '--format', 'exported_program', '--half'])
    (*_, map_) = export.load('exported_program', str(out))(torch.zeros(1, 3, 64, 96).half())
    assert map_.dtype == torch.float16


@needs_torch('2.7', 'torch.compiler.is_exporting')
def test_segmentor(export, tmp_path):
    pytest.importorskip('mmseg')
    from mmseg.registry import MODELS as SEGMENTORS

    preprocessor = dict(type='SegDataPreProcessor', size=(64, 96))
    head = dict(type='FCNHead', in_channels=16, channels=8, num_classes=5, num_convs=1)
    model = dict(
        type='EncoderDecoder', data_preprocessor=preprocessor, backbone=BACKBONES['PVT'],
        decode_head=head, test_cfg=dict(mode='whole'),
    )  # fmt: skip
    head.update(in_index=0)
    cfg = Config(dict(default_scope='mmseg', model=model))
    cfg.dump(tmp_path / 'config.py')
    init_default_scope('mmseg')
    segmentor = SEGMENTORS.build(cfg.model).eval()
    torch.save(dict(state_dict=segmentor.state_dict()), tmp_path / 'weights.pth')
    out = str(tmp_path / 'model.pt2')
    report = export.main([
        str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth'), '--format', 'exported_program',
        '--out', out, '--dynamic',
    ])  # fmt: skip
    assert [check.shape for check in report.checks] == [(1, 3, 64, 96), (2, 3, 96, 160)]
    image = torch.randn(1, 3, 64, 128)
    (logits,) = export.load('exported_program', out)(image)
    with torch.no_grad():
        expected = segmentor.encode_decode(image, [dict(img_shape=(64, 128))])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@needs_torch('2.7', 'torch.compiler.is_exporting')
@pytest.mark.parametrize(('options', 'channels'), [((), 5), (('--part', 'features'), 16)])
def test_classifier(export, tmp_path, options, channels):
    try:
        check_scope('mmpretrain')
    except ImportError as error:
        pytest.skip(str(error))
    from mmpretrain.registry import MODELS as CLASSIFIERS

    head = dict(type='LinearClsHead', in_channels=16, num_classes=5)
    neck = dict(type='GlobalAveragePooling')
    model = dict(type='ImageClassifier', backbone=BACKBONES['PVT'], neck=neck, head=head)
    cfg = Config(dict(default_scope='mmpretrain', model=model))
    cfg.dump(tmp_path / 'config.py')
    init_default_scope('mmpretrain')
    classifier = CLASSIFIERS.build(cfg.model).eval()
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / 'weights.pth')
    out = str(tmp_path / 'model.pt')
    export.main([
        str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth'), '--format', 'torchscript',
        '--out', out, *SIZE, *options,
    ])  # fmt: skip
    image = torch.randn(1, 3, 64, 96)
    (found,) = export.load('torchscript', out)(image)
    assert found.shape == (1, channels)
    with torch.no_grad():
        expected = classifier(image) if not options else classifier.extract_feat(image)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def exits(export, capsys, *arguments: str) -> str:
    """Run the command, which must end with one message, and return the message."""
    with pytest.raises(SystemExit) as end:
        export.main([*arguments])
    if isinstance(end.value.code, str):
        return end.value.code
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('model'), 'PVT')


def test_formats(export, capsys, paths):
    message = exits(export, capsys, *paths, '--out', 'x', '--format', 'tflite')
    assert "argument --format: invalid choice: 'tflite' (choose from" in message


def test_dynamic_trace(export, capsys, paths):
    message = exits(export, capsys, *paths, '--out', 'x', '--format', 'torchscript', '--dynamic')
    assert 'argument --dynamic: a trace is right for images of one size only' in message


def test_size_of_no_whole_number_of_patches(export, capsys, paths):
    arguments = ('--out', 'x', '--format', 'onnx', '--dynamic', '--size', '64', '90')
    message = exits(export, capsys, *paths, *arguments)
    assert message == '--dynamic needs a --size of multiples of 32, got 64 90.'


def test_folder(export, capsys, paths, tmp_path):
    message = exits(export, capsys, *paths, '--out', str(tmp_path), '--format', 'torchscript')
    assert f"argument --out: '{tmp_path}' is a folder" in message


def test_model_whose_outputs_are_not_finite(export):
    """It could not be compared: no difference from NaN is larger than another one."""
    compare = export.compare
    with pytest.raises(ValueError, match='the model itself gives NaN or infinite values'):
        compare(lambda x: [x], lambda x: [x * float('nan')], (1, 3, 8, 8), torch.float32)


def test_unwritable(export, capsys, paths, tmp_path):
    (tmp_path / 'file').touch()
    out = str(tmp_path / 'file' / 'model.pt')
    message = exits(export, capsys, *paths, *SIZE, '--out', out, '--format', 'torchscript')
    assert f'--out {tmp_path / "file"}: nothing can be written there (it is a file)' in message


def test_onnx_is_not_installed(export, capsys, paths, monkeypatch):
    monkeypatch.setitem(export.require_onnx.__globals__, 'find_spec', lambda name: None)
    message = exits(export, capsys, *paths, '--out', 'x', '--format', 'onnx')
    assert message.endswith('Run: pip install onnx onnxscript onnxruntime')


def test_missing_checkpoint(export, capsys, paths):
    message = exits(export, capsys, paths[0], 'no.pth', '--out', 'x', '--format', 'torchscript')
    assert 'no.pth' in message


def test_checkpoint_of_another_model(export, capsys, paths, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'other.pth')
    other = str(tmp_path / 'other.pth')
    message = exits(export, capsys, paths[0], other, '--out', 'x', '--format', 'torchscript')
    assert 'does not fit the model' in message


def test_file_that_differs(export, capsys, paths, tmp_path, monkeypatch):
    """It is not written, and what was there is kept."""
    monkeypatch.setitem(export.export.__globals__, 'TOLERANCE', {torch.float32: 0.0})
    out = tmp_path / 'model.pt'
    out.write_text('before')
    message = exits(export, capsys, *paths, *SIZE, '--out', str(out), '--format', 'torchscript')
    assert 'was not written: its outputs differ from those of the model by' in message
    assert [*tmp_path.iterdir()] == [out]
    assert out.read_text() == 'before'


def test_network_that_the_format_does_not_take(export, capsys, paths, tmp_path, monkeypatch):
    class Unreadable(nn.Module):
        def forward(image):
            return (image[: int(image.sum().item())],)

    monkeypatch.setitem(export.main.__globals__, 'network', lambda *_: Unreadable())
    out = str(tmp_path / 'model.pt2')
    arguments = (*SIZE, '--out', out, '--format', 'exported_program')
    message = exits(export, capsys, *paths, *arguments)
    assert f'{out} was not written: exported_program does not take this model' in message


def test_two_stages(export, capsys, tmp_path):
    config = Path(__file__).parents[2] / 'configs' / 'mask_rcnn_acmix.py'
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'weights.pth')
    message = exits(
        export, capsys, str(config), str(tmp_path / 'weights.pth'), '--out', 'x',
        '--format', 'torchscript', '--part', 'model',
    )  # fmt: skip
    assert 'one-stage detectors, not MaskRCNN; --part features exports its backbone' in message
