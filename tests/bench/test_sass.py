"""The instruction counter of `make static` on small listings whose counts are known."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import sass
from sass import SassError

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")

TWO_LOOPS = """
    MOV R1, c[0x0][0x28]
outer:
    PMTRIG 0x101
    FADD R2, R2, R3
inner:
    PMTRIG 0x102
    MUFU.EX2 R4, R5
    NOP
    @P0 BRA inner
    LDG.E R6, [R2.64]
    @P1 BRA outer
    STG.E [R2.64], R6
    EXIT
spin:
    BRA spin
    NOP
"""

BRANCHES = """
loop:
    PMTRIG 0x101
    ISETP.NE.AND P0, PT, R2, RZ, PT
    BSSY B0, joined
    @!P0 BRA other
    PMTRIG 0x203
    FADD R1, R1, R1
    @P1 BRA done
    PMTRIG 0x204
    FMUL R1, R1, R1
done:
    FFMA R1, R1, R1, R1
    BSYNC B0
other:
    SHFL.IDX PT, R1, R1, R2, R3
    BSYNC B0
joined:
    @P2 BRA loop
    EXIT
"""

UNROLLED = """
loop:
    PMTRIG 0x101
    FADD R1, R1, R1
    PMTRIG 0x101
    FADD R1, R1, R1
    PMTRIG 0x101
    FADD R1, R1, R1
    @P0 BRA loop
rest:
    PMTRIG 0x101
    FADD R1, R1, R1
    @P0 BRA rest
    EXIT
"""

SUBROUTINE = """
    MOV R1, 0x0
loop:
    PMTRIG 0x101
    CALL.REL.NOINC function
    @P0 CALL.REL.NOINC leave
    BRA loop
leave:
    EXIT
function:
    MUFU.RCP R1, R2
    FMUL R1, R1, R2
    RET.REL.NODEC R8 0x0
"""

DIVISION = """
    FCHK P0, R1, R2
    @!P0 BRA straight
    CALL.REL.NOINC function
straight:
    CALL.REL.NOINC function
    EXIT
function:
    FMUL R1, R1, R2
    RET.REL.NODEC R8 0x0
"""

DETOURS = """
    BRA.CONV ~URZ, straight
    CALL.REL.NOINC detour
straight:
    BRA.DIV UR4, detour
    EXIT
detour:
    MUFU.EX2 R1, R1
    RET.REL.NODEC R8 0x0
