"""A training step that can be repeated, its time and its memory.

It needs the model and torch alone, as bench/gpu_build.py takes it to machines that have no more; a step with its data,
as `seq2exp train` takes it, is `seq2exp.profiling.step`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seq2exp.loss import seq2exp_loss
from seq2exp.model import Seq2Exp, Seq2ExpOutput

CLIP = 1.0


class Batch(NamedTuple):
    """sequence (batch, L) uint8, signals (batch, L, 3), gene_features (batch, 9), target (batch,)."""

    sequence: Tensor
    signals: Tensor
    gene_features: Tensor
    target: Tensor


class Step:
    """Forward, loss, backward, clipping and AdamW of a model on one batch.

    The rate is 0: the same work, and every step finds the same model. The mask is drawn anew in the published form, the
    same again in ours. No gradients are left over.
    """

    def __init__(self, model: Seq2Exp, batch: Batch, precision: str) -> None:
        self.model, self.batch, self.precision = model.train(), batch, precision
        self.device = batch.sequence.device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=1e-6, betas=(0.9, 0.95))

    def __call__(self) -> None:
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        with self.autocast():
            return seq2exp_loss(self._outputs(self.batch), self.batch.target)

    def forward(self) -> None:
        """Alone, without gradients."""
        with torch.no_grad(), self.autocast():
            self._outputs(self.batch)

    def evaluate(self) -> Seq2ExpOutput:
        """Of the first window, in evaluation mode."""
        with torch.no_grad():
            return self._evaluated()

    def gradients(self) -> dict[str, Tensor]:
        """Of the first window's loss in evaluation mode, by parameter."""
        seq2exp_loss(self._evaluated(), self.batch.target[:1]).backward()
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def _evaluated(self) -> Seq2ExpOutput:
        self.model.eval()
        with self.autocast():
            out = self._outputs(Batch(*(x[:1] for x in self.batch)))
        self.model.train()
        return out

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _outputs(self, batch: Batch) -> Seq2ExpOutput:
        return self.model(batch.sequence, batch.signals, batch.gene_features, seed=0)


@dataclass
class Cost:
    """What a step of a form costs.

    step, forward: seconds of every round. peak, peak_resident: bytes above what there was before the step, by torch's
    allocator and of the process (None on a GPU, and where it cannot be told). saved: bytes that autograd keeps for the
    backward, parameters not counted. selected: mean of the mask.
    """

    saved: int = 0
    peak: int = 0
    peak_resident: int | None = None
    selected: float = 0.0
    step: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)

    def scaled(self, factor: float) -> Cost:
        """Of a window that many times as long."""
        resident = None if self.peak_resident is None else round(self.peak_resident * factor)
        times = ([seconds * factor for seconds in of] for of in (self.step, self.forward))
        return Cost(round(self.saved * factor), round(self.peak * factor), resident, self.selected, *times)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(step: Step) -> int:
    """Of all storages that autograd keeps for the backward of a step; parameters not counted. Takes the step."""
    parameters = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in parameters:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = step.loss()
    loss.backward()
    step.optimizer.zero_grad(set_to_none=True)
    return sum(storages.values())


def peak_bytes(work: Callable[[], object], device: torch.device) -> tuple[int, int | None]:
    """By how much memory grows at most while `work` runs: torch's allocations, and the resident set of this process
    (None on a GPU, and where the system does not let a process reset its high-water mark)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, None
    before_resident = _reset_resident()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    resident = None if before_resident is None else max(0, _resident("VmHWM") - before_resident)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak, resident


def _reset_resident() -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free but resident would hide growth
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        return None
    return _resident("VmRSS")


def _resident(name: str) -> int:
    """Bytes of this process: now ("VmRSS"), or the most since the mark was reset ("VmHWM")."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024
