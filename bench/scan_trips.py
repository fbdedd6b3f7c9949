"""How a CUDA scan is launched for a problem, and how often a thread passes each mark of its kernels.

Follows the host side (csrc/selective_scan/cuda/launch.cuh, segments.cpp, csrc/bimamba/cuda/scan.cuh); constants and
mark numbers are read from the sources. Problems are those of `make static`: one group of B and C, at most kStateBlock
states, aligned contiguous rows of (batch, dim, L) and (batch, 1, state, L), everything optional present, channels a
multiple of the warps of a block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
FOLDERS = [CSRC / op / "cuda" for op in ("selective_scan", "bimamba")]
NAMES = {"float32": "float", "bfloat16": "bfloat16", "float16": "float16"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Problem:
    """direction: "forward", "backward", or of a mixer "mixer forward", "mixer backward, open" or "..., closing"."""

    direction: str
    length: int
    dtype: str
    reverse: bool = False
    batch: int = 8
    dim: int = 256
    state: int = 16
    rank: int = 8  # of the step sizes of a mixer

    @property
    def mixer(self) -> bool:
        return self.direction.startswith("mixer")

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
    """Every `constexpr int NAME = NUMBER` of the sources, and the default shape: items a lane, warps a block."""
    text = "".join(path.read_text() for folder in FOLDERS for path in sorted(folder.iterdir()))
    declared = re.findall(r"constexpr int(?:64_t)? ([^;]+);", text)
    shape = re.search(r"GpuShape shape\{(\d+), (\d+)\};", text)
    assert shape
    numbers = {name: int(value) for line in declared for name, value in re.findall(r"(\w+) = (\d+)\b", line)}
    return numbers | {"items": int(shape[1]), "warps": int(shape[2])}


@cache
def mark_numbers() -> dict[str, int]:
    """Mark -> number: `enum Mark { kMarkTile = 1, ... }` as Tile: 1, ..."""
    names = re.search(r"enum Mark \{(.*?)\}", (FOLDERS[0] / "tile.cuh").read_text(), re.DOTALL)
    assert names
    return {name: i for i, name in enumerate(re.findall(r"kMark(\w+)", names[1]), start=1)}


def block_shape(kernel: str, state: int = 16) -> tuple[int, int]:
    """Threads and bytes of dynamic shared memory of a block of a kernel, named as in `Launch`."""
    c = constants()
    name, *parameters = re.findall(r"\w+", kernel)
    kind = name.split("_scan_")[1]
    if kind == "chain_kernel":
        return 128, 0
    tile = c["SCAN_GPU_CHUNK"] if kind == "bwd_kernel" else 32 * int(parameters[1])
    tiles, floats = {
        "fwd_kernel": (2, 4),
        "segment_kernel": (1, 2),
        "bwd_kernel": (4, 4),
    }[kind]  # of B, C and their gradients; of a state of a channel
    return 32 * c["warps"], 4 * (min(state, c["kStateBlock"]) * tiles * tile + c["warps"] * floats * state)


def launches(p: Problem) -> list[Launch]:
    """Every kernel of ours that the op starts."""
    c = constants()
    assert p.state <= c["kStateBlock"] and p.length % 8 == 0
    return forward(p) if p.direction.endswith("forward") else backward(p)


def kernel(p: Problem, kind: str, *parameters: int | bool) -> str:
    """As c++filt prints it."""
    op = "bimamba_scan" if p.mixer else "selective_scan"
    given = ", ".join([NAMES[p.dtype], *(str(x).lower() for x in parameters)])
    return f"{op}_{kind}_kernel<{given}>"


def ranks(p: Problem, whole: float, ragged: float) -> dict[str, float]:
    """Marks of a mixer's step sizes, which are formed in this many tiles."""
    if not p.mixer:
        return {}
    rounds, rest = divmod(p.rank, constants()["kRankRows"])
    return {"Ranks": whole * rounds, "Rank": whole * rest, "ScalarRank": ragged * p.rank}


def scalar_low(p: Problem, ragged: float) -> dict[str, float]:
    """The branch of `ranks` that ragged tiles take."""
    return {"ScalarLow": ragged} if p.mixer else {}


def forward_segments(p: Problem) -> int:
    c = constants()
    return max(1, min(c["FORWARD_WARPS"] // (p.batch * p.dim), -(-p.length // (32 * c["items"]))))


def backward_segments(p: Problem) -> int:
    c = constants()
    return max(1, min(-(-c["BACKWARD_BLOCKS"] // p.batch), -(-p.length // c["SCAN_GPU_CHUNK"])))


def forward(p: Problem) -> list[Launch]:
    items, warps = constants()["kMixerItems" if p.mixer else "items"], constants()["warps"]
    tile = 32 * items
    segments = forward_segments(p)
    mine, last = -(-p.length // tile) / segments, (p.length % tile > 0) / segments  # tiles of a block, ragged ones
    staged = 2 * p.state / warps  # rows of B and C that a warp copies
    main = Launch(
        kernel(p, "fwd", items, p.reverse),
        p.batch * segments * p.dim // warps,
        32 * warps,
        marks={
            "Init": 1,
            "Tile": mine,
            "Save": mine,
            "States": mine,
            "State": mine * p.state,
            "Stage": mine * staged,
            **ranks(p, mine - last, last),
            **({} if p.mixer else {"Last": 1 / segments}),
        },
        branches={"ScalarLoad": last * (3 + staged), "ScalarStore": last, "Ragged": last, **scalar_low(p, last)},
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
    closing = p.direction.endswith("closing")
    loads, stores = (7 if closing else 4, 4 if closing else 3) if p.mixer else (8, 3)  # of rows of a channel
    main = Launch(
        kernel(p, "bwd", p.reverse, closing or not p.mixer),
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
            **ranks(p, (mine - last) * turns, last * turns),
        },
        branches={
            "Begin": mine,
            "End": mine,
            "ScalarLoad": last * (loads * turns + staged),
            "ScalarStore": stores * last * turns,
            "Ragged": last * turns,
            **scalar_low(p, last * turns),
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
    loads = (2 if adjoint else 1) + (0 if p.mixer else 1)  # of rows of a channel
    return Launch(
        kernel(p, "segment", items, descending, adjoint),
        p.batch * segments * p.dim // warps,
        32 * warps,
        marks={
            "Init": len(walked) / segments,
            "Tile": full + ragged,
            "States": full + ragged,
            "State": (full + ragged) * p.state,
            "Last": len(walked) / segments,
            "Stage": (full + ragged) * staged,
            **ranks(p, full, ragged),
        },
        branches={"ScalarLoad": ragged * (loads + staged), "Ragged": ragged, **scalar_low(p, ragged)},
    )


def chain(p: Problem, segments: int, adjoint: bool) -> Launch:
    threads = p.batch * p.dim * p.state
    name = f"selective_scan_chain_kernel<{str(adjoint).lower()}>"
    return Launch(name, -(-threads // 128), 128, {"Chain": segments})


def torch_elements(p: Problem) -> int:
    """Elements that torch handles around our kernels: dB and dC cast to 16 bits, the parts of dA, dD, dbias added."""
    if p.direction.endswith("forward"):
        return 0
    cast = 2 * p.batch * p.state * p.length if BYTES[p.dtype] == 2 else 0
    return cast + p.batch * backward_segments(p) * p.dim * (p.state + 2)