"""


def kernel(listing: str) -> sass.Kernel:
    """A kernel from instructions, one a line, and labels."""
    lines = [line.strip() for line in listing.strip().splitlines()]
    instructions = [line for line in lines if not line.endswith(":")]
    labels, address = {}, 0
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = f"{address:#x}"
        else:
            address += 16
    text = "\tcode for sm_80\n\t\tFunction : kernel\n"
    for i, line in enumerate(instructions):
        *rest, last = line.split(" ")
        text += (
            f"        /*{16 * i:04x}*/      {' '.join([*rest, labels.get(last, last)])} ;  /* 0x0000000000007918 */\n"
        )
        text += " " * 50 + "/* 0x000fe20000000f00 */\n"
    return sass.parse(text + "\t\t..........\n")["kernel"]


def test_nested_loops_by_marks():
    count = kernel(TWO_LOOPS).count(marks={1: 10, 2: 70})
    assert count.classes == {
        "MUFU": 70, "FFMA/FMUL/FADD": 10, "LDS/STS": 0, "LDG/STG": 10 + 1, "SHFL": 0, "other": 1 + 70 + 10 + 1,
    }  # fmt: skip
    assert count.total == 1 + 10 * 3 + 70 * 2 + 2


def test_nested_loops_by_trips():
    assert kernel(TWO_LOOPS).count(tree=[(10, [(7, [])])]) == kernel(TWO_LOOPS).count(marks={1: 10, 2: 70})


@pytest.mark.parametrize("tree", [[], [(10, [])], [(10, [(7, [])]), (3, [])], [(10, [(7, [(1, [])])])]])
def test_trips_have_to_match_the_loops(tree):
    with pytest.raises(SassError, match="trips are given for"):
        kernel(TWO_LOOPS).count(tree=tree)


@pytest.mark.parametrize(
    "marks, branches, message",
    [
        ({1: 10}, {}, r"mark \[2\] is in the code"),
        ({1: 10, 2: 70, 3: 1}, {}, r"mark \[3\] is not in the code"),
        ({1: 10, 2: 70}, {2: 1}, r"branch mark \[2\] is not in the code"),
    ],
)
def test_marks_given_and_found_have_to_agree(marks, branches, message):
    with pytest.raises(SassError, match=message):
        kernel(TWO_LOOPS).count(marks=marks, branches=branches)


def test_a_loop_without_mark_is_an_error():
    bare = TWO_LOOPS.replace("    PMTRIG 0x102\n", "")
    with pytest.raises(SassError, match=r"loop at 0x30.*has no mark"):
        kernel(bare).count(marks={1: 10})


def test_several_entries_of_a_loop_are_an_error():
    with pytest.raises(SassError, match="several entries"):
        kernel("@P0 BRA second\nfirst:\nFADD R1, R1, R1\nsecond:\nFADD R1, R1, R1\n@P1 BRA first\nEXIT").count()


def test_indirect_branch_is_an_error():
    with pytest.raises(SassError, match="indirect branch"):
        kernel("BRX R2 -0x10\nEXIT").count()


def test_branch_marks():
    base = kernel(BRANCHES).count(marks={1: 100}, branches={3: 40, 4: 10})
    # SHFL and everything without mark of its own in every trip; `done` only follows mark 3
    assert base.classes["SHFL"] == 100
    assert base.classes["FFMA/FMUL/FADD"] == 40 + 10 + 40
    assert base.total == 100 * 3 + 40 * 2 + 10 + 40 * 2 + 100 * 2 + 100 + 1
    assert kernel(BRANCHES).count(marks={1: 100}, branches={3: 0, 4: 0}).classes["FFMA/FMUL/FADD"] == 0


def test_a_branch_is_not_passed_more_often_than_its_loop():
    with pytest.raises(SassError, match="branch mark 3"):
        kernel(BRANCHES).count(marks={1: 100}, branches={3: 101, 4: 0})


def test_predicated_branch_mark_changes_nothing():
    code = "PMTRIG 0x101\n@P0 PMTRIG 0x202\n@P0 FADD R1, R1, R1\n@P1 BRA loop"
    assert kernel(f"loop:\n{code}\nEXIT").count(marks={1: 5}, branches={2: 1}).total == 5 * 2 + 1


def test_unrolled_loop_takes_the_passes_of_its_remainder():
    count = kernel(UNROLLED).count(marks={1: 12})
    assert count.classes["FFMA/FMUL/FADD"] == 12
    assert count.total == 4 * 4 + 1


def test_fully_unrolled_loop_has_to_agree_with_what_holds_it():
    code = kernel(
        "loop:\nPMTRIG 0x101\nPMTRIG 0x102\nFADD R1, R1, R1\nPMTRIG 0x102\nFADD R1, R1, R1\n@P0 BRA loop\nEXIT"
    )
    assert code.count(marks={1: 3, 2: 6}).total == 3 * 3 + 1
    with pytest.raises(SassError, match="disagree"):
        code.count(marks={1: 3, 2: 7})
    with pytest.raises(SassError, match="disagree on how often the kernel"):
        kernel("PMTRIG 0x101\nFADD R1, R1, R1\nEXIT").count(marks={1: 2})


def test_one_mark_in_several_loops_has_to_be_announced():
    twice = "first:\nPMTRIG 0x101\n@P0 BRA first\nsecond:\nPMTRIG 0x101\nFADD R1, R1, R1\n@P0 BRA second\nEXIT"
    with pytest.raises(SassError, match="mark 1 is in 2 loops, not 1"):
        kernel(twice).count(marks={1: 8})
    assert kernel(twice).count(marks={1: 8}, sites={1: 2}).total == 4 * 1 + 4 * 2 + 1


def test_subroutines_count_at_every_call_and_far_jumps_do_not():
    count = kernel(SUBROUTINE).count(marks={1: 6})
    assert count.classes["MUFU"] == 6
    assert count.total == 1 + 6 * (1 + 3 + 1 + 1) + 1


def test_detours_may_be_left_out():
    """A call counts where nothing passes it by."""
    assert kernel(DIVISION).count(detours=False).total == 6
    assert kernel(DIVISION).count().total == 6 + 3
    assert kernel(SUBROUTINE).count(marks={1: 6}, detours=False).classes["MUFU"] == 6


def test_converged_warps_take_no_detours():
    assert kernel(DETOURS).count().total == 3


def test_code_that_cannot_be_reached_is_not_counted():
    assert kernel("EXIT\nFADD R1, R1, R1\nend:\nBRA end").instructions == 1


TOY = """
#include "common/marks.h"
__global__ void toy(float* x, const bool* chosen, int rows) {
  __shared__ float last[64];
  float sum = 0.f;
  for (int i = 0; i < rows; ++i) {
    S2E_MARK(1);
#pragma unroll 4
    for (int j = 0; j < 64; ++j) {
      S2E_MARK(2);
      asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(sum));
    }
    if (chosen[i]) {
      S2E_MARK_BRANCH(3);
      for (int j = 0; j < 3; ++j) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(sum));
    }
    asm volatile("sqrt.approx.ftz.f32 %0, %0;" : "+f"(sum));
  }
  last[threadIdx.x] = sum;
  __syncthreads();
  x[threadIdx.x] = last[63 - threadIdx.x];
}
"""


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.skipif(find_spec("triton") is None, reason="cuobjdump comes with triton, which is not installed")
@pytest.mark.parametrize("architecture", [80, 90])
def test_compiled_kernel(tmp_path, architecture):
    """The special functions that a kernel is known to evaluate are the MUFU instructions that are counted."""
    (tmp_path / "toy.cu").write_text(TOY)
    found = {}
    for define in ("", "-DSEQ2EXP_MARKERS"):
        command = [NVCC, f"-arch=sm_{architecture}", "-cubin", f"-I{ROOT / 'csrc'}", *define.split()]
        subprocess.run([*command, "-o", tmp_path / "toy.cubin", tmp_path / "toy.cu"], check=True, capture_output=True)
        (name, found[define]), = sass.kernels(tmp_path / "toy.cubin").items()  # fmt: skip
    marked = found["-DSEQ2EXP_MARKERS"]
    count = marked.count(marks={1: 100, 2: 6400}, branches={3: 20})
    assert count.classes["MUFU"] == pytest.approx(6400 + 20 * 3 + 100)
    assert count.total > 6400 + 20 * 3 + 100
    assert abs(marked.instructions - found[""].instructions) <= 0.05 * found[""].instructions
    usage = sass.resources(tmp_path / "toy.cubin", architecture)[name]
    assert usage["stack"] == 0 and usage["static_shared"] == 4 * 64 and 0 < usage["registers"] < 64
