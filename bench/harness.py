"""Side-by-side measurement: what a benchmark is, the registry, time and memory of two callables in one process."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Contest:
    """Two ways to do the same work, or one. `check` raises AssertionError when the results of `ours` are wrong.

    traffic: bytes of all inputs and outputs, where GB/s say something.
    samples: how many each side reads, where samples per second say something.
    """

    ours: Callable[[], object]
    other: Callable[[], object] | None
    check: Callable[[], object]
    traffic: int | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """`other` takes `goal` times as long as `ours`, or more; with a `unit`, returns `goal` times as many of those."""

    name: str
    ours: str
    other: str
    setting: str
    goal: float | None
    rounds: int
    prepare: Callable[[], Contest]
    unavailable: Callable[[], str | None]
    unit: str | None


@dataclass(frozen=True)
class Cost:
    """Seconds of the fastest call, and by how many bytes memory grew at most (None where that cannot be told)."""

    seconds: float
    peak: int | None


@dataclass(frozen=True)
class Result:
    """Ratios time(other) / time(ours): of the fastest rounds, and the extremes over single rounds.

    The fastest round is the one least disturbed by other programs. No ratio when something stood in the way.
    With a unit: the ratio of what both returned, `amounts`, ours first.
    """

    name: str
    note: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    ours: Cost | None = None
    other: Cost | None = None
    traffic: int | None = None
    amounts: tuple[float, float] | None = None
    samples: int | None = None

    def met(self, goal: float | None) -> bool:
        if self.ours is None and self.amounts is None:
            return False
        return goal is None or (self.ratio is not None and self.ratio >= goal)


REGISTRY: dict[str, Benchmark] = {}


def benchmark(
    name: str, *, ours: str, other: str, setting: str, goal: float | None = None, rounds: int = 10,
    unavailable: Callable[[], str | None] = lambda: None, unit: str | None = None,
) -> Callable[[Callable[[], Contest]], Callable[[], Contest]]:  # fmt: skip
    """Registers the decorated function, which prepares the contest."""

    def register(prepare: Callable[[], Contest]) -> Callable[[], Contest]:
        REGISTRY[name] = Benchmark(name, ours, other, setting, goal, rounds, prepare, unavailable, unit)
        return prepare

    return register


def measure(bench: Benchmark) -> Result:
    """Checks first: a kernel that is wrong gets no figure. Then alternates the two sides, after one warm-up each."""
    if reason := bench.unavailable():
        return Result(bench.name, f"not run: {reason}")
    contest = bench.prepare()
    try:
        contest.check()
    except AssertionError as error:
        return Result(bench.name, f"WRONG, no figure: {error}")
    if bench.unit:
        return count(bench.name, contest)
    other_peak = peak_memory(contest.other) if contest.other else None
    peak = peak_memory(contest.ours)
    others, ours = [], []
    for _ in range(bench.rounds):
        if contest.other:
            others.append(_seconds(contest.other))
        ours.append(_seconds(contest.ours))
    cost = Cost(min(ours), peak)
    if not contest.other:
        return Result(bench.name, ours=cost, traffic=contest.traffic)
    ratios = [a / b for a, b in zip(others, ours, strict=True)]
    return Result(
        bench.name, "", min(others) / min(ours), min(ratios), max(ratios), cost, Cost(min(others), other_peak),
        contest.traffic, samples=contest.samples,
    )  # fmt: skip


def count(name: str, contest: Contest) -> Result:
    assert contest.other
    ours, other = float(contest.ours()), float(contest.other())  # type: ignore[arg-type]
    ratio = other / ours
    return Result(name, "", ratio, ratio, ratio, amounts=(ours, other))


def peak_memory(work: Callable[[], object]) -> int | None:
    """Bytes by which the resident set of this process grows at most while `work` runs, results included.

    None where Linux does not let a process reset its own high-water mark.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free but resident would hide growth
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        work()
        return None
    before = resident("VmRSS")
    work()
    return max(0, resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes of this process: now ("VmRSS"), or the most since the mark was reset ("VmHWM")."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _seconds(work: Callable[[], object]) -> float:
    """The fastest call of those that fit into 0.3 s, or of the one that does not."""
    fastest, stop = math.inf, time.perf_counter() + 0.3
    while time.perf_counter() < stop:
        start = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
