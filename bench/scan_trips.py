"""How the CUDA scan is launched for a problem, and how often a thread passes each mark of its kernels.

Follows the host side (csrc/selective_scan/cuda/launch.cuh, segments.cpp); constants and mark numbers are read from the
sources. Problems are those of `make static`: one group of B and C, at most kStateBlock states, aligned contiguous rows
of (batch, dim, L) and (batch, 1, state, L), everything optional present, channels a multiple of the warps of a block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "csrc" / "selective_scan" / "cuda"
NAMES = {"float32": "float", "bfloat16": "bfloat16", "float16": "float16"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Problem:
    direction: str  # "forward" or "backward"
    length: int
    dtype: str
    reverse: bool = False
    batch: int = 8
    dim: int = 256
    state: int = 16

    @property
    def elements(self) -> int:
        return self.batch * self.length * self.dim * self.state


@dataclass(frozen=True)
class Launch:
    """kernel: name with template arguments. passes: mean over the threads. sites: as `sass.Kernel.count` wants them."""

    kernel: str
    blocks: int
    threads: int
    marks: dict[str, float]
    branches: dict[str, float] = field(default_factory=dict)
    sites: dict[str, int] = field(default_factory=dict)


@cache
def constants() -> dict[str, int]:
    """Every `constexpr int NAME = NUMBER` of the scan's sources, and the default shape: items a lane, warps a block."""
    text = "".join(path.read_text() for path in sorted(FOLDER.iterdir()))
    declared = re.findall(r"constexpr int(?:64_t)? ([^;]+);", text)
    shape = re.search(r"GpuShape shape\{(\d+), (\d+)\};", text)
    assert shape
    numbers = {name: int(value) for line in declared for name, value in re.findall(r"(\w+) = (\d+)\b", line)}
    return numbers | {"items": int(shape[1]), "warps": int(shape[2])}


@cache
def mark_numbers() -> dict[str, int]:
    """Mark -> number: `enum Mark { kMarkTile = 1, ... }` as Tile: 1, ..."""
    names = re.search(r"enum Mark \{(.*?)\}", (FOLDER / "tile.cuh").read_text(), re.DOTALL)
    assert names
    return {name: i for i, name in enumerate(re.findall(r"kMark(\w+)", names[1]), start=1)}


def block_shape(kernel: str, state: int = 16) -> tuple[int, int]:
    """Threads and bytes of dynamic shared memory of a block of a kernel, named as in `Launch`."""
    c = constants()
    name, *parameters = re.findall(r"\w+", kernel)
    if name == "selective_scan_chain_kernel":
        return 128, 0
    tile = c["SCAN_GPU_CHUNK"] if name == "selective_scan_bwd_kernel" else 32 * int(parameters[1])
    tiles, floats = {
        "selective_scan_fwd_kernel": (2, 4),
        "selective_scan_segment_kernel": (1, 2),
        "selective_scan_bwd_kernel": (4, 4),
    }[name]  # of B, C and their gradients; of a state of a channel
    return 32 * c["warps"], 4 * (min(state, c["kStateBlock"]) * tiles * tile + c["warps"] * floats * state)


def launches(p: Problem) -> list[Launch]:
    """Every kernel of ours that the op starts."""
    c = constants()
    assert p.state <= c["kStateBlock"] and p.length % 8 == 0
    return forward(p) if p.direction == "forward" else backward(p)


