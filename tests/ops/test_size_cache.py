import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from acmix_mm.layers import ACmix
from acmix_mm.ops.size_cache import cached_per_size


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


def test_fake_tensors_are_not_kept():
    layer, x = ACmix(8, 8), torch.randn(1, 8, 11, 13)
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(torch.randn(1, 8, 11, 13))
    assert type(layer(x)) is torch.Tensor
    make_fx(layer, tracing_mode='fake', _allow_non_fake_inputs=True)(x)
    assert type(layer(x)) is torch.Tensor


def test_real_tensors_do_not_meet_fake_ones():
    ACmix(8, 8)(torch.randn(1, 8, 12, 13))
    with FakeTensorMode():
        assert ACmix(8, 8)(torch.randn(1, 8, 12, 13)).shape == (1, 8, 12, 13)
