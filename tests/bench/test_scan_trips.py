"""The trips of bench/*_trips.py against the kernels, which count their passes of every mark in the emulator."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import conv_trips
import mask_trips
import pytest
import scan_trips
import torch
from emulated_conv import EmulatedConvolution
from emulated_cuda import SOURCES
from emulated_mask import EmulatedMask
from emulated_scan import EmulatedMixer, EmulatedScan
from mask_load import MaskLoad
from mixer_problems import direction as mixer_problem
from mixer_problems import taps
from scan_problems import arguments, problem
from scan_trips import Launch, Problem

NUMBERS = scan_trips.mark_numbers()
MOST = 8  # launches of an op
DTYPE = torch.bfloat16

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

    def passes(self, kind: str, numbers: dict[str, int] = NUMBERS) -> dict[str, float]:
        """Mean over the warps, of what was passed at all."""
        warps = self.blocks * self.threads / 32
        return {name: getattr(self, kind)[i] / warps for name, i in numbers.items() if getattr(self, kind)[i]}


@pytest.fixture(scope="module")
def counting(tmp_path_factory) -> Path:
    """A copy of csrc that counts."""
    sources = tmp_path_factory.mktemp("counting") / "csrc"
    shutil.copytree(SOURCES, sources)
    (sources / "common" / "marks.h").write_text(COUNTING_MARKS)
    with (sources / "common" / "cuda.cuh").open("a") as file:
        file.write(COUNTING_LAUNCH)
    return sources


@pytest.fixture(scope="module")
def scan(counting) -> EmulatedScan:
    return EmulatedScan(DTYPE, sources=counting)


@pytest.fixture(scope="module")
def mixer(counting) -> EmulatedMixer:
    return EmulatedMixer(DTYPE, sources=counting)


@pytest.fixture(scope="module")
def convolution(counting) -> EmulatedConvolution:
    return EmulatedConvolution(DTYPE, sources=counting)


def counted(
    scan: EmulatedScan | EmulatedMixer | EmulatedConvolution | EmulatedMask, run: Callable[[], object]
) -> list[Counted]:
    loaded = scan._library
    launched = ctypes.c_int.in_dll(loaded, "launched")
    launched.value = 0
    run()
    return list((Counted * MOST).in_dll(loaded, "counted"))[: launched.value]


def check(expected: list[Launch], found: list[Counted], *state: int, trips: ModuleType = scan_trips) -> None:
    assert [(launch.blocks, launch.threads) for launch in expected] == [(x.blocks, x.threads) for x in found]
    for launch, x in zip(expected, found, strict=True):
        assert trips.block_shape(launch.kernel, *state) == (x.threads, x.shared)
        for kind in ("marks", "branches"):
            given = {name: n for name, n in getattr(launch, kind).items() if n}
            assert x.passes(kind) == pytest.approx(given), launch.kernel


# Both the several segments of small problems and the single one of large problems; whole and ragged last tiles.
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "dim, state, length, reverse", [(16, 16, 1304, False), (16, 16, 1536, True), (2048, 1, 264, False)]
)
def test_trips(scan, direction, dim, state, length, reverse):
    inputs = arguments(problem(batch=1, dim=dim, state=state, length=length, reverse=reverse, dtype=DTYPE))
    out, _, states = scan.forward(*inputs)
    if direction == "forward":
        found = counted(scan, lambda: scan.forward(*inputs))
    else:
        found = counted(scan, lambda: scan.backward(torch.ones_like(out), *inputs, states))
    p = Problem(direction, length, "bfloat16", reverse, batch=1, dim=dim, state=state)
    check(scan_trips.launches(p), found, state)


@pytest.mark.parametrize("direction", ["mixer forward", "mixer backward, open", "mixer backward, closing"])
@pytest.mark.parametrize(
    "dim, state, length, reverse, rank",
    [(16, 16, 1304, False, 8), (16, 16, 1536, True, 6), (2048, 1, 264, False, 3)],
)
def test_trips_of_a_mixer(mixer, direction, dim, state, length, reverse, rank):
    d = mixer_problem(batch=1, dim=dim, state=state, rank=rank, length=length, reverse=reverse, dtype=DTYPE)
    _, states = mixer.scan(d)
    if direction == "mixer forward":
        found = counted(mixer, lambda: mixer.scan(d))
    else:
        closing = direction.endswith("closing")
        found = counted(mixer, lambda: mixer.scan_backward(torch.ones_like(d.u), d, states, closing))
    p = Problem(direction, length, "bfloat16", reverse, batch=1, dim=dim, state=state, rank=rank)
    check(scan_trips.launches(p), found, state)


# Several spans, and less than a warp; the last lane that has positions is the first of its warp: see COUNTING_MARKS.
@pytest.mark.parametrize(("direction", "items"), [("forward", 8), ("backward", 16)])
@pytest.mark.parametrize("warps", [0, 1, 80])
def test_trips_of_convolutions(convolution, direction, items, warps):
    length = (32 * warps + 1) * items
    p = conv_trips.Problem(f"convolution, {direction}", length, "bfloat16", batch=2, dim=3)
    x, both = torch.randn(p.batch, p.dim, length).to(DTYPE), (taps(p.dim, conv_trips.WIDTH),) * 2
    if direction == "forward":
        found = counted(convolution, lambda: convolution.convolve(x, *both, None))
    else:
        found = counted(convolution, lambda: convolution.convolve_backward(x, x, x, *both, None))
    check(conv_trips.launches(p), found, trips=conv_trips)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_trips_of_a_mask(counting, kind):
    """Tracks and attempts of the first lane of every warp; of the other lanes the kernel tells nothing."""
    mask, p = EmulatedMask(sources=counting), mask_trips.Problem(f"mask, {kind} forward", 1000, "float32", batch=1)
    load = MaskLoad(kind, p.batch, p.length)
    x = load.inputs("cpu")
    inputs = (x.logits.detach(), *x[1:4])
    (forward,) = counted(
        mask, lambda: mask.forward(*inputs, None, None, torch.zeros(1, dtype=torch.int64), load.settings)
    )
    (expected,) = mask_trips.launches(p)
    assert (forward.blocks, forward.threads) == (expected.blocks, expected.threads)
    exact = load.exact(x)
    by_base = sum(mask_trips.attempts_of(exact[name][0], stream) for stream, name in enumerate(("alpha", "beta")))
    tile = mask_trips.threads() - 1
    first = torch.arange(expected.blocks)[:, None] * tile + torch.arange(-1, tile, 32)
    first = first[(first >= 0) & (first < p.length)]
    warps = expected.blocks * expected.threads / 32
    assert forward.passes("marks", mask_trips.mark_numbers()) == {
        "Track": mask_trips.TRACKS * len(first) / warps, "Attempt": int(by_base[first].sum()) / warps,
    }  # fmt: skip
    assert not forward.passes("branches", mask_trips.mark_numbers())