def forward_segments(p: Problem) -> int:
    c = constants()
    return max(1, min(c["FORWARD_WARPS"] // (p.batch * p.dim), -(-p.length // (32 * c["items"]))))


def backward_segments(p: Problem) -> int:
    c = constants()
    return max(1, min(-(-c["BACKWARD_BLOCKS"] // p.batch), -(-p.length // c["SCAN_GPU_CHUNK"])))


def forward(p: Problem) -> list[Launch]:
    items, warps = constants()["items"], constants()["warps"]
    tile = 32 * items
    segments = forward_segments(p)
    mine, last = -(-p.length // tile) / segments, (p.length % tile > 0) / segments  # tiles of a block, ragged ones
    staged = 2 * p.state / warps  # rows of B and C that a warp copies
    main = Launch(
        f"selective_scan_fwd_kernel<{NAMES[p.dtype]}, {items}, {flag(p.reverse)}>",
        p.batch * segments * p.dim // warps,
        32 * warps,
        marks={
            "Init": 1,
            "Tile": mine,
            "Save": mine,
            "States": mine,
            "State": mine * p.state,
            "Last": 1 / segments,
            "Stage": mine * staged,
        },
        branches={"ScalarLoad": last * (3 + staged), "ScalarStore": last, "Ragged": last},
        sites={"Stage": 2},
    )
    if segments == 1:
        return [main]
    return [segment_pass(p, segments, tile, adjoint=False), chain(p, segments, adjoint=False), main]


def backward(p: Problem) -> list[Launch]:
    chunk, warps = constants()["SCAN_GPU_CHUNK"], constants()["warps"]
    segments = backward_segments(p)
    mine, last = -(-p.length // chunk) / segments, (p.length % chunk > 0) / segments
    turns = p.dim / warps  # of the block's warps over the channels
    staged = 2 * p.state / warps  # rows of B and C that a warp copies
    main = Launch(
        f"selective_scan_bwd_kernel<{NAMES[p.dtype]}, {flag(p.reverse)}, true>",
        p.batch * segments,
        32 * warps,
        marks={
            "Init": p.dim * (p.state + 2) / (32 * warps),
            "Tile": mine,
            "Channels": mine * turns,
            "Save": mine * turns,
            "States": mine * turns,
            "Round": mine * turns * warps,
            "State": mine * turns * p.state,
            "Sums": 2 * mine * p.state * chunk / (32 * warps),
            "Finish": mine * turns,
            "Stage": mine * staged,
        },
        branches={
            "Begin": mine,
            "End": mine,
            "ScalarLoad": last * (8 * turns + staged),
            "ScalarStore": 3 * last * turns,
            "Ragged": last * turns,
        },
        sites={"Stage": 2, "Sums": 2},
    )
    before = [segment_pass(p, segments, chunk, adjoint=True)] if segments > 1 else []
    return [*before, chain(p, segments, adjoint=True), main]


def segment_pass(p: Problem, segments: int, unit: int, adjoint: bool) -> Launch:
    """Over each segment but the walk's last; segments are whole units of the main pass, tiles here may be longer."""
    items, warps = constants()["kSegmentItems"], constants()["warps"]
    tile = 32 * items
    each, more = divmod(-(-p.length // unit), segments)  # the first `more` segments have one unit more
    ends = [min((i * each + min(i, more)) * unit, p.length) for i in range(segments + 1)]
    spans = [end - begin for begin, end in pairwise(ends)]
    walked = spans[1:] if adjoint else spans[:-1]
    full = sum(span // tile for span in walked) / segments
    ragged = sum(span % tile > 0 for span in walked) / segments
    descending = p.reverse != adjoint
    staged = p.state / warps  # rows of B or C that a warp copies
    return Launch(
        f"selective_scan_segment_kernel<{NAMES[p.dtype]}, {items}, {flag(descending)}, {flag(adjoint)}>",
        p.batch * segments * p.dim // warps,
        32 * warps,
        marks={
            "Init": len(walked) / segments,
            "Tile": full + ragged,
            "States": full + ragged,
            "State": (full + ragged) * p.state,
            "Last": len(walked) / segments,
            "Stage": (full + ragged) * staged,
        },
        branches={"ScalarLoad": ragged * ((3 if adjoint else 2) + staged), "Ragged": ragged},
    )


def chain(p: Problem, segments: int, adjoint: bool) -> Launch:
    threads = p.batch * p.dim * p.state
    return Launch(f"selective_scan_chain_kernel<{flag(adjoint)}>", -(-threads // 128), 128, {"Chain": segments})


def flag(x: bool) -> str:
    """As c++filt prints it."""
    return "true" if x else "false"


def torch_elements(p: Problem) -> int:
    """Elements that torch handles around our kernels: dB and dC cast to 16 bits, the parts of dA, dD, dbias added."""
    if p.direction == "forward":
        return 0
    cast = 2 * p.batch * p.state * p.length if BYTES[p.dtype] == 2 else 0
    return cast + p.batch * backward_segments(p) * p.dim * (p.state + 2)
