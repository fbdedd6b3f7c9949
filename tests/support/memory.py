"""Memory of torch tensors on the CPU, counted from every allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Memory(NamedTuple):
    """Bytes above what there was before: live between forward and backward, and the largest at any time."""

    live: int
    peak: int


def memory(forward: Callable[[], object], backward: Callable[[object], object] = lambda _: None) -> Memory:
    """Of backward(forward()), in a second run. Nothing may be left over afterwards."""

    def run() -> None:
        backward(forward())

    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = forward()
        with torch.profiler.record_function("between forward and backward"):
            pass
        backward(result)
        del result
    events = sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    total = peak = live = 0
    for event in events:
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
        elif event.name() == "between forward and backward":
            live = total
    assert total == 0, "more was allocated than freed"
    return Memory(live, peak)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of the storages that autograd saves during `forward`, parameters and other leaves not counted."""
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not (x.is_leaf and x.requires_grad):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = forward()
    del result
    return sum(storages.values())
