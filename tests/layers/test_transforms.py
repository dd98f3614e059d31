"""Forward-mode differentiation and the transforms of torch.func, for every layer."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.layers.acmix import coordinates

IMAGE, TOKENS = (2, 8, 5, 6), (2, 5, 6, 8)
LAYERS = {
    'ACmix': (partial(ACmix, 8, 8, num_heads=2, kernel_att=3, stride=2), IMAGE),
    'PatchwiseACmix': (partial(PatchwiseACmix, 8, 2, 8, kernel_att=3, share_channels=4), IMAGE),
    'SpatialReductionACmix': (partial(SpatialReductionACmix, 8, 2, sr_ratio=2), TOKENS),
    'WindowACmix': (partial(WindowACmix, 8, 2, window_size=4, shift_size=2), TOKENS),
}


def case(name: str) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A layer away from its start, its parameters, and an input."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double().eval()  # BatchNorm's statistics of a batch cannot be vmapped over
    parameters = {key: 0.3 * torch.randn_like(p) for key, p in layer.named_parameters()}
    layer.load_state_dict(parameters, strict=False)
    return layer, parameters, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize('name', LAYERS)
def test_forward_derivatives(name):
    layer, parameters, x = case(name)
    tangents = {key: torch.randn_like(p) for key, p in parameters.items()}, torch.randn_like(x)

    def call(parameters, x):
        return functional_call(layer, parameters, (x,))

    def moved(step):
        others = {key: p + step * tangents[0][key] for key, p in parameters.items()}
        return call(others, x + step * tangents[1])

    step = 1e-6
    difference = (moved(step) - moved(-step)) / (2 * step)
    assert difference.abs().max() > 1
    _, ours = torch.func.jvp(call, (parameters, x), tangents)
    torch.testing.assert_close(ours, difference, rtol=1e-5, atol=1e-5)
    _, expected = torch.func.jvp(layer, (x,), tangents[1:])
    with forward_ad.dual_level():
        out = layer(forward_ad.make_dual(x, tangents[1]))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, expected)


@pytest.mark.parametrize('name', LAYERS)
def test_gradients_of_each_sample(name):
    layer, parameters, x = case(name)

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample.unsqueeze(0),)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer(sample.unsqueeze(0)).square().sum().backward()
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(each[key][i], parameter.grad, msg=key)
        layer.zero_grad()


@pytest.mark.parametrize('name', LAYERS)
def test_jacobians(name):
    layer, _, x = case(name)
    x, probe = x[:1], torch.randn_like(layer(x[:1]))

    def project(x):
        return torch.stack([(layer(x) * probe).sum(), layer(x).square().sum()])

    expected = torch.autograd.functional.jacobian(project, x)
    torch.testing.assert_close(torch.func.jacrev(project)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(project)(x), expected)


@pytest.mark.parametrize('name', LAYERS)
def test_ensembles(name):
    """Several sets of parameters for one input."""
    layer, parameters, x = case(name)
    several = {key: torch.stack([p, -2 * p]) for key, p in parameters.items()}
    call = partial(functional_call, layer)
    outs = torch.func.vmap(call, (0, None))(several, x)
    loss = lambda parameters: call(parameters, x).square().sum()  # noqa: E731
    grads = torch.func.vmap(torch.func.grad(loss))(several)
    for i in range(2):
        one = {key: p[i].clone().requires_grad_() for key, p in several.items()}
        torch.testing.assert_close(outs[i], call(one, x))
        expected = torch.autograd.grad(loss(one), [*one.values()])
        torch.testing.assert_close([grad[i] for grad in grads.values()], [*expected])


@pytest.mark.parametrize('name', LAYERS)
def test_second_derivatives(name):
    layer, _, x = case(name)
    x, tangent = x[:1], torch.randn_like(x[:1])
    gradient = torch.func.grad(lambda x: layer(x).square().sum())
    step = 1e-5
    difference = (gradient(x + step * tangent) - gradient(x - step * tangent)) / (2 * step)
    _, ours = torch.func.jvp(gradient, (x,), (tangent,))
    torch.testing.assert_close(ours, difference, rtol=1e-5, atol=1e-5)
    _, product = torch.func.vjp(gradient, x)
    torch.testing.assert_close(product(tangent)[0], difference, rtol=1e-5, atol=1e-5)


def test_cached_coordinates_are_no_tensors_of_a_transform():
    layer, _, _ = case('ACmix')
    torch.func.grad(lambda x: layer(x).sum())(torch.randn(1, 8, 15, 17, dtype=torch.float64))
    kept = coordinates(15, 17, torch.float64, torch.device('cpu'))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)
