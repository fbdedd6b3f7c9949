"""The contest: both forms checked against each other, then measured in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from seq2exp import allocator
from seq2exp.errors import UserError, is_out_of_memory
from seq2exp.model import Seq2ExpOutput
from seq2exp.profiling.isolate import free_memory, gigabytes

from .honesty import LIMIT, Honesty, measure_honesty
from .setting import BenchSetting
from .step import Cost, Step, peak_bytes, saved_bytes, seconds

OUTPUTS = ("expression", "alpha", "beta", "soft_mask", "kl")
# relative RMS errors, in evaluation mode
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
GRADIENT_TOLERANCE = 3e-4
PART_ROUNDS = 3
CHECKED_BASES = 2_000  # of the short window on which gradients are compared and memory is tried out
PEAK_OVER_SAVED = 1.2
COLUMNS = ("figure", "unit", "ours", "published", "ratio")
Row = tuple[str, str, float | None, float | None, float | None]


class WrongResult(Exception):
    """The two forms do not compute the same, so that no figure is worth anything."""


@dataclass(frozen=True)
class Result:
    """errors: relative RMS by output. published: extrapolated where the setting says so."""

    setting: BenchSetting
    errors: dict[str, float]
    ours: Cost
    published: Cost
    honesty: Honesty

    def rows(self) -> list[Row]:
        """COLUMNS; ratio: by how many times ours is better. Of the fastest rounds."""
        bases = self.setting.bases
        ours, published = self.ours, self.published
        found: list[Row] = []
        for name, mine, theirs in (
            ("training step", ours.step, published.step), ("forward alone", ours.forward, published.forward)
        ):  # fmt: skip
            found.append((name, "s", min(mine), min(theirs), min(theirs) / min(mine)))
            found.append((name, "bases/s", bases / min(mine), bases / min(theirs), min(theirs) / min(mine)))
        for name, a, b in (
            ("peak memory, allocated", ours.peak, published.peak),
            ("peak memory, resident", ours.peak_resident, published.peak_resident),
            ("saved for the backward", ours.saved, published.saved),
        ):
            found.append((name, "bytes", a, b, b / a if a and b else None))
        found.append(("saved for the backward", "bytes/base", ours.saved / bases, published.saved / bases, None))
        return found

    def as_json(self) -> dict[str, Any]:
        s, h = self.setting, self.honesty
        pairs = zip(self.published.step, self.ours.step, strict=True)
        return {
            "setting": asdict(s),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if s.device == "cuda" else None,
            "errors": self.errors,
            "published_extrapolated_from": s.reference_length if s.extrapolation != 1 else None,
            "ours": asdict(self.ours),
            "published": asdict(self.published),
            "figures": [dict(zip(COLUMNS, row, strict=True)) for row in self.rows()],
            "step_ratio_of_rounds": [theirs / mine for theirs, mine in pairs],
            "honesty": {
                "whole_seconds": h.whole, "parts_seconds": h.parts, "whole_over_parts": h.ratio, "limit": LIMIT,
                "honest": h.honest,
            },
        }  # fmt: skip


def contest(setting: BenchSetting, say: Callable[[str], None] = lambda _: None) -> Result:
    """Measure. say: told what is going on.

    Raises WrongResult when the forms differ, UserError when memory runs out.
    """
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # or its float32 would not be float32
            return _contest(setting, say)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(setting) from error


def _contest(setting: BenchSetting, say: Callable[[str], None]) -> Result:
    s = setting
    if s.device == "cpu":
        allocator.keep_freed_memory()
    say("checking that both forms give the same")
    errors = check(s)
    _require_memory(s)
    model = s.model(s.reference_length)
    published = Step(s.published(model), s.inputs(s.reference_length), s.precision)
    errors |= difference(Step(model, published.batch, s.precision).evaluate(), published.evaluate(), s.precision)
    if s.extrapolation != 1:
        model = s.model(s.length)
    ours = Step(model, s.inputs(s.length), s.precision)
    costs = {}
    for name, step in (("ours", ours), ("published", published)):
        say(f"memory: {name}")
        costs[name] = memory(step)
    for i in range(s.rounds):
        for name, step in (("published", published), ("ours", ours)):
            say(f"round {i + 1} of {s.rounds}: {name}")
            costs[name].step.append(seconds(step, step.device))
            costs[name].forward.append(seconds(step.forward, step.device))
    say("the parts of the published form alone")
    honesty = measure_honesty(published, PART_ROUNDS)
    return Result(s, errors, costs["ours"], costs["published"].scaled(s.extrapolation), honesty)


def check(setting: BenchSetting) -> dict[str, float]:
    """The gradients of both forms on a short window in float32, where a fault shows best: {"gradients": the worst
    relative RMS error of a parameter's}. Raises WrongResult."""
    length = min(CHECKED_BASES, setting.reference_length)
    model, batch = setting.model(length), setting.inputs(length)
    ours, published = (Step(form, batch, "fp32").gradients() for form in (model, setting.published(model)))
    errors = {name: _relative(ours[name], gradient) for name, gradient in published.items()}
    worst = max(errors, key=errors.__getitem__)
    if ours.keys() != published.keys() or not errors[worst] <= GRADIENT_TOLERANCE:
        raise _wrong(f"the gradient of {worst}", errors[worst], GRADIENT_TOLERANCE)
    return {"gradients": errors[worst]}


def difference(ours: Seq2ExpOutput, published: Seq2ExpOutput, precision: str) -> dict[str, float]:
    """Relative RMS errors of the outputs. Raises WrongResult where one is over the tolerance."""
    errors = {name: _relative(getattr(ours, name), getattr(published, name)) for name in OUTPUTS}
    for name, error in errors.items():
        if not error <= TOLERANCE[precision]:
            raise _wrong(name, error, TOLERANCE[precision])
    return errors


def _wrong(what: str, error: float, limit: float) -> WrongResult:
    return WrongResult(f"no figure: {what} differs between the two forms by {error:.1e}, the limit is {limit:.0e}")


def memory(step: Step) -> Cost:
    """Its bytes; takes two steps, which warm up."""
    saved = saved_bytes(step)
    step()  # makes the optimiser's state
    peak, resident = peak_bytes(step, step.device)
    with torch.no_grad(), step.autocast():
        selected = float(step.model(*step.batch[:3], seed=0).selected_fraction)
    return Cost(saved, peak, resident, selected)


def spread(result: Result) -> str:
    """Of the step's ratio over the rounds."""
    ratios = [a / b for a, b in zip(result.published.step, result.ours.step, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}"


def _require_memory(s: BenchSetting) -> None:
    """UserError where the published form would not fit into a CPU's memory: the system would end the process."""
    if s.device != "cpu" or s.reference_length <= CHECKED_BASES:
        return
    saved = saved_bytes(Step(s.published(s.model(CHECKED_BASES)), s.inputs(CHECKED_BASES), s.precision))
    needed = PEAK_OVER_SAVED * saved / CHECKED_BASES * s.reference_length
    free = free_memory(s.device)
    if needed > free:
        raise UserError(
            f"the published form needs about {gigabytes(needed)} at length {s.reference_length}, batch {s.batch}, "
            f"and {gigabytes(free)} are free: give --reference-length, at most "
            f"{int(s.reference_length * free / needed)}, from which it is extrapolated"
        )


def _relative(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30))


def _too_large(setting: BenchSetting) -> UserError:
    return UserError(
        f"out of memory at length {setting.length}, batch {setting.batch}: lower --length or --batch, or give a "
        f"--reference-length below {setting.reference_length}, from which the published form is extrapolated"
    )
