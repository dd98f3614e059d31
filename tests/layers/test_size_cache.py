import torch

from acmix_mm.layers.size_cache import cached_per_size


def test_makes_a_tensor_once_per_arguments():
    calls = []

    @cached_per_size
    def make(*arguments):
        calls.append(arguments)
        return torch.ones(arguments[0])

    assert make(2) is make(2)
    assert make(3) is not make(2)
    assert calls == [(2,), (3,)]


def test_what_inference_made_trains():
    make = cached_per_size(torch.ones)
    with torch.inference_mode():
        made = make(5)
    assert not made.is_inference()


def test_compiled_code_keeps_nothing():
    calls = []

    @cached_per_size
    def make(size):
        calls.append(size)
        return torch.arange(size)

    compiled = torch.compile(lambda x: x + make(x.shape[0]), fullgraph=True, backend='eager')
    assert torch.equal(compiled(torch.zeros(3)), torch.arange(3.0))
    assert torch.equal(make(3), torch.arange(3))
    assert calls == [3, 3], 'what was traced is not what the cache holds'
