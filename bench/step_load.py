"""A whole training step as `make gpu` poses it: models, input, the call that is timed, its check, its memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seq2exp.baselines.published import PublishedForm
from seq2exp.benchmark.step import Batch, Step, saved_bytes
from seq2exp.config import Seq2ExpConfig
from seq2exp.kernels import set_backend
from seq2exp.model import Seq2Exp

# relative RMS, bfloat16 against the published form in float32; of a parameter's gradient the published form itself is
# off by up to 4e-2
LIMIT, GRADIENT_LIMIT = 5e-2, 1.5e-1


class StepInputs(NamedTuple):
    model: Seq2Exp
    batch: Batch


class StepForm(NamedTuple):
    """make: what is trained instead of our model. backend: of our ops in it."""

    make: Callable[[Seq2Exp], Seq2Exp]
    backend: str

    def chosen(self) -> AbstractContextManager[None]:
        return set_backend(self.backend)


def on_backend(name: str) -> StepForm:
    return StepForm(lambda model: model, name)


def published(scan: str) -> StepForm:
    """The published form; a scan of ours runs on the fastest backend."""
    return StepForm(lambda model: PublishedForm(model, scan), "auto")


@dataclass(frozen=True)
class StepLoad:
    """mode: "soft" or "hard", the paper's, without the task gradient that published hard code lacks."""

    mode: str
    batch: int
    length: int
    d_model: int = 128
    layers: int = 4
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"step_{self.mode}_b{self.batch}_l{self.length}_d{self.d_model}_{self.dtype}"

    @property
    def elements(self) -> int:
        """Bases."""
        return self.batch * self.length

    @property
    def bytes(self) -> int:
        """A lower bound: every layer reads and writes the residual stream in forward and backward."""
        return self.elements * 2 * self.layers * 4 * self.d_model * getattr(torch, self.dtype).itemsize

    @property
    def proof(self) -> str:
        """The tests that must have passed."""
        return "layer"

    @property
    def precision(self) -> str:
        return "bf16" if self.dtype == "bfloat16" else "fp32"

    def traffic(self, form: StepForm) -> int:
        return self.bytes

    def inputs(self, device: str, seed: int = 0) -> StepInputs:
        make = {"soft": Seq2ExpConfig.soft, "hard": Seq2ExpConfig.hard}[self.mode]
        config = make(
            length=self.length, center=max(1, self.length // 100), d_model=self.d_model, task_gradient=False,
            generator_layers=self.layers, predictor_layers=self.layers,
        )  # fmt: skip
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = Seq2Exp(config)
            batch = Batch(
                torch.randint(0, 4, (self.batch, self.length), dtype=torch.uint8),
                3 * torch.rand(self.batch, self.length, config.tracks) ** 6,  # most are low
                torch.rand(self.batch, config.gene_features),
                torch.rand(self.batch),
            )
        return StepInputs(model.to(device), Batch(*(x.to(device) for x in batch)))

    def call(self, form: StepForm, x: StepInputs) -> Callable[[], tuple[StepForm, Step]]:
        """What is timed: () -> what the check needs."""
        step = Step(form.make(x.model), x.batch, self.precision)

        def run() -> tuple[StepForm, Step]:
            with form.chosen():
                step()
            return form, step

        return run

    def exact(self, x: StepInputs) -> dict[str, Tensor]:
        """Of the first window, in evaluation mode, of the published form in float32."""
        return evaluated(Step(PublishedForm(x.model), Batch(*(t[:1] for t in x.batch)), "fp32"))

    def check(self, got: tuple[StepForm, Step], x: StepInputs, exact: dict[str, Tensor] | None = None) -> float:
        """Worst relative RMS error of expression and gradients. AssertionError over the limit."""
        form, step = got
        exact = self.exact(x) if exact is None else exact
        with form.chosen():
            found = evaluated(step)
        assert found.keys() == exact.keys(), "gradients of other parameters"
        worst = 0.0
        for name, want in exact.items():
            error = float((found[name].double() - want.double()).norm() / want.double().norm())
            limit = LIMIT if name == "expression" else GRADIENT_LIMIT
            if not error <= limit:
                raise AssertionError(f"{name} is off by {error:.1e} relative RMS, the limit is {limit:g}")
            worst = max(worst, error)
        return worst

    def memory(self, form: StepForm, x: StepInputs) -> dict[str, Any]:
        """Per base what autograd keeps for the backward."""
        with form.chosen():
            saved = saved_bytes(Step(form.make(x.model), x.batch, self.precision))
        return {"hooks_bytes_per_base": round(saved / self.elements, 1)}


def evaluated(step: Step) -> dict[str, Tensor]:
    """Expression of the first window, and the gradients of its loss by parameter."""
    return {"expression": step.evaluate().expression} | step.gradients()
