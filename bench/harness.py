"""Side-by-side measurement: what a benchmark is, the registry, and the ratio of two callables in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Contest:
    """Two ways to do the same work. `check` raises AssertionError when the results of `ours` are wrong."""

    ours: Callable[[], object]
    other: Callable[[], object]
    check: Callable[[], None]


@dataclass(frozen=True)
class Benchmark:
    """`other` takes `goal` times as long as `ours`, or more."""

    name: str
    ours: str
    other: str
    setting: str
    goal: float | None
    rounds: int
    prepare: Callable[[], Contest]
    unavailable: Callable[[], str | None]


@dataclass(frozen=True)
class Result:
    """Ratios time(other) / time(ours): of the fastest rounds, and the extremes over single rounds.

    The fastest round is the one least disturbed by other programs. No ratio when something stood in the way.
    """

    name: str
    ratio: float | None
    low: float | None
    high: float | None
    note: str

    def met(self, goal: float | None) -> bool:
        return self.ratio is not None and (goal is None or self.ratio >= goal)


REGISTRY: dict[str, Benchmark] = {}


def benchmark(
    name: str, *, ours: str, other: str, setting: str, goal: float | None = None, rounds: int = 10,
    unavailable: Callable[[], str | None] = lambda: None,
) -> Callable[[Callable[[], Contest]], Callable[[], Contest]]:  # fmt: skip
    """Registers the decorated function, which prepares the contest."""

    def register(prepare: Callable[[], Contest]) -> Callable[[], Contest]:
        REGISTRY[name] = Benchmark(name, ours, other, setting, goal, rounds, prepare, unavailable)
        return prepare

    return register


def measure(bench: Benchmark) -> Result:
    """Checks first: a kernel that is wrong gets no figure. Then alternates the two sides, after one warm-up each."""
    if reason := bench.unavailable():
        return Result(bench.name, None, None, None, f"not run: {reason}")
    contest = bench.prepare()
    try:
        contest.check()
    except AssertionError as error:
        return Result(bench.name, None, None, None, f"WRONG, no figure: {error}")
    contest.other()
    contest.ours()
    other, ours = zip(*((_seconds(contest.other), _seconds(contest.ours)) for _ in range(bench.rounds)), strict=True)
    ratios = [a / b for a, b in zip(other, ours, strict=True)]
    return Result(bench.name, min(other) / min(ours), min(ratios), max(ratios), "")


def _seconds(work: Callable[[], object]) -> float:
    """The fastest call of those that fit into 0.3 s, or of the one that does not."""
    fastest, stop = math.inf, time.perf_counter() + 0.3
    while time.perf_counter() < stop:
        start = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
