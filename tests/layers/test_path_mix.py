import pytest
import torch

from acmix_mm.layers import PathMix


def test_learned_weights_start_at_half_and_get_gradients():
    mix = PathMix()
    attention, convolution = torch.randn(2, 5)
    mix(mix.convolution_weight() * convolution, attention).sum().backward()
    assert mix.alpha.item() == mix.beta.item() == 0.5
    torch.testing.assert_close(mix.alpha.grad, attention.sum().view(1))
    torch.testing.assert_close(mix.beta.grad, convolution.sum().view(1))


def test_complementary():
    mix = PathMix('complementary')
    torch.nn.init.constant_(mix.alpha, 0.3)
    out = mix(mix.convolution_weight() * 2 * torch.ones(2), torch.ones(2))
    torch.testing.assert_close(out, torch.full((2,), 0.3 * 1 + 0.7 * 2))
    assert [name for name, _ in mix.named_parameters()] == ['alpha']


@pytest.mark.parametrize(
    ('pair', 'used'), [((1, 0), (True, False)), ((0, 1), (False, True)), ([0.5, 2], (True, True))]
)
def test_fixed_pairs(pair, used):
    mix = PathMix(pair)
    assert (mix.uses_attention, mix.uses_convolution) == used
    attention = torch.ones(2) if mix.uses_attention else None
    convolution = mix.convolution_weight() * 2 * torch.ones(2) if mix.uses_convolution else None
    expected = pair[0] * 1 + pair[1] * 2
    assert mix(convolution, attention).tolist() == [expected, expected]
    assert not list(mix.parameters())


@pytest.mark.parametrize('weights', ['sum', (0, 0), (1,), (1, 2, 3), ('a', 1), 3])
def test_refuses(weights):
    with pytest.raises(ValueError, match='path_weights must be'):
        PathMix(weights)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('weights', ['learned', (0.25, 2), (1, 0)])
def test_half_precision_paths_stay_half(weights, dtype):
    half = torch.ones(2, dtype=dtype)
    mix = PathMix(weights)
    assert mix(half if mix.uses_convolution else None, half).dtype == dtype


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_alpha_is_summed_in_single_precision(dtype):
    """At the first loss scale of GradScaler, every gradient of the map is finite in float16."""
    torch.manual_seed(0)
    attention = torch.randn(2, 64, 50, 84).to(dtype)
    noise = 1e-4 * torch.randn(attention.shape)
    grad = ((noise + 1e-4 * attention.float()) * 2**16).to(dtype)
    assert grad.isfinite().all()
    mix = PathMix()
    mix(torch.zeros_like(attention), attention).backward(grad)
    expected = (grad.double() * attention.double()).sum()
    torch.testing.assert_close(mix.alpha.grad.double(), expected.view(1), rtol=1e-5, atol=0)


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
        paths = (convolution, attention)
        return torch.func.functional_call(PathMix().double(), dict(alpha=alpha), paths)

    assert torch.autograd.gradcheck(weigh, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(weigh, leaves)


def test_function_transforms():
    """Gradients for each image of a batch, by ``torch.func``, equal those of single images."""
    mix, paths = PathMix().double(), torch.randn(2, 3, 4, 5, dtype=torch.float64)

    def loss(parameters, convolution, attention):
        out = torch.func.functional_call(mix, parameters, (convolution, attention))
        return out.square().sum()

    parameters = {name: p.detach() for name, p in mix.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, *paths)
    for i in range(3):
        one = torch.func.grad(loss)(parameters, *paths[:, i])
        torch.testing.assert_close(each['alpha'][i], one['alpha'])


def test_attention_is_kept_for_the_gradient_of_alpha_alone():
    mix, x = PathMix(), torch.randn(8, requires_grad=True)

    def kept() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), id):
            mix(x + 2, x + 1)
        return sum(size for size in sizes if size > 1)

    assert kept() == 8
    mix.requires_grad_(False)
    assert kept() == 0
