"""Whether the published form hides a cost: its time against the sum of its parts, each measured alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from seq2exp.baselines.published import PublishedForm
from seq2exp.baselines.published_layer import call

from .step import Step, seconds

LIMIT = 1.1  # the whole takes at most that many times the sum of its parts
SUMS = "sums of gradients"


@dataclass(frozen=True)
class Honesty:
    """Seconds of forward, loss and backward: whole, and of each part by its name."""

    whole: float
    parts: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.whole / sum(self.parts.values())

    @property
    def honest(self) -> bool:
        return self.ratio <= LIMIT


def measure_honesty(step: Step, rounds: int) -> Honesty:
    """The fastest of the rounds, of the whole and of each part. The step's model must be a `PublishedForm`."""
    form = step.model
    assert isinstance(form, PublishedForm)

    def whole() -> None:
        step.loss().backward()
        step.optimizer.zero_grad(set_to_none=True)

    whole()
    fastest = min(seconds(whole, step.device) for _ in range(rounds))
    clock = _Clock(step, rounds)
    form.run = clock
    try:
        with clock.autocast():
            form(*step.batch[:3])
    finally:
        form.run = call
    return Honesty(fastest, dict(clock.seconds))


class _Clock:
    """Calls a step of the form, and times it alone, forward and backward, on the inputs that it has there.

    Its outputs go on without their graph, so that only one part is in memory at a time. Where an input has been read
    before, the backward of the whole adds two gradients: that is a part as well.
    """

    def __init__(self, step: Step, rounds: int) -> None:
        self.device, self.precision, self.rounds = step.device, step.precision, rounds
        self.seconds: dict[str, float] = defaultdict(float)
        self._read = WeakTensorKeyDictionary()

    def __call__(self, part: Callable[..., Any], *inputs: Any) -> Any:
        for x in inputs:
            if isinstance(x, Tensor) and x.requires_grad:
                if x in self._read:
                    self._time(SUMS, partial(torch.add, x.detach(), x.detach()))
                self._read[x] = True
        inputs = tuple(_leaf(x) for x in inputs)
        leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        outputs = part(*inputs)
        gradients = [torch.randn_like(y) for y in _ends(outputs)]

        def alone() -> None:
            with self.autocast():
                ends = _ends(part(*inputs))
            if ends:
                with self.autocast(enabled=False):
                    torch.autograd.grad(ends, leaves, gradients, allow_unused=True)

        self._time(part.__name__.strip("_").replace("_", " "), alone)
        if isinstance(outputs, Tensor):
            return _leaf(outputs)
        kept = map(_leaf, outputs)
        return type(outputs)(*kept) if hasattr(outputs, "_fields") else tuple(kept)

    def autocast(self, enabled: bool = True) -> AbstractContextManager[Any]:
        """Without the cache of cast weights, whose graph would not outlive the first backward."""
        enabled = enabled and self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _time(self, name: str, work: Callable[[], object]) -> None:
        self.seconds[name] += min(seconds(work, self.device) for _ in range(self.rounds))


def _leaf(x: Any) -> Any:
    return x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def _ends(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """What the backward starts from."""
    return [y for y in ((outputs,) if isinstance(outputs, Tensor) else outputs) if y.requires_grad]
