"""Choosing a backend."""

import logging

import pytest
import torch
from fresh_process import run_python
from versions import needs_compiler

from acmix_mm.layers import ACmix
from acmix_mm.ops import available_backends, neighborhood_attention, shift_conv, use_backend
from acmix_mm.ops.backends import registry
from acmix_mm.ops.backends.registry import OPERATORS, Backend, run


@pytest.fixture
def calls(monkeypatch):
    """Replaces every backend by one that records its name; 'cpu' of no operator can run."""
    calls = []

    def record(operator, name):
        run = OPERATORS[operator][name].run

        def recorded(*args):
            calls.append((operator, name))
            return run(*args)

        return recorded

    for operator, backends in OPERATORS.items():
        replaced = {
            name: Backend(record(operator, name), lambda *_, name=name: _reason(name))
            for name in backends
        }
        monkeypatch.setitem(OPERATORS, operator, replaced)
    return calls


def _reason(name: str) -> str | None:
    return 'it is switched off' if name in ('cpu', 'triton') else None


@pytest.fixture
def attention():
    return torch.randn(3, 1, 2, 4, 5, 6).unbind()


def test_best_backend_that_can_run_is_chosen(calls, attention):
    neighborhood_attention(*attention, 3)
    assert calls == [('neighborhood_attention', 'tiled')]


def test_all_operators_have_a_definition():
    for operator, backends in OPERATORS.items():
        assert 'reference' in backends, operator
        assert 'reference' in available_backends(operator)


def test_context_governs_all_operators_of_a_layer(calls):
    layer, x = ACmix(8, 8), torch.rand(1, 8, 5, 6)
    with use_backend('reference'):
        layer(x)
    used = {'pointwise_conv', 'shift_conv', 'neighborhood_attention'}
    assert set(calls) == {(operator, 'reference') for operator in used}
    calls.clear()
    layer(x)
    assert not any(name == 'reference' for _, name in calls)


def test_context_for_one_operator(calls):
    layer, x = ACmix(8, 8), torch.rand(1, 8, 5, 6)
    with use_backend('reference', 'shift_conv'):
        layer(x)
    assert {op for op, name in calls if name == 'reference'} == {'shift_conv'}


def test_contexts_nest_and_end_after_errors(calls, attention):
    with use_backend('reference'):
        with pytest.raises(ValueError, match='kernel_size'), use_backend('tiled'):
            neighborhood_attention(*attention, 2)
        with use_backend('tiled', 'neighborhood_attention'):
            neighborhood_attention(*attention, 3)
        neighborhood_attention(*attention, 3)
    neighborhood_attention(*attention, 3)
    assert [name for _, name in calls] == ['tiled', 'reference', 'tiled']


def test_argument_counts_more_than_the_context(calls, attention):
    with use_backend('reference'):
        neighborhood_attention(*attention, 3, backend='tiled')
    assert calls == [('neighborhood_attention', 'tiled')]


def test_backend_that_cannot_run_says_why(calls, attention):
    says = "neighborhood_attention: backend 'cpu' cannot run: it is switched off"
    with pytest.raises(RuntimeError, match=says), use_backend('cpu'):
        neighborhood_attention(*attention, 3)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('cuda9000',), "no operator has a backend 'cuda9000'; choose one of .*'tiled'"),
        (('tiled', 'shift_conv'), "shift_conv: no backend 'tiled'; choose one of"),
        (('cpu', 'attention'), "no operator 'attention'; choose one of"),
    ],
)
def test_unknown_names(arguments, says):
    with pytest.raises(ValueError, match=says), use_backend(*arguments):
        pass


def test_unknown_operator_has_no_backends():
    with pytest.raises(ValueError, match="no operator 'attention'; choose one of"):
        available_backends('attention')


def test_skipped_backend_is_logged_once_with_the_reason(calls, attention, caplog):
    registry._log_skipped.cache_clear()
    with caplog.at_level(logging.INFO, registry.logger.name):
        for _ in range(2):
            run('neighborhood_attention', None, *attention, 3, 1, 1, 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"neighborhood_attention: backend '{name}' skipped: it is switched off"
        for name in ('cpu', 'triton')
    ]


@needs_compiler
def test_context_holds_while_compiling():
    maps, fc_weight = torch.randn(1, 3, 4, 5, 6), torch.randn(1, 9, 3)
    kernel = torch.randn(1, 4, 9, 3, 3)
    graphs = []

    def keep(module, _):
        graphs.append(module)
        return module

    compiled = torch.compile(
        lambda *t: shift_conv(*t[:2], None, t[2]), fullgraph=True, backend=keep
    )
    with use_backend('reference'):
        out = compiled(maps, fc_weight, kernel)
    compiled(maps, fc_weight, kernel)
    assert 'torch.ops.acmix_mm' not in graphs[0].print_readable(print_output=False)
    assert len(graphs) == 2, 'the context is not part of what was compiled'
    torch.testing.assert_close(out, shift_conv(maps, fc_weight, None, kernel))


def test_missing_kernels_are_warned_of_once():
    code = """
import sys
sys.modules['acmix_mm.ops._C'] = None
import torch
from acmix_mm.layers import ACmix
layer = ACmix(8, 8)
layer(torch.rand(1, 8, 5, 6))
layer(torch.rand(1, 8, 5, 6))
"""
    lines = run_python(code).stderr.splitlines()
    warnings = [line for line in lines if 'without its compiled CPU kernels' in line]
    assert len(warnings) == 1
    assert '--no-build-isolation' in warnings[0]


def test_triton_kernels_are_not_imported_unless_they_are_asked_for():
    """Triton itself is: torch's counter of FLOPs imports it, see acmix_mm/ops/flops.py."""
    run_python(
        """
import sys, torch
from acmix_mm.ops import available_backends, neighborhood_attention
available_backends('neighborhood_attention')
neighborhood_attention(*torch.ones(3, 1, 1, 1, 1, 1), 1)
assert 'acmix_mm.ops.backends.triton_kernels' not in sys.modules
"""
    )
