"""How a mask's GPU kernels are launched, and how often a thread passes each mark of the CUDA ones.

Problems: those of mask_load.py, three tracks, no regions, the gradient to the logits alone. An element is a base. How
many attempts a Gamma draw takes depends on the data; a warp (in Triton a program) goes on until its last base has its
draw. Here they are counted, on the draws of the reference for the inputs of the benchmark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import scan_trips
import torch
from mask_load import MaskLoad
from scan_trips import CSRC, Launch
from torch import Tensor

from seq2exp.kernels.beta_mask.philox import philox
from seq2exp.kernels.beta_mask.sampling import gamma_attempt

TRACKS, COUNTED_TILES = 3, 64
FOLDER = CSRC / "beta_mask" / "cuda"


@dataclass(frozen=True)
class Problem(scan_trips.Problem):
    """direction: "mask, soft forward", "mask, soft backward" or of hard."""

    @property
    def kind(self) -> str:
        return self.direction.split()[1]

    @property
    def elements(self) -> int:
        return self.batch * self.length


def problems() -> list[Problem]:
    return [
        Problem(f"mask, {kind} {direction}", 200_000, "float32")
        for kind in ("soft", "hard") for direction in ("forward", "backward")
    ]  # fmt: skip


@cache
def threads() -> int:
    """Of a block."""
    found = re.search(r"kMaskThreads = (\d+)", (FOLDER / "mask.h").read_text())
    assert found
    return int(found[1])


@cache
def mark_numbers() -> dict[str, int]:
    """As scan_trips.mark_numbers."""
    names = re.search(r"enum Mark \{(.*?)\}", (FOLDER / "mask.cu").read_text(), re.DOTALL)
    assert names
    return {name: i for i, name in enumerate(re.findall(r"kMark(\w+)", names[1]), start=1)}


def block_shape(kernel: str) -> tuple[int, int]:
    """Threads and bytes of dynamic shared memory of a block."""
    return threads(), 0


def launches(p: Problem) -> list[Launch]:
    if p.direction.endswith("backward"):
        blocks, marks = -(-p.elements // threads()), {"Track": 0, "Signals": 0}
        branches = {"Mean": 0, "Sums": 0}
        return [Launch("beta_mask_bwd_kernel", blocks, threads(), marks, branches)]
    blocks = p.batch * -(-p.length // (threads() - 1))
    marks = {"Track": TRACKS, "Attempt": sum(attempts(p.kind, 32))}
    return [Launch("beta_mask_fwd_kernel", blocks, threads(), marks, {"Mean": 0}, {"Attempt": 2})]


@cache
def attempts(kind: str, together: int) -> tuple[float, float]:
    """Of the draws of alpha and of beta: mean over groups of `together` adjacent threads of the most attempts."""
    tile = threads() - 1
    load = MaskLoad(kind, 1, COUNTED_TILES * tile)
    exact: dict[str, Any] = load.exact(load.inputs("cpu"))
    position = torch.arange(COUNTED_TILES)[:, None] * tile + torch.arange(-1, tile)  # of the threads of the blocks

    def mean(concentration: Tensor, stream: int) -> float:
        found = attempts_of(concentration, stream)[position.clamp_min(0)]
        return float(found.reshape(-1, together).amax(1).double().mean())

    return mean(exact["alpha"][0], 0), mean(exact["beta"][0], 1)


def attempts_of(concentration: Tensor, stream: int) -> Tensor:
    """Of each base, (L,), in row 0 with seed 0."""
    d = torch.where(concentration < 1, concentration + 1, concentration) - 1 / 3
    position, zero = torch.arange(len(d)), torch.zeros(len(d), dtype=torch.int64)
    found, waiting, attempt = zero.clone(), torch.ones(len(d), dtype=torch.bool), 0
    while waiting.any():
        found += waiting
        waiting &= ~gamma_attempt(d, philox((position, zero, zero, zero + 2 * attempt + stream), (0, 0)))[1]
        attempt += 1
    return found


def torch_elements(p: Problem) -> int:
    """Elements that torch handles around the kernels: the sums of tiles."""
    return 6 * p.batch * -(-p.length // (threads() - 1)) if p.direction.endswith("forward") else 0
