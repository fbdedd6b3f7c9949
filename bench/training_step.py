"""Benchmarks of a whole training step on the CPU: against the published form on our scan and on the torch reference.

`seq2exp bench` measures the same with other settings. The published form saves 120 kB a base, so it is measured on
shorter windows and its figures are extrapolated in proportion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from harness import Contest, benchmark

from seq2exp.benchmark.contest import Result, WrongResult, contest
from seq2exp.benchmark.setting import BenchSetting
from seq2exp.benchmark.step import Cost
from seq2exp.kernels import _extension

LENGTH, D_MODEL, LAYERS, ROUNDS = 200_000, 128, 4, 2
# Bases on which the published form is measured, by its scan.
FROM = {
    "ours": 40_000,
    "chunked": 5_000,
    "reference": 1_000,
}
OTHER = {
    "ours": "published form, our scan", "chunked": "published form, torch scan over chunks",
    "reference": "published form, torch reference scan",
}  # fmt: skip


def setting(scan: str) -> BenchSetting:
    return BenchSetting.of(
        mode="soft", scan=scan, device="cpu", precision="fp32", length=LENGTH, batch=1, reference_length=FROM[scan],
        d_model=D_MODEL, layers=LAYERS, rounds=ROUNDS,
    )  # fmt: skip


@functools.cache
def measured(scan: str) -> Result:
    """For all benchmarks of that scan. AssertionError where the two forms differ."""
    try:
        return contest(setting(scan))
    except WrongResult as error:
        raise AssertionError(error) from error


def figures(scan: str, figure: Callable[[Cost], float]) -> Contest:
    return Contest(
        lambda: figure(measured(scan).ours), lambda: figure(measured(scan).published), lambda: measured(scan)
    )  # fmt: skip


def fastest(cost: Cost) -> float:
    return min(cost.step)


def saved_gigabytes(cost: Cost) -> float:
    return cost.saved / 1e9


def peak_gigabytes(cost: Cost) -> float:
    return cost.peak / 1e9


for _name, _scan, _figure, _unit, _goal in (
    ("step_cpu", "ours", fastest, "seconds a training step", 1.2),
    ("step_cpu_saved", "ours", saved_gigabytes, "GB saved for the backward", 10),
    ("step_cpu_peak", "ours", peak_gigabytes, "GB allocated at the peak", None),
    ("step_cpu_chunked", "chunked", fastest, "seconds a training step", None),
    ("step_cpu_reference", "reference", fastest, "seconds a training step", 20),
):
    benchmark(
        _name, ours="training step", other=OTHER[_scan], goal=_goal, unit=_unit, unavailable=_extension.load,
        setting=f"soft, fp32, batch 1, L {LENGTH:,}, d {D_MODEL}; the other from L {FROM[_scan]:,} in proportion",
    )(functools.partial(figures, _scan, _figure))  # fmt: skip


@benchmark(
    "step_cpu_parts", ours="published form", other="its parts alone, summed", goal=1 / 1.1, unavailable=_extension.load,
    unit="seconds of forward and backward", setting=f"soft, fp32, batch 1, L {FROM['ours']:,}, d {D_MODEL}, our scan",
)  # fmt: skip
def whole_against_parts() -> Contest:
    return Contest(
        lambda: measured("ours").honesty.whole, lambda: sum(measured("ours").honesty.parts.values()),
        lambda: measured("ours"),
    )  # fmt: skip
