"""What older versions of torch lack is used through torch_compat alone, and its own paths work."""

import ast
from pathlib import Path

import pytest
import torch

from acmix_mm.ops import torch_compat
from acmix_mm.ops.backends import cpu

PACKAGE = Path(__file__).parents[2] / 'acmix_mm'
# Names of torch that 2.1 lacks, and the first version with them.
NEWER = {
    'accelerator': '2.6',
    'amp.GradScaler': '2.3',
    'amp.custom_bwd': '2.4',
    'amp.custom_fwd': '2.4',
    'amp.is_autocast_available': '2.4',
    'compiler.is_compiling': '2.2',
    'compiler.is_dynamo_compiling': '2.2',
    'compiler.is_exporting': '2.7',
    'compiler.set_stance': '2.6',
    'device_mesh.init_device_mesh': '2.2',
    'export.Dim': '2.2',
    'flop_counter.register_flop_formula': '2.2',
    'fsdp.fully_shard': '2.6',
    'get_autocast_dtype': '2.4',
    'library.custom_op': '2.4',
    'library.infer_schema': '2.5',
    'library.opcheck': '2.4',
    'library.register_autocast': '2.7',
    'library.register_autograd': '2.4',
    'library.register_fake': '2.4',
    'library.register_kernel': '2.4',
    'library.register_torch_dispatch': '2.5',
    'library.register_vmap': '2.5',
    'library.triton_op': '2.6',
    'library.wrap_triton': '2.6',
    'nn.Buffer': '2.5',
    'nn.RMSNorm': '2.4',
    'nn.attention': '2.3',
    '_pytree.tree_iter': '2.2',
    '_pytree.tree_leaves': '2.2',
    'register_load_state_dict_pre_hook': '2.5',
    'serialization.add_safe_globals': '2.4',
    'serialization.get_safe_globals': '2.4',
    'serialization.safe_globals': '2.5',
    'serialization.skip_data': '2.6',
    'utils.swap_tensors': '2.3',
}
# Where they may be used all the same, and why.
ALLOWED = {
    'checkpoints/unpickler.py': {  # asks whether torch has them
        'serialization.add_safe_globals',
        'serialization.get_safe_globals',
    },
    # Triton 3.5 comes with torch 2.9.
    'ops/backends/triton_kernels.py': {'library.custom_op'},
    'ops/backends/triton_layer.py': {'library.custom_op'},
}


def newer_names(source: str) -> set[str]:
    """Return the names in :data:`NEWER` that a module takes from torch."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            used.update(f'{node.module}.{alias.name}' for alias in node.names)
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == 'torch.is_autocast_enabled':
            used.add('torch.get_autocast_dtype' if node.args else '')  # of one version
    return {name for name in NEWER if any(f'.{use}'.endswith(f'.{name}') for use in used)}


@pytest.mark.parametrize(
    ('source', 'name'),
    [
        ('import torch\nif torch.compiler.is_compiling(): pass', 'compiler.is_compiling'),
        ('from torch.library import register_fake', 'library.register_fake'),
        (
            'from torch import library\n@library.custom_op("a::b")\ndef f(): ...',
            'library.custom_op',
        ),
        ('layer.register_load_state_dict_pre_hook(f)', 'register_load_state_dict_pre_hook'),
        ('torch.is_autocast_enabled("cpu")', 'get_autocast_dtype'),
        ('torch.is_autocast_enabled()', None),
        ('from .torch_compat import register_fake\nregister_fake("a::b", f)', None),
    ],
)
def test_newer_names_are_found(source, name):
    assert newer_names(source) == ({name} if name else set())


def test_newer_names_stay_in_one_module():
    found = {}
    for file in sorted(PACKAGE.rglob('*.py')):
        place = str(file.relative_to(PACKAGE))
        if '.mim' not in file.parts and place != 'ops/torch_compat.py':
            found[place] = newer_names(file.read_text())
    assert len(found) > 50
    assert {place: names for place, names in found.items() if names} == ALLOWED


def operators() -> dict[str, tuple]:
    """Return what the autograd of each compiled operator is made of, and arguments of it."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        tensor = torch.randn(shape, dtype=torch.float64, generator=generator)
        return tensor.requires_grad_()

    return {
        'neighborhood_attention': (
            cpu._attention_backward,
            cpu._save_attention,
            (*(random(1, 2, 2, 4, 5) for _ in range(3)), 3, 1, 1, 0.7),
        ),
        'shift_conv': (
            cpu._conv_backward,
            cpu._save_conv,
            ([random(1, 2, 2, 4, 5), random(1, 1, 2, 4, 5)], random(4, 3, 3, 3), 2, 1),
        ),
        'pointwise_conv': (
            cpu._pointwise_backward,
            cpu._save_pointwise,
            (random(2, 3, 4, 5), random(4, 3), random(4), 2),
        ),
        'window_attention': (
            cpu._window_backward,
            cpu._save_window,
            (random(1, 4, 6, 3, 2, 5), random(2, 4, 4), None, None, 2, 0.7),
        ),
        'acmix_layer': (
            cpu._layer_backward,
            cpu._save_layer,
            (
                *(random(*shape) for shape in ((2, 3, 4, 5), (12, 3), (12,), (2, 4, 5))),
                *(random(4, 6, 3, 3), random(1), 3, 2, 1, 0.7),
            ),
        ),
    }


@pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')
@pytest.mark.parametrize('name', operators())
def test_autograd_of_old_versions_equals_that_of_torch(name):
    backward, save, args = operators()[name]
    operator = getattr(torch.ops.acmix_mm, f'{name}_forward').default
    old = torch_compat._autograd_function(operator, backward, save)
    flat, _ = torch_compat.tree_flatten(args)
    tensors = [arg for arg in flat if isinstance(arg, torch.Tensor)]
    results = []
    for call in (old, operator):
        outs, _ = torch_compat.tree_flatten(call(*args))
        loss = sum((i + 1) * out.square().sum() for i, out in enumerate(outs))
        results.append([*outs, *torch.autograd.grad(loss, tensors)])
    assert len(results[0]) == len(outs) + len(tensors)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')
def test_old_versions_refuse_forward_derivatives():
    backward, save, args = operators()['pointwise_conv']
    operator = torch.ops.acmix_mm.pointwise_conv_forward.default
    old = torch_compat._autograd_function(operator, backward, save)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(x.detach(), x.detach()) for x in args[:3]]
        with pytest.raises((RuntimeError, NotImplementedError), match=r'jvp|forward'):
            old(*duals, args[3])


def test_autocast_of_a_device():
    assert torch_compat.autocast_dtype('cpu') is None
    with torch.autocast('cpu', torch.bfloat16):
        assert torch_compat.autocast_dtype('cpu') == torch.bfloat16
        assert torch_compat.autocast_dtype('cuda') is None
        assert torch_compat.autocast_dtype('meta') is None
