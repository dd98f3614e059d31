"""The check of GPUs, as far as it runs without one. CI makes a dry run of all its parts."""

import json

import pytest
import torch

from benchmarks import check_gpu
from benchmarks.gpu import checks
from benchmarks.gpu.device import Setting, errors
from benchmarks.gpu.report import markdown

DRY = Setting(dry=True)


def test_dry_run_writes_records_and_tables(tmp_path, capsys):
    check_gpu.main(['--cpu-dry-run', '--out', str(tmp_path), '--parts', 'machine', 'correct-other'])
    results = json.loads((tmp_path / 'gpu.json').read_text())
    assert {name: part['status'] for name, part in results['parts'].items()} == {
        'machine': 'ok',
        'correct-other': 'ok',
    }
    page = (tmp_path / 'gpu.md').read_text()
    assert 'GPU none, a dry run' in page
    assert '| shift_conv | dense | fp32 | 3 of 3 |' in page
    assert page in capsys.readouterr().out


def test_parts_that_ended_well_are_not_run_again(tmp_path, monkeypatch):
    started = []
    check = check_gpu.Check(tmp_path, True, 100)
    check.results['parts']['conv'] = dict(status='ok', seconds=1, records=[], log='')
    monkeypatch.setattr(check, '_start', lambda names, limit: started.append((names, limit)))
    check.run([dict(machine=60), dict(conv=60, layer=90)], jobs=1)
    assert started == [(['machine'], 60), (['layer'], 90)]


def test_what_is_wrong_is_told(tmp_path, monkeypatch):
    """By the exit code, in the tables, and by the name of the part."""

    def wrong(setting):
        record = dict(kind='check', what='layer', name='triton', dtype='fp32', case='odd')
        yield record, lambda: dict(ok=False, out=0.5, grads=0.1)
        yield dict(record, case='other'), lambda: 1 / 0
        raise RuntimeError('the part ends here')

    monkeypatch.setattr(check_gpu, '_parts', lambda: dict(machine=wrong))
    records = tmp_path / 'records'
    with pytest.raises(RuntimeError, match='the part ends here'):
        check_gpu.run_parts(['machine'], True, records, 100)
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert [record.get('error') for record in found] == [
        None,
        'ZeroDivisionError: division by zero',
    ]
    check = check_gpu.Check(tmp_path, True, 100)
    part = dict(status='exit 1', seconds=1, records=found, log='')
    check.results['parts']['machine'] = part
    assert len(check.failed) == 3
    assert '| layer | triton | fp32 | 0 of 2 | 5.0e-01 | 1.0e-01 | odd; other Zero' in markdown(
        check.results
    )


def test_errors_are_relative_to_the_definition():
    x = torch.ones(4, requires_grad=True)
    found = errors(lambda x: 1.1 * x * x, lambda x: x * x, [x], 0.2)
    assert found['ok']
    assert found['out'] == pytest.approx(0.1, rel=1e-3)
    assert found['grads'] == pytest.approx(0.1, rel=1e-3)
    assert not errors(lambda x: 1.1 * x * x, lambda x: x * x, [x], 0.05)['ok']


def test_no_backend_for_gpus_is_left_out():
    names = {record['name'] for record, _ in checks.check_attention(DRY, checks.TINY, ['fp32'])}
    assert {'triton', 'tiled', 'reference'} >= names > {'tiled'}
    names = {record['name'] for record, _ in checks.check_other_operators(DRY)}
    assert {'dense', 'composed', 'shifted', 'matmul'} < names


def test_refuses_unknown_parts_and_machines_without_a_gpu(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        check_gpu.main(['--parts', 'machines', '--out', str(tmp_path)])
    assert 'no part machines; choose from machine, warm-0' in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='no CUDA GPU; --cpu-dry-run runs every part'):
        check_gpu.main(['--out', str(tmp_path)])
