"""Tries block shapes of the scan's GPU kernels: `python bench/gpu_tune.py JOURNAL GATE SECONDS`.

The grids are SPACES; each point is a record of JOURNAL with its times, after a check against float64. A backend that
does not let its shapes be chosen is skipped by name. Without a GPU the CPU's instruction sets stand in as a rehearsal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_jobs import append
from gpu_measure import DEVICE, measure, prepare
from workload import Workload, backend

from seq2exp.kernels import _extension


@dataclass(frozen=True)
class Space:
    """`choose(point)` makes the backend use a point of the grid; None: its own choice."""

    backend: str
    points: tuple[object, ...]
    choose: Callable[[object], None]


def cuda() -> Space | str:
    """Positions a lane, warps a block."""
    if reason := _extension.load():
        return reason
    if not hasattr(torch.ops.seq2exp_native, "selective_scan_tune"):
        return "the CUDA kernels have one block shape"
    return Space(
        "cuda", tuple((items, warps) for items in (8, 16) for warps in (4, 8)),
        lambda point: torch.ops.seq2exp_native.selective_scan_tune(*(point or (0, 0))),
    )  # fmt: skip


def triton() -> Space | str:
    from seq2exp.kernels.selective_scan import triton as module

    if not hasattr(module, "tune"):
        return "the Triton kernels have one block shape"
    return Space("triton", module.TUNING, module.tune)


def cpu() -> Space | str:
    if reason := _extension.load():
        return reason
    ops = torch.ops.seq2exp_native
    own, names = ops.cpu_instruction_set(), tuple(ops.cpu_instruction_sets())
    return Space("cpu", names, lambda name: ops.set_cpu_instruction_set(name or own))


SPACES: dict[str, Callable[[], Space | str]] = {"cuda": cuda, "triton": triton} if DEVICE == "cuda" else {"cpu": cpu}


def loads() -> list[Workload]:
    both = ("forward", "backward")
    if DEVICE == "cuda":
        return [Workload(d, batch, 200_000, dtype="bfloat16") for batch in (8, 1) for d in both]
    return [Workload(d, 2, 500, dim=8, state=4, dtype="bfloat16") for d in both]


def main(journal: Path, gate: dict, deadline: float) -> None:
    for name, find in SPACES.items():
        space = find()
        if isinstance(space, str):
            append(journal, {"backend": name, "skipped": space})
            continue
        for load in loads():
            if reason := gate.get(name, {}).get(load.direction):
                append(journal, {"backend": name, "case": load.name, "withheld": reason})
                continue
            prepared = prepare(load)
            for point in (None, *space.points):
                record = {"backend": name, "case": load.name, "point": "default" if point is None else str(point)}
                if time.monotonic() > deadline:
                    append(journal, record | {"withheld": "no time was left"})
                    continue
                space.choose(point)
                append(journal, record | measure(load, prepared, {name: backend(name)})[name])
        space.choose(None)


if __name__ == "__main__":
    _journal, _gate, _seconds = sys.argv[1:]
    main(Path(_journal), json.loads(Path(_gate).read_text()), time.monotonic() + float(_seconds))
