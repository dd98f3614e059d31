import pytest
import torch

from acmix_mm.ops.backends import cpu
from benchmarks import threads

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')


@pytest.fixture(autouse=True)
def number_of_threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def test_kernels_on_threads_give_what_they_give_on_one(capsys):
    threads.main(['--rounds', '4', '--callers', '2'])
    assert capsys.readouterr().out == '96 calls on 4 threads, 0 differ from one thread\n'


def test_a_difference_is_an_error(monkeypatch, capsys):
    count = iter(range(100))
    monkeypatch.setattr(threads, 'calls', lambda _: [lambda: [torch.tensor(next(count))]])
    with pytest.raises(SystemExit):
        threads.main(['--rounds', '1', '--callers', '1'])
    assert '1 differ' in capsys.readouterr().out
