"""tools/analysis/path_shares.py: a training that learns nothing, and tables by hand."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from acmix_mm.layers import ACmix

ROOT = Path(__file__).parents[2]

CONFIG = """
_base_ = 'acmix_mm::demo/sem-fpn_resnet26-acmix_shapes.py'
train_cfg = dict(max_iters=1, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1), balance=dict(type='BalancePathsHook'))
custom_hooks = [dict(type='PathWeightsHook', interval=1)]
optim_wrapper = dict(optimizer=dict(lr=0.0))
loader = dict(num_workers=0, persistent_workers=False, batch_size=2)
train_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
val_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
test_dataloader = val_dataloader
randomness = dict(seed=3)
visualizer = dict(name='{name}')  # mmengine has one of a name in a process
"""


@pytest.fixture
def path_shares(tool):
    return tool('analysis/path_shares.py')


@pytest.fixture
def folder(tool, shapes, tmp_path):
    """Folder of compare_paths.py with one run of one step, whose learning rate is 0."""
    (tmp_path / 'tiny.py').write_text(CONFIG.format(data=str(shapes), name='trained'))
    run = tmp_path / 'runs' / 'tiny' / 'balanced' / 'seed3'
    tool('train.py').main([str(tmp_path / 'tiny.py'), '--work-dir', str(run)])
    (run / 'test' / '1').mkdir(parents=True)
    (run / 'test' / '1' / '1.json').write_text('{"mIoU": 1}')
    return tmp_path / 'runs'


def test_measures_runs_once(path_shares, tool, folder, tmp_path, monkeypatch, capsys):
    run = folder / 'tiny' / 'balanced' / 'seed3'
    start, shares = {}, path_shares.Network.shares

    def spy(network):
        start.update({name: value.clone() for name, value in network.model.named_parameters()})
        return shares(network)

    monkeypatch.setattr(path_shares.Network, 'shares', spy)
    monkeypatch.setitem(path_shares.main.__globals__, 'BATCHES', 2)
    path_shares.main([str(folder)])
    assert '1/1' in capsys.readouterr().out
    trained = torch.load(run / 'iter_1.pth', weights_only=False)['state_dict']
    assert len(start) > 100
    for name, value in start.items():
        # As the learning rate is 0, the weights are those of the start, except for the balance.
        assert torch.equal(value, trained[name]) != ('.mix.' in name), name
    rows = path_shares.read_rows(folder / 'shares.csv', path_shares.LayerShare)
    logged = tool('analysis/plot_paths.py').read_run(run)
    assert [row.layer for row in rows] == logged.layers
    assert len(rows) == 8
    for row, alpha in zip(rows, logged.last['alpha'], strict=True):
        assert (row.config, row.mode, row.seed) == ('tiny', 'balanced', 3)
        assert row.start == pytest.approx(0.5, abs=0.01)
        assert row.alpha == pytest.approx(alpha, abs=1e-4)
        # The images are the same, too.
        assert row.end == pytest.approx(row.start, abs=2e-4)
    tests = path_shares.read_rows(folder / 'silenced.csv', path_shares.Silenced)
    assert [(row.silenced, row.metric) for row in tests] == [
        ('none', 'mIoU'), ('attention', 'mIoU'), ('convolution', 'mIoU'),
    ]  # fmt: skip
    before = (folder / 'shares.csv').stat().st_mtime_ns
    page, marks = tmp_path / 'page.md', ''
    for name in ('shares', 'silenced'):
        marks += (
            f'<!-- {name}: written by tools/analysis/path_shares.py -->\n<!-- {name}: end -->\n'
        )
    page.write_text(marks)
    path_shares.main([str(folder), '--page', str(page)])
    assert (folder / 'shares.csv').stat().st_mtime_ns == before
    assert '| layer | balanced: alpha |' in page.read_text()
    assert '| tiny | balanced | mIoU | 1 |' in page.read_text()
    assert (tmp_path / 'images' / 'page_shares.png').read_bytes().startswith(b'\x89PNG')


def test_warm_start_is_the_start(path_shares, tool, shapes, tmp_path, monkeypatch):
    """Of a training that began from weights, also after it was resumed."""
    config = CONFIG.format(data=str(shapes), name='warm')
    run = tmp_path / 'tiny' / 'learned' / 'seed0'
    log = run / '20260101' / 'vis_data'
    log.mkdir(parents=True)
    config += f'work_dir = {str(run)!r}\nlauncher = "none"\n'
    (log / 'config.py').write_text(f'{config}load_from = "plain.pth"\n')
    (run / 'tiny.py').write_text(f'{config}load_from = "iter_1.pth"\nresume = True\n')
    loaded = []

    class Loaded(Exception):
        pass

    def load_checkpoint(runner, path):
        loaded.append(path)
        raise Loaded

    monkeypatch.setattr(path_shares.Runner, 'load_checkpoint', load_checkpoint)
    monkeypatch.setitem(path_shares.main.__globals__, 'newest_checkpoint', lambda cfg: None)
    for _ in range(2):  # the second one must not log to the removed folder of the first one
        with pytest.raises(Loaded):
            path_shares.measure(run)
    assert loaded == ['plain.pth'] * 2


def test_runs_of_one_name_are_refused(path_shares, tmp_path):
    for folder in ('short', 'long'):
        test = tmp_path / folder / 'tiny' / 'learned' / 'seed0' / 'test' / '1'
        test.mkdir(parents=True)
        (test / '1.json').write_text('{"mIoU": 1}')
    with pytest.raises(SystemExit, match=r'long/.* and .*short/.* cannot be told apart'):
        path_shares.main([str(tmp_path)])


def test_silenced_layers(path_shares):
    torch.manual_seed(0)
    both, single = ACmix(8, 8), ACmix(8, 8, path_weights=(1, 0))
    x = torch.rand(1, 8, 9, 9)
    paths = {}
    handle = both.mix.register_forward_pre_hook(lambda _, args: paths.update(both=args))
    whole = both(x)
    handle.remove()
    convolution, attention = paths['both']
    with path_shares.silenced(nn.ModuleList([both, single]), 'attention'):
        torch.testing.assert_close(both(x), convolution)
        assert single.mix.uses_attention, 'it has no other path'
    with path_shares.silenced(both, 'convolution'):
        torch.testing.assert_close(both(x), 0.5 * attention)
    with path_shares.silenced(both, 'none'):
        assert torch.equal(both(x), whole)
    assert torch.equal(both(x), whole)


def test_tables(path_shares):
    shares = [
        path_shares.LayerShare('c', mode, seed, 'backbone.a', 0.4, 0.6, 0.7, 0.8 + seed / 10)
        for mode in ('learned', 'balanced')
        for seed in (0, 1)
    ]
    text = path_shares.shares_report(shares)
    assert '| a | 0.40 | 0.60 | 0.70 | 0.85 | 0.40 | 0.60 | 0.70 | 0.85 |' in text
    values = dict(none=(50, 52), attention=(49, 50), convolution=(40, 42))
    tests = [
        path_shares.Silenced('c', 'learned', seed, path, 'mIoU', value)
        for path, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    # -1 and -2: mean -1.5, standard error 0.5, and 12.71 for 95 % of one degree of freedom.
    assert '| c | learned | mIoU | 2 | 51.00 | -1.50 ± 6.35 | -10.00 ± 0.00 |' in (
        path_shares.silenced_report(tests)
    )


def test_says_what_is_missing(path_shares, tmp_path):
    with pytest.raises(SystemExit, match='has no finished run of learned'):
        path_shares.main([str(tmp_path), '--modes', 'learned'])
    (tmp_path / 'shares.csv').write_text('a,b\n')
    with pytest.raises(SystemExit, match='has the columns a, b; needed are config'):
        path_shares.main([str(tmp_path)])


def test_page_of_the_docs_is_that_of_its_csvs(path_shares, tmp_path):
    page = Path(shutil.copy(ROOT / 'docs' / 'evidence.md', tmp_path))
    path_shares.main([str(ROOT / 'docs' / 'evidence'), '--page', str(page)])
    assert page.read_text() == (ROOT / 'docs' / 'evidence.md').read_text()
