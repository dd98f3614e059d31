"""tools/analysis/plot_paths.py."""

import json

import pytest
import torch
from torch import nn

from acmix_mm.layers import ACmix


@pytest.fixture
def plot_paths(tool):
    return tool('analysis/plot_paths.py')


@pytest.fixture
def run(tmp_path):
    """A work dir as a resumed training leaves it."""
    folder = tmp_path / 'run'
    for time, steps in (('20260101', (1, 50, 100)), ('20260102', (100, 150))):
        logs = folder / time / 'vis_data'
        logs.mkdir(parents=True)
        rows = [{'loss': 1.0, 'step': 1}]
        for step in steps:
            rows.append({'step': step})
            for i in (1, 2):
                rows[-1][f'paths/layer{i}.0.conv2/alpha'] = 0.5 + step / 1000
                rows[-1][f'paths/layer{i}.0.conv2/beta'] = 0.5 - step / 1000
                rows[-1][f'paths/layer{i}.0.conv2/convolution_share'] = 0.6 + i / 10
        (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        ACmix(8, 8), ACmix(8, 8, path_weights='complementary'), ACmix(8, 8, path_weights=(1, 0))
    )
    with torch.no_grad():
        network[0].mix.alpha.fill_(0.25)
        network[1].mix.alpha.fill_(0.125)
    file = tmp_path / 'epoch_12.pth'
    torch.save(dict(state_dict=network.state_dict()), file)
    return file


def test_reads_all_logs_of_a_run(plot_paths, run):
    paths = plot_paths.read_run(run)
    assert paths.layers == ['layer1.0.conv2', 'layer2.0.conv2']
    assert paths.steps == [1, 50, 100, 150]
    assert paths.last['alpha'] == [0.65, 0.65]
    assert paths.shares['layer2.0.conv2'] == [0.8] * 4


def test_reads_the_weights_of_a_checkpoint(plot_paths, checkpoint):
    paths = plot_paths.read_weights(checkpoint)
    assert paths.layers == ['0', '1'], 'fixed weights are not in a checkpoint'
    assert paths.last == dict(alpha=[0.25, 0.125], beta=[0.5, 0.875])


def test_draws_runs_and_checkpoints_side_by_side(plot_paths, run, checkpoint, tmp_path, capsys):
    out = tmp_path / 'pictures' / 'paths.png'
    plot_paths.main([str(run), str(checkpoint), '--out', str(out)])
    assert out.read_bytes().startswith(b'\x89PNG')
    assert capsys.readouterr().out == f'{out}\n'
    figure = plot_paths.draw([plot_paths.read_run(run), plot_paths.read_weights(checkpoint)])
    assert len(figure.axes) == 4
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ['run', 'epoch_12.pth']
    lines = [len(axes.lines) for axes in figure.axes]
    assert lines == [3, 2, 2, 0]


def test_says_what_cannot_be_drawn(plot_paths, tmp_path):
    torch.save(nn.Conv2d(3, 4, 1).state_dict(), tmp_path / 'plain.pth')
    (tmp_path / 'empty').mkdir()
    for name, says in (
        ('plain.pth', 'plain.pth has no learned weights of paths'),
        ('empty', 'empty has no log of PathWeightsHook; train with custom_hooks = '),
        ('missing', 'missing does not exist'),
    ):
        with pytest.raises(SystemExit, match=says):
            plot_paths.main([str(tmp_path / name), '--out', str(tmp_path / 'paths.png')])
    assert not (tmp_path / 'paths.png').exists()


def test_formats_and_files_that_cannot_be_written(plot_paths, checkpoint, tmp_path):
    with pytest.raises(SystemExit, match="Format 'docx' is not supported"):
        plot_paths.main([str(checkpoint), '--out', str(tmp_path / 'paths.docx')])
    with pytest.raises(SystemExit, match=r'--out .*: nothing can be written there'):
        plot_paths.main([str(checkpoint), '--out', str(checkpoint / 'paths.png')])
    plot_paths.main([str(checkpoint), '--out', str(tmp_path / 'paths.pdf')])
    assert (tmp_path / 'paths.pdf').read_bytes().startswith(b'%PDF')


def test_draws_shares_of_many_seeds(plot_paths, tmp_path):
    rows = [
        f'c,{mode},{seed},backbone.a,0.4,0.6,0.7,{0.8 + seed / 10}'
        for mode in ('learned', 'balanced')
        for seed in (0, 1)
    ]
    head = 'config,mode,seed,layer,alpha,beta,start,end'
    (tmp_path / 'shares.csv').write_text('\n'.join([head, *rows]))
    first, second = plot_paths.read_shares(tmp_path / 'shares.csv')
    assert [first.name, second.name] == ['c\nlearned', 'c\nbalanced']
    assert first.layers == ['backbone.a']
    assert first.last['start'] == [pytest.approx(0.7)]
    assert first.last['convolution_share'] == [pytest.approx(0.85)]
    plot_paths.main([str(tmp_path / 'shares.csv'), '--out', str(tmp_path / 'mix.png')])
    assert (tmp_path / 'mix.png').read_bytes().startswith(b'\x89PNG')
    for text, says in ((f'{head}\n', 'has no lines'), ('config,mode\na,b\n', 'no table of shares')):
        (tmp_path / 'shares.csv').write_text(text)
        with pytest.raises(SystemExit, match=says):
            plot_paths.main([str(tmp_path / 'shares.csv'), '--out', str(tmp_path / 'mix.png')])
