"""Time and memory of one training step, part by part.

On the CPU memory is what torch's allocator gave out, and the resident set of the process. On a GPU it is what the
caching allocator gave out, from torch's memory snapshot, which can be kept for pytorch.org/memory_viz.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from .record import (
    Allocations,
    Span,
    Trace,
    record_cpu_allocations,
    record_gpu_allocations,
    record_resident,
    record_spans,
)
from .step import PARTS, StepSettings, TrainingStep

TIMED_SECONDS, TIMED_STEPS = 1.0, 20  # steps are timed until either is reached; the fastest counts
BINS = 300  # of a curve: the smallest and the largest value of each


@dataclass(frozen=True)
class Curve:
    """Memory over the step: bytes at seconds from its start."""

    seconds: list[float]
    bytes: list[int]


@dataclass(frozen=True)
class PartCost:
    """seconds: of the fastest step. peak: most bytes allocated while the part ran, all that is alive then included.

    kept: bytes allocated in it that are alive when the backward begins, so what it saves for the backward and its
    output; None for the backward and the optimiser. resident: largest resident set of the process; None on a GPU.
    """

    name: str
    seconds: float
    peak: int
    kept: int | None
    resident: int | None


@dataclass(frozen=True)
class StepCost:
    """seconds: of the fastest of `timed_steps` steps.

    Bytes: `fixed` of weights and optimiser state; `peak` allocated at any time of the step, those included;
    `resident` and, before the model was built, `resident_before` of the process (None on a GPU); `reserved` by the
    caching allocator (None on the CPU). selected_fraction: mean of the mask. spans: (part, start, end), seconds.
    """

    seconds: float
    timed_steps: int
    parts: list[PartCost]
    fixed: int
    peak: int
    resident: int | None
    resident_before: int | None
    reserved: int | None
    selected_fraction: float
    spans: list[tuple[str, float, float]]
    allocated_curve: Curve
    resident_curve: Curve | None


def measure_step(settings: StepSettings, limit: int | None = None, snapshot: Path | None = None) -> StepCost:
    """Take a few steps in this process: to warm up, for the time, for the memory.

    limit: bytes of the GPU that may be used; beyond, torch raises OutOfMemoryError. snapshot: file for the memory
    snapshot of the GPU.
    """
    on_gpu = settings.device == "cuda"
    limit_gpu(settings, limit)
    resident_before = psutil.Process().memory_info().rss
    step = TrainingStep(settings)
    step()
    _return_free_memory()
    resident = None if on_gpu else record_resident(step)
    timed = [] if resident is None else [resident.spans]
    fastest = _fastest(step, timed, torch.cuda.synchronize if on_gpu else lambda: None)
    fixed = step.fixed_bytes()
    spans, allocations = record_gpu_allocations(step, snapshot) if on_gpu else record_cpu_allocations(step)
    allocated = Trace(spans, np.append(0, allocations.times), np.cumsum(np.append(fixed, allocations.changes)))
    kept = kept_bytes(spans, allocations)
    start = fastest[0].start
    return StepCost(
        seconds=_seconds(fastest),
        timed_steps=len(timed),
        parts=[
            PartCost(
                name,
                sum(span.end - span.start for span in fastest if span.name == name) / 1e9,
                allocated.largest(name),
                kept.get(name),
                resident and resident.largest(name),
            )
            for name in PARTS
        ],
        fixed=fixed,
        peak=int(allocated.bytes.max()),
        resident=resident and int(resident.bytes.max()),
        resident_before=None if on_gpu else resident_before,
        reserved=torch.cuda.max_memory_reserved() if on_gpu else None,
        selected_fraction=step.selected_fraction,
        spans=[(s.name, (s.start - start) / 1e9, (s.end - start) / 1e9) for s in fastest],
        allocated_curve=curve(allocated, fastest),
        resident_curve=resident and curve(resident, fastest),
    )


def limit_gpu(settings: StepSettings, limit: int | None) -> None:
    """Let this process allocate at most `limit` bytes of the GPU, where it is one."""
    if settings.device == "cuda" and limit is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.mem_get_info()[1]))


def kept_bytes(spans: list[Span], allocations: Allocations) -> dict[str, int]:
    """What is alive when the backward begins, by the part in which it was allocated."""
    backward = next(span.start for span in spans if span.name == "backward")
    alive: dict[int, tuple[int, int]] = {}
    for time, change, address in zip(*(x.tolist() for x in allocations), strict=True):
        if time >= backward:
            break
        if change > 0:
            alive[address] = time, change
        else:
            alive.pop(address, None)
    kept = {span.name: 0 for span in spans if span.end <= backward}
    for time, size in alive.values():
        for span in spans:
            if span.start <= time < span.end:
                kept[span.name] += size
    return kept


def curve(trace: Trace, spans: list[Span]) -> Curve:
    """The trace on the clock of another step with the same parts, `spans`: stretched part by part."""
    there = [t for span in trace.spans for t in span[1:]]
    here = [t for span in spans for t in span[1:]]
    seconds = (np.interp(trace.times, there, here) - here[0]) / 1e9
    chosen = np.arange(len(seconds))
    if len(seconds) > 2 * BINS:
        bins = np.array_split(chosen, BINS)
        chosen = np.unique([i for b in bins for i in (b[trace.bytes[b].argmin()], b[trace.bytes[b].argmax()])])
    return Curve(seconds[chosen].tolist(), trace.bytes[chosen].tolist())


def _fastest(step: TrainingStep, timed: list[list[Span]], at_boundary: Callable[[], object]) -> list[Span]:
    """The fastest of the timed steps, after adding to them."""
    while not timed or (sum(map(_seconds, timed)) < TIMED_SECONDS and len(timed) < TIMED_STEPS):
        timed.append(record_spans(step, at_boundary))
    return min(timed, key=_seconds)


def _seconds(spans: list[Span]) -> float:
    return (spans[-1].end - spans[0].start) / 1e9


def _return_free_memory() -> None:
    """What malloc has free but resident goes back to the system, so that it is not taken for memory of the step."""
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
