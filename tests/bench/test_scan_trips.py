"""bench/scan_trips.py against the kernels themselves, which count their passes of every mark in the emulator."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import scan_trips
import torch
from emulated_cuda import SOURCES
from emulated_scan import EmulatedScan
from scan_problems import arguments, problem
from scan_trips import Problem

NUMBERS = scan_trips.mark_numbers()
MOST = 8  # launches of an op

# Only lane 0 counts: a warp passes a mark as often as the lane that passes it most, and no loop favours another lane.
COUNTING_MARKS = f"""
#pragma once
#include <stdint.h>
struct Counted {{
  int64_t blocks, threads, shared, marks[256], branches[256];
}};
extern "C" {{
__attribute__((weak, visibility("default"))) Counted counted[{MOST}];
__attribute__((weak, visibility("default"))) int launched;
}}
#define S2E_MARK(id) counted[launched - 1].marks[id] += threadIdx.x % 32 == 0
#define S2E_MARK_BRANCH(id) counted[launched - 1].branches[id] += threadIdx.x % 32 == 0
"""
COUNTING_LAUNCH = """
namespace seq2exp {
template <class K, class... A>
void counting_launch(K kernel, int64_t blocks, int threads, size_t shared, cudaStream_t stream, A... args) {
  counted[launched++] = {blocks, threads, int64_t(shared), {}, {}};
  launch(kernel, blocks, threads, shared, stream, args...);
}
}  // namespace seq2exp
#define launch counting_launch
"""


class Counted(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("blocks", "threads", "shared")] + [
        (name, ctypes.c_int64 * 256) for name in ("marks", "branches")
    ]

    def passes(self, kind: str) -> dict[str, float]:
        """Mean over the warps, of what was passed at all."""
        warps = self.blocks * self.threads / 32
        return {name: getattr(self, kind)[i] / warps for name, i in NUMBERS.items() if getattr(self, kind)[i]}


@pytest.fixture(scope="module", params=["bfloat16"])
def scan(request, tmp_path_factory) -> EmulatedScan:
    """The kernels from a copy of csrc that counts."""
    sources = tmp_path_factory.mktemp("counting") / "csrc"
    shutil.copytree(SOURCES, sources)
    (sources / "common" / "marks.h").write_text(COUNTING_MARKS)
    with (sources / "common" / "cuda.cuh").open("a") as file:
        file.write(COUNTING_LAUNCH)
    return EmulatedScan(getattr(torch, request.param), sources=sources)


def counted(scan: EmulatedScan, direction: str, inputs: tuple) -> list[Counted]:
    loaded = scan._library
    launched = ctypes.c_int.in_dll(loaded, "launched")
    out, _, states = scan.forward(*inputs)
    if direction == "backward":
        launched.value = 0
        scan.backward(torch.ones_like(out), *inputs, states)
    found, launched.value = launched.value, 0
    return list((Counted * MOST).in_dll(loaded, "counted"))[:found]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "dim, state, length, reverse", [(16, 16, 1304, False), (16, 16, 1536, True), (2048, 1, 264, False)]
)
def test_trips(scan, direction, dim, state, length, reverse):
    """Both the several segments of small problems and the single one of large problems; whole and ragged last tiles."""
    dtype = str(scan._dtype).removeprefix("torch.")
    inputs = arguments(problem(batch=1, dim=dim, state=state, length=length, reverse=reverse, dtype=scan._dtype))
    expected = scan_trips.launches(Problem(direction, length, dtype, reverse, batch=1, dim=dim, state=state))
    found = counted(scan, direction, inputs)
    assert [(launch.blocks, launch.threads) for launch in expected] == [(x.blocks, x.threads) for x in found]
    for launch, x in zip(expected, found, strict=True):
        assert scan_trips.block_shape(launch.kernel, state) == (x.threads, x.shared)
        for kind in ("marks", "branches"):
            given = {name: n for name, n in getattr(launch, kind).items() if n}
            assert x.passes(kind) == pytest.approx(given), launch.kernel
