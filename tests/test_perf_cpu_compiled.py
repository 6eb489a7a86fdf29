"""The table of instructions per weight on CPUs: counted as it says, and as the kernels are now."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numba")

from cpu_compiled import HOSTS, RESULTS, Loop, counted, loops_of

from naiad.runtime.cpu_kernels.isa import ISAS

# A loop over two blocks' halves in a loop over blocks, neither of which is the loop that only moves numbers.
ASSEMBLY = """
.LBB0_1:
	prefetcht0	(%rax)
	vmovups	64(%rsp), %ymm0
.LBB0_2:
	vpmaddubsw	(%rax), %ymm0, %ymm1	# a comment, %rsp
	addq	$64, %rax
	jne	.LBB0_2
	decq	%rcx
	jne	.LBB0_1
.LBB0_3:
	movq	%rax, (%rcx)
	jne	.LBB0_3
	ret
"""


def test_loops_that_multiply() -> None:
    inner, outer = loops_of(ASSEMBLY)
    assert [line.split()[0] for line in inner.instructions] == ["vpmaddubsw", "addq", "jne"]
    assert len(outer.instructions) == 7 and outer.n_dots == 1
    assert outer.contains(inner) and not inner.contains(outer) and not inner.contains(inner)
    assert isinstance(inner, Loop)


@pytest.mark.parametrize(("format", "target"), [("Q4_0", "avx2"), ("Q8_0", "neon"), ("Q4_K", "avx512vnni")])
def test_the_table_is_what_kernels_are(format: str, target: str) -> None:
    """Another release of LLVM may change a few instructions; `python perf/cpu_compiled.py` writes the table anew."""
    kept = json.loads(RESULTS.read_text())[f"{format} one column"][target]
    found = counted(format, target, 1)
    assert found["per_weight"] == pytest.approx(kept["per_weight"], rel=0.05)
    assert found["stack"] == pytest.approx(kept["stack"], abs=8)


def test_the_table_has_every_target() -> None:
    for name, entries in json.loads(RESULTS.read_text()).items():
        assert set(entries) == set(HOSTS) <= set(ISAS), name
        assert all(entry["per_weight"] > 0.02 for entry in entries.values())
