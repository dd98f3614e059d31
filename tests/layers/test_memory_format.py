"""Every layer with inputs whose channels lie innermost, or outermost, in memory."""

from functools import partial

import pytest
import torch

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix

LAYERS = {
    'ACmix': partial(ACmix, 8, 8),
    'ACmix-strided': partial(ACmix, 8, 8, stride=2),
    'ACmix-attention': partial(ACmix, 8, 8, path_weights=(1, 0)),
    'PatchwiseACmix': partial(PatchwiseACmix, 8, 2, 8),
    'PatchwiseACmix-attention': partial(PatchwiseACmix, 8, 2, 8, path_weights=(1, 0)),
    'SpatialReductionACmix': partial(SpatialReductionACmix, 8, 2, sr_ratio=2),
    'WindowACmix': partial(WindowACmix, 8, 2, shift_size=3),
}


@pytest.mark.parametrize('name', LAYERS)
def test_results_do_not_depend_on_the_memory_format(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name]().double(), torch.randn(2, 8, 9, 10, dtype=torch.float64)
    takes_images = name not in ('SpatialReductionACmix', 'WindowACmix')  # those take tokens
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        image = x.to(memory_format=memory_format)
        leaf = (image if takes_images else image.permute(0, 2, 3, 1)).requires_grad_()
        layer.to(memory_format=memory_format)
        out = layer(leaf)
        if takes_images:
            assert out.is_contiguous()
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
        results.append([out, *torch.autograd.grad(loss, [leaf, *layer.parameters()])])
    torch.testing.assert_close(*results)
