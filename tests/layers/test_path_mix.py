import pytest
import torch

from acmix_mm.layers import PathMix


def must_not_run(*_):
    raise AssertionError('a path with fixed weight 0 was computed')


def test_learned_weights_start_at_half_and_get_gradients():
    mix = PathMix()
    attention, convolution = torch.randn(2, 5)
    mix(lambda: attention, lambda weight: weight * convolution).sum().backward()
    assert mix.alpha.item() == mix.beta.item() == 0.5
    torch.testing.assert_close(mix.alpha.grad, attention.sum().view(1))
    torch.testing.assert_close(mix.beta.grad, convolution.sum().view(1))


def test_complementary():
    mix = PathMix('complementary')
    torch.nn.init.constant_(mix.alpha, 0.3)
    out = mix(lambda: torch.ones(2), lambda weight: weight * 2 * torch.ones(2))
    torch.testing.assert_close(out, torch.full((2,), 0.3 * 1 + 0.7 * 2))
    assert [name for name, _ in mix.named_parameters()] == ['alpha']


def test_fixed_pairs_have_no_parameters_and_skip_zero_paths():
    one, two = (lambda: torch.ones(2)), (lambda weight: weight * 2 * torch.ones(2))
    assert PathMix((1, 0))(one, must_not_run).tolist() == [1, 1]
    assert PathMix((0, 1))(must_not_run, two).tolist() == [2, 2]
    assert PathMix([0.5, 2])(one, two).tolist() == [4.5, 4.5]
    assert not list(PathMix((1, 1)).parameters())


@pytest.mark.parametrize('weights', ['sum', (0, 0), (1,), (1, 2, 3), ('a', 1), 3])
def test_refuses(weights):
    with pytest.raises(ValueError, match='path_weights must be'):
        PathMix(weights)


def test_half_precision_paths_stay_half():
    half = torch.ones(2, dtype=torch.bfloat16)
    out = PathMix()(lambda: half, lambda weight: weight.to(half.dtype) * half)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize('learned', ['convolution', 'attention', 'alpha', 'all'])
def test_gradients_equal_differences(learned):
    convolution, attention = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    # Maps may lie in memory in different orders.
    attention = attention.to(memory_format=torch.channels_last)
    tensors = dict(
        convolution=convolution, attention=attention, alpha=convolution.new_full((1,), 0.3)
    )
    leaves = [tensor.requires_grad_(learned in (name, 'all')) for name, tensor in tensors.items()]

    def weigh(convolution, attention, alpha):
        paths = (lambda: attention, lambda _: convolution)
        return torch.func.functional_call(PathMix().double(), dict(alpha=alpha), paths)

    assert torch.autograd.gradcheck(weigh, leaves)
    assert torch.autograd.gradgradcheck(weigh, leaves)


def test_attention_is_kept_for_the_gradient_of_alpha_alone():
    mix, x = PathMix(), torch.randn(8, requires_grad=True)

    def kept() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), id):
            mix(lambda: x + 1, lambda _: x + 2)
        return sum(size for size in sizes if size > 1)

    assert kept() == 8
    mix.requires_grad_(False)
    assert kept() == 0
