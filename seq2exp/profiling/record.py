"""What happens during one training step: when its parts run, what is allocated, how large the process is."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from seq2exp.parts import listening

from .step import TrainingStep

SAMPLE_SECONDS = 0.003
SNAPSHOT_ENTRIES = 1_000_000

# All times are nanoseconds of `time.time_ns`, which is also the clock of torch's profiler and memory snapshot.


class Span(NamedTuple):
    """One part of a step. A part may have several."""

    name: str
    start: int
    end: int


class Allocations(NamedTuple):
    """Changes of the allocated memory in order: time, bytes (negative: freed) and address of each."""

    times: NDArray[np.int64]
    changes: NDArray[np.int64]
    addresses: NDArray[np.uint64]

    @classmethod
    def of(cls, events: list[tuple[int, int, int]]) -> Self:
        """From (time, bytes, address) in order."""
        times, changes, addresses = zip(*events, strict=True) if events else ((), (), ())
        return cls(np.array(times, np.int64), np.array(changes, np.int64), np.array(addresses, np.uint64))


class Trace(NamedTuple):
    """Memory during one step: from each time on, `bytes`."""

    spans: list[Span]
    times: NDArray[np.int64]
    bytes: NDArray[np.int64]

    def largest(self, name: str) -> int:
        """Most bytes while a part ran."""
        found = 0
        for span in self.spans:
            if span.name == name:
                first, last = np.searchsorted(self.times, [span.start, span.end], "right")
                found = max(found, int(self.bytes[max(0, first - 1) : max(1, last)].max()))
        return found


def record_spans(step: Callable[[], None], at_boundary: Callable[[], object] = lambda: None) -> list[Span]:
    """The parts of one step in order. at_boundary: called just before every start and end."""
    spans: list[Span] = []

    @contextmanager
    def listener(name: str) -> Iterator[None]:
        at_boundary()
        start = time.time_ns()
        yield
        at_boundary()
        spans.append(Span(name, start, time.time_ns()))

    with listening(listener):
        step()
    return spans


def record_resident(step: Callable[[], None]) -> Trace:
    """The resident set of this process, sampled in a thread every few milliseconds and at every boundary."""
    samples: list[tuple[int, int]] = []
    process, done = psutil.Process(), threading.Event()

    def sample() -> None:
        samples.append((time.time_ns(), process.memory_info().rss))

    def sampling() -> None:
        while not done.wait(SAMPLE_SECONDS):
            sample()

    thread = threading.Thread(target=sampling, daemon=True)
    thread.start()
    try:
        spans = record_spans(step, sample)
    finally:
        done.set()
        thread.join()
    times, sizes = zip(*sorted(samples), strict=True)
    return Trace(spans, np.array(times, np.int64), np.array(sizes, np.int64))


def record_cpu_allocations(step: TrainingStep) -> tuple[list[Span], Allocations]:
    """Of torch's allocator, as its profiler counts them; the gradients that the step frees among them."""
    step.drop_gradients()  # the profiler does not see memory freed that was allocated before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.make_gradients()
        spans = record_spans(step)
    found: list[tuple[int, int, int]] = []
    events = list(profiler.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.name == "[memory]":
            found.append((event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.ptr))
    return spans, Allocations.of(sorted(found))


def record_gpu_allocations(step: TrainingStep, snapshot: Path | None) -> tuple[list[Span], Allocations]:
    """Of torch's caching allocator, from its memory snapshot, which is kept in the file `snapshot`; as on the CPU."""
    step.drop_gradients()
    torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES, stacks="python")
    try:
        step.make_gradients()
        spans = record_spans(step, torch.cuda.synchronize)
        taken = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    if snapshot is not None:
        snapshot.write_bytes(pickle.dumps(taken))
    return spans, snapshot_allocations(taken, torch.cuda.current_device())


def snapshot_allocations(snapshot: dict[str, Any], device: int) -> Allocations:
    """The allocations of a memory snapshot."""
    sign = {"alloc": 1, "free_completed": -1}
    entries = [e for e in snapshot["device_traces"][device] if e["action"] in sign]
    return Allocations.of([(1_000 * e["time_us"], sign[e["action"]] * e["size"], e["addr"]) for e in entries])
