"""The largest batch, or the longest window, whose training step fits into a budget of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from .isolate import OutOfMemory, check_budget, gigabytes, in_process
from .measure import limit_gpu
from .step import StepSettings, TrainingStep

RESOLUTION = 0.05  # the answer is within this share of the true one
AIM = 0.98  # share of the budget that a trial is predicted to need
GROWTH = 4  # from one trial to the next while nothing can be predicted
JUMP = 16  # the same where it can
FIRST_LENGTH, SHORTEST = 2_000, 100  # bases


class Trial(NamedTuple):
    """A size that was tried; bytes at the peak, None when it did not get that far."""

    size: int
    peak: int | None


@dataclass(frozen=True)
class Search:
    """what: "batch" or "length". largest: 0 when not even 1 fits. trials: in the order in which they ran."""

    what: str
    settings: StepSettings
    budget: int
    largest: int
    trials: list[Trial]

    def sentence(self) -> str:
        """The answer in one line."""
        s, fixed = self.settings, f"batch {self.settings.batch}"
        if self.what == "batch":
            fixed = f"windows of {s.config.length:,} bases"
        if self.largest == 0:
            return f"{s.form}: no {self.what} fits into {gigabytes(self.budget)} with {fixed}"
        peak = next(trial.peak for trial in self.trials if trial.size == self.largest)
        found = f"largest {self.what} with {fixed}: {self.largest:,}"
        return f"{s.form}: {found} ({gigabytes(peak or 0)} of {gigabytes(self.budget)})"


def search_batch(settings: StepSettings, budget: int | None = None, failed: int | None = None) -> Search:
    """The largest batch for windows of `settings.config.length` bases; `settings.batch` is not looked at.

    Every trial is one training step in a process of its own. budget: bytes, of the GPU or of the resident set of the
    process; None: all that is free. failed: a batch known not to fit. Raises UserError when the budget is not there.
    """
    return _search("batch", settings, lambda batch: replace(settings, batch=batch), budget, 1, 1, failed)


def search_length(settings: StepSettings, budget: int | None = None) -> Search:
    """The longest window at a batch of `settings.batch`, as in `search_batch`; the centre is a hundredth of it."""
    return _search("length", settings, lambda length: with_length(settings, length), budget, FIRST_LENGTH, SHORTEST)


def largest_batch(settings: StepSettings, budget: int | None = None, failed: int | None = None) -> int:
    """The answer of `search_batch`, 0 when not even one window fits."""
    return search_batch(settings, budget, failed).largest


def with_length(settings: StepSettings, length: int) -> StepSettings:
    """The same with another window; the centre is a hundredth of it, as in the paper."""
    return replace(settings, config=settings.config.replace(length=length, center=max(1, length // 100)))


def largest_size(
    measure: Callable[[int], int | None], budget: int, first: int, failed: int | None = None, smallest: int = 1
) -> tuple[int, list[Trial]]:
    """The largest size whose memory is within the budget, to 5 %, and what was tried.

    Memory is taken to grow linearly in the size: the two largest sizes that fitted say which to try next.

    Args:
        measure: bytes that a size needs, None when it does not fit.
        first: the size to start from. failed: one known not to fit. smallest: below that nothing is tried.
    """
    trials: list[Trial] = []
    fitted: list[Trial] = []
    size: int | None = first
    while size is not None:
        trial = Trial(size, measure(size))
        trials.append(trial)
        if trial.peak is None or trial.peak > budget:
            failed = size
        else:
            fitted = sorted([*fitted, trial], key=lambda t: t.size)
        size = _next_size(fitted, failed, budget, smallest)
    return fitted[-1].size if fitted else 0, trials


def _next_size(fitted: list[Trial], failed: int | None, budget: int, smallest: int) -> int | None:
    """The size to try next, None when the answer is known. fitted: in ascending order."""
    largest = fitted[-1] if fitted else Trial(0, 0)
    step = max(smallest, int(RESOLUTION * largest.size))
    if failed is not None and failed - largest.size <= step:
        return None
    slope = _slope(fitted)
    if slope <= 0:  # nothing can be predicted yet
        size = largest.size * GROWTH if fitted else max(smallest, (failed or 0) // GROWTH)
    elif _peak(largest) + slope * step > budget:
        return None
    else:
        more = int((AIM * budget - _peak(largest)) / slope)
        size = min(largest.size + max(step, more), largest.size * JUMP)
    if failed is not None and size >= failed:
        size = (largest.size + failed) // 2
    size = max(size, largest.size + 1)
    unit = 10 ** max(0, len(str(size)) - 3)
    return max(size // unit * unit, largest.size + 1)


def _slope(fitted: list[Trial]) -> float:
    """Bytes for one more: between the largest and the one at half of it or less, so that noise matters little."""
    if len(fitted) < 2:
        return 0.0
    largest = fitted[-1]
    smaller = next((trial for trial in reversed(fitted) if 2 * trial.size <= largest.size), fitted[0])
    return (_peak(largest) - _peak(smaller)) / (largest.size - smaller.size)


def _peak(trial: Trial) -> int:
    return trial.peak or 0


def _search(
    what: str, settings: StepSettings, sized: Callable[[int], StepSettings], budget: int | None, first: int,
    smallest: int, failed: int | None = None,
) -> Search:  # fmt: skip
    budget = check_budget(budget, settings.device)
    on_gpu = settings.device == "cuda"

    def measure(size: int) -> int | None:
        try:
            answer = in_process(take_one_step, sized(size), budget, limit=None if on_gpu else budget)
        except OutOfMemory:
            return None
        return answer.value if on_gpu else answer.resident

    largest, trials = largest_size(measure, budget, first, failed, smallest)
    return Search(what, settings, budget, largest, trials)


def take_one_step(settings: StepSettings, limit: int) -> int:
    """One training step in this process; the bytes that torch took of the GPU, 0 on the CPU."""
    limit_gpu(settings, limit)
    TrainingStep(settings)()
    return torch.cuda.max_memory_reserved() if settings.device == "cuda" else 0
