"""The kernels cost what their design promises, as far as machine code tells without a GPU."""

import pytest
from fresh_process import run_python

from acmix_mm.ops.backends import triton

needs_triton = pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))

COUNT = """
from benchmarks.count_sass import rows

for case in ((90, 'float16', 'channels_last', 16), (80, 'tf32', 'channels_last', 64)):
    for row in rows(*case):
        print(*row, sep=';')
"""


@needs_triton
def test_cost(tmp_path):
    output = run_python(COUNT, TRITON_CACHE_DIR=str(tmp_path)).stdout
    rows = [line.split(';') for line in output.splitlines()]
    names = 'forward', 'backward_queries', 'backward_keys'
    in_layer = [f'{name}, layer' for name in names]
    assert [row[4] for row in rows] == [*names, *in_layer] * 2
    for *_, spilled, shared, _, short_loads, variants in rows:
        assert (short_loads, variants) == ('0', '1')
        assert int(spilled) <= 32  # versions of Triton differ
        assert int(shared) < 99  # which every GPU has that the kernels run on
    for first, most in zip(range(0, 12, 3), (50, 75, 110, 145), strict=True):
        forward, *backward = (int(row[-3]) for row in rows[first : first + 3])
        assert 20 < forward <= most
        assert sum(backward) <= 5 * forward  # seven products of matrices against two


LISTING = """
        /*0000*/                   MOV R0, R1 ;
        /*0010*/               @P0 BRA `(.L_x_2) ;
.L_x_0:
        /*0020*/                   MOV R1, R2 ;
.L_x_1:
        /*0030*/                   IADD3 R1, R1, R2, R3 ;
        /*0040*/                   IADD3 R1, R1, R2, R3 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   MOV R3, R4 ;
        /*0080*/                   BRA `(.L_x_0) ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
"""


@needs_triton
def test_way_through_a_kernel_takes_every_loop_and_no_border():
    code = f"""
from benchmarks.count_sass import Code

code = Code('REG:40 STACK:8 SHARED:0', '''{LISTING}''')
assert (code.registers, code.spilled, len(code.instructions)) == (40, 8, 10)
assert code.count_executed(blocks=1) == 7
assert code.count_executed(blocks=4) == 7 + 3 * 3
"""
    run_python(code)
