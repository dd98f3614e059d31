import torch
from torch.profiler import ProfilerActivity, profile
from versions import needs_fused_attention

from acmix_mm.ops import neighborhood_attention


@needs_fused_attention
def test_takes_the_fused_kernels():
    """Neither pass falls back to materialised attention weights."""
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 2, 4, 16, 20, 20).unbind())
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        neighborhood_attention(q, k, v, 7, backend='tiled').sum().backward()
    names = {event.key for event in profiler.key_averages()}
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu' in names
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu_backward' in names
    assert 'aten::_softmax' not in names


def test_keeps_no_halos():
    """At most q, k, v and the result are kept for the backward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    q, k, v = (t.requires_grad_() for t in torch.randn(3, 1, 4, 16, 32, 32).unbind())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = neighborhood_attention(q, k, v, 7, backend='tiled')
    assert out.requires_grad
    assert kept <= 4 * q.numel()
