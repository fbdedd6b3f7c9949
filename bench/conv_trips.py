"""How a mixer's CUDA convolutions are launched, and how often a thread passes each mark of their kernels.

Follows the host side (csrc/bimamba/cuda/conv.cuh), as scan_trips.py does for the scans. Problems: both directions,
width 4, aligned contiguous rows of (batch, dim, L), one sequence a row. An element is a position of a channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import scan_trips
from scan_trips import BYTES, NAMES, Launch

WIDTH = 4


@dataclass(frozen=True)
class Problem(scan_trips.Problem):
    """direction: "convolution, forward" or "convolution, backward"."""

    @property
    def elements(self) -> int:
        return self.batch * self.length * self.dim


def block_shape(kernel: str) -> tuple[int, int]:
    """Threads and bytes of dynamic shared memory of a block."""
    return scan_trips.constants()["kConvThreads"], 0


def launches(p: Problem) -> list[Launch]:
    c = scan_trips.constants()
    backward = p.direction.endswith("backward")
    items = c["kForwardItems"] if not backward or BYTES[p.dtype] == 4 else 2 * c["kForwardItems"]
    assert p.length % items == 0
    threads, tile = c["kConvThreads"], 32 * items
    spans = -(-p.length // (c["kConvTurns"] * threads * items))
    tiles = -(-p.length // tile)  # of a row, each a warp's
    warps = spans * threads // 32
    windows = 3 if backward else 1  # of x, and of both gradients
    kind = "bwd" if backward else "fwd"
    main = Launch(
        f"bimamba_conv_{kind}_kernel<{NAMES[p.dtype]}, {WIDTH}>",
        p.batch * p.dim * spans,
        threads,
        marks={"Tile": tiles / warps, "Chain": 0, "State": 0},
        branches={"ScalarLoad": windows * min(tiles, 2) / warps, "ScalarStore": 0, "Begin": 0, "Ragged": 0},
    )
    if not backward:
        return [main]
    sums = p.dim * 2 * (c["kConvTaps"] + 1)  # a warp for each
    blocks = -(-sums * 32 // threads)
    rounds = -(-p.batch * spans // 32)
    return [main, Launch("bimamba_conv_sum_kernel", blocks, threads, {"Sums": rounds * sums * 32 / (blocks * threads)})]


def torch_elements(p: Problem) -> int:
    return 0
