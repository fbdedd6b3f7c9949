"""The mask as the benchmarks pose it: inputs, forms, the call that is timed, its check, its traffic and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from layer_cost import saved
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.baselines.published_mask import published_mask
from seq2exp.kernels import BetaMask, beta_mask, set_backend
from seq2exp.kernels.beta_mask import reference
from seq2exp.kernels.beta_mask.settings import MARK_OPEN, Saved, Settings, centre_slice

WEIGHTS, BETAS = (0.4, 0.4, 0.2), (1.5, 0.2, 1.0)
CENTER = 2_000
SOFT = dict(beta_min=1.0, signal_scale=10.0, prior_mean=0.1, prior_scale=10.0)
HARD = dict(beta_min=0.0, signal_scale=1.0, prior_mean=0.45, prior_scale=0.1, hard=True)
# the published settings, sampled; "top": those of soft in evaluation, where the largest 10 % of the means are selected
KINDS: dict[str, dict[str, Any]] = {
    "soft": dict(sample=True, **SOFT),
    "hard": dict(sample=True, **HARD),
    "top": dict(sample=False, hard=True, top_fraction=0.1, **SOFT),
}
LIMIT = 1e-3  # relative RMS of concentrations, KL and gradients; torch's own gradient of a sample is off by up to that
TIES = 1e-4  # of the bases may be selected otherwise: torch.topk does not say which of equal means it takes
SPREAD = 6  # standard errors by which the mean of a sample may be off

# Called with seq_logits, signals, weights, betas and the settings.
Form = Callable[..., BetaMask]


class MaskInputs(NamedTuple):
    """logits (batch, L, 2), signals (batch, L, 3), weights, betas (3,), grad (batch, L); of_scalars: gradient of kl and
    of continuity."""

    logits: Tensor
    signals: Tensor
    weights: Tensor
    betas: Tensor
    grad: Tensor
    of_scalars: Tensor


@dataclass(frozen=True)
class MaskLoad:
    """kind: of KINDS. Forward and backward together, the gradient to the logits; of "top" the forward alone."""

    kind: str
    batch: int
    length: int

    @property
    def name(self) -> str:
        return f"mask_{self.kind}_b{self.batch}_l{self.length}_float32"

    @property
    def elements(self) -> int:
        """Bases."""
        return self.batch * self.length

    @property
    def options(self) -> dict[str, Any]:
        return KINDS[self.kind] | {"center": min(CENTER, self.length // 4)}

    @property
    def settings(self) -> Settings:
        defaults = dict(z_scale=1.0, hard=False, threshold=0.5, top_fraction=None, smooth=1, rule="sum", seed=0)
        return Settings(**defaults | self.options)

    @property
    def bytes(self) -> int:
        """Every input read once and every output written once, what is kept for the backward among them.

        Forward: 5 inputs -> mask, soft mask, alpha, beta, mark, of a sample its logit. Backward: grad, alpha, beta,
        logit, mark, 2 seq_logits -> 2 gradients.
        """
        forward = 5 * 4 + 4 * 4 + 1
        return self.elements * (forward if self.kind == "top" else forward + 4 + (4 * 4 + 1 + 2 * 4 + 2 * 4))

    @property
    def proof(self) -> str:
        """The tests that must have passed."""
        return "mask"

    def traffic(self, form: Form) -> int:
        """The same for everybody: the composed form moves more."""
        return self.bytes

    def inputs(self, device: str, seed: int = 0) -> MaskInputs:
        g = torch.Generator(device).manual_seed(seed)
        size = (self.batch, self.length)
        return MaskInputs(
            torch.randn(*size, 2, generator=g, device=device).requires_grad_(self.kind != "top"),
            3 * torch.rand(*size, 3, generator=g, device=device),
            *(torch.tensor(x, device=device) for x in (WEIGHTS, BETAS)),
            torch.rand(size, generator=g, device=device), torch.tensor(0.01, device=device),
        )  # fmt: skip

    def call(self, form: Form, x: MaskInputs) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed: () -> the outputs and the gradient of the logits, if there is one."""

        def forward() -> tuple[Tensor, ...]:
            return form(*x[:4], **self.options)

        def both() -> tuple[Tensor, ...]:
            out = form(*x[:4], **self.options)
            grads = (x.grad, x.of_scalars, x.of_scalars)
            (by_logits,) = torch.autograd.grad((out.mask, out.kl, out.continuity), x.logits, grads)
            return *(t.detach() for t in out), by_logits

        return forward if self.kind == "top" else both

    def exact(self, x: MaskInputs) -> dict[str, Tensor]:
        """Concentrations and KL in float64."""
        given = (t.detach().double() for t in x[:4])
        alpha, beta = reference.concentrations(*given, self.settings)
        return {"alpha": alpha, "beta": beta, "kl": reference.beta_kl(alpha, beta, self.settings).mean()}

    def check(self, got: tuple[Tensor, ...], x: MaskInputs, exact: dict[str, Tensor] | None = None) -> float:
        """Worst relative RMS error of concentrations, KL and gradient. AssertionError over the limit, also where the
        mean of the sample is not that of the Beta, or the mask does not follow from the soft one."""
        exact = self.exact(x) if exact is None else exact
        out = BetaMask(*got[:6])
        pairs = {name: (getattr(out, name), want) for name, want in exact.items()}
        if self.kind != "top":
            self._check_mean(out.soft_mask, exact["alpha"], exact["beta"])
            pairs["gradient"] = got[6][:1], self._gradient(out, x)
        expected = reference.select(out.soft_mask, out.soft_mask, self.settings).float()
        expected = expected if self.settings.hard else out.soft_mask.clone()
        expected[:, centre_slice(self.length, self.settings.center)] = 1
        others = int(((out.mask - expected).abs() > 1e-6).sum())
        if others > TIES * self.elements:
            raise AssertionError(f"the mask is another one at {others} bases")
        steps = expected.double().diff(dim=1).abs().sum(1).mean() / (self.length + 1)
        pairs["continuity"] = out.continuity, steps
        worst = 0.0
        for name, (ours, want) in pairs.items():
            error = float((ours.double() - want).norm() / want.norm())
            if not error <= LIMIT:
                raise AssertionError(f"{name} is off by {error:.1e} relative RMS, the limit is {LIMIT:.0e}")
            worst = max(worst, error)
        return worst

    def _check_mean(self, soft: Tensor, alpha: Tensor, beta: Tensor) -> None:
        n = alpha + beta
        error = float((soft.double() - alpha / n).sum() / (alpha * beta / (n * n * (n + 1))).sum().sqrt())
        if not abs(error) < SPREAD:
            raise AssertionError(f"the mean of the sample is off by {error:.1f} standard errors")

    def _gradient(self, out: BetaMask, x: MaskInputs) -> Tensor:
        """Of the first row's logits, in float64, at the form's own draw."""
        alpha, beta, mask, soft = (t[:1].double() for t in (out.alpha, out.beta, out.mask, out.soft_mask))
        step = F.pad(mask.diff(dim=1).sign(), (1, 0))
        open_ = torch.ones_like(mask)
        open_[:, centre_slice(self.length, self.settings.center)] = 0
        kept = Saved(alpha, beta, torch.logit(soft), (MARK_OPEN * open_ + 2 * (1 + step)).to(torch.uint8))
        # a row's share of the means over the batch
        grads = BetaMask(x.grad[:1], None, None, None, *2 * [x.of_scalars.double() / self.batch])
        given = (t.detach().double() for t in (x.logits[:1], x.signals[:1], x.weights, x.betas))
        (by_logits,) = reference.backward(grads, *given, kept, self.settings, False, False)
        return by_logits

    def memory(self, form: Form, x: MaskInputs) -> dict[str, float]:
        """Per base what is kept for the backward."""
        if self.kind == "top":
            return {}
        found = saved(lambda: form(*x[:4], **self.options).mask, x.logits, nn.Module())
        return {f"{how}_bytes_per_base": round(n / self.elements, 1) for how, n in found._asdict().items()}


def on_backend(name: str) -> Form:
    """Our op on that backend."""

    def run(logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, **options: Any) -> BetaMask:
        with set_backend(name):
            return beta_mask(logits, signals, signal_weights=weights, signal_betas=betas, **options)

    return run


def composed(logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, **options: Any) -> BetaMask:
    """The mask as torch.distributions and torch.topk give it."""
    return published_mask(logits, signals, signal_weights=weights, signal_betas=betas, **options)
