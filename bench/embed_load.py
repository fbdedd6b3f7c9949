"""The fused input as the benchmarks pose it: inputs, forms, the call that is timed, its check, traffic and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from layer_cost import saved
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.kernels import embed_bases, set_backend
from seq2exp.kernels.embed import reference
from seq2exp.kernels.embed.bases import Bases, Wanted

TRACKS = 3
LIMITS = {"float32": 1e-4, "bfloat16": 1e-2}  # relative RMS
NAMES = ("out", "table", "signal_weight", "mask")

# Called with the bases and the dtype of the output.
Form = Callable[[Bases, torch.dtype], Tensor]


class EmbedInputs(NamedTuple):
    """grad: of the output."""

    bases: Bases
    grad: Tensor


@dataclass(frozen=True)
class EmbedLoad:
    """Forward and backward together, the gradients of weights and mask. float16 signals, float32 weights and mask.

    kept: the fraction of the bases, at random places, that are computed; 1: all, without indices. dtype: of the output.
    """

    kept: float
    batch: int
    length: int
    channels: int = 128
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"input_{self.kept:g}_b{self.batch}_l{self.length}_d{self.channels}_{self.dtype}"

    @property
    def elements(self) -> int:
        """Bases."""
        return self.batch * self.length

    @property
    def bytes(self) -> int:
        """Every input read once and every output written once.

        Forward: code, signals, mask, index -> row. Backward: the same and the gradient of the row -> that of the mask.
        """
        rows = int(self.kept * self.elements)
        base = 1 + 2 * TRACKS + 4 + (8 if self.kept < 1 else 0)
        return rows * 2 * (base + self.channels * getattr(torch, self.dtype).itemsize) + 4 * self.elements

    @property
    def proof(self) -> str:
        """The tests that must have passed."""
        return "embed"

    def traffic(self, form: Form) -> int:
        """The same for everybody: the composed form moves more."""
        return self.bytes

    def inputs(self, device: str, seed: int = 0) -> EmbedInputs:
        g = torch.Generator(device).manual_seed(seed)
        size, rows = (self.batch, self.length), int(self.kept * self.elements)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, device=device)

        signals = (3 * torch.rand(*size, TRACKS, generator=g, device=device)).half()
        indices = torch.randperm(self.elements, generator=g, device=device)[:rows].sort().values
        bases = Bases(
            torch.randint(0, 5, size, generator=g, device=device, dtype=torch.uint8),
            normal(5, self.channels).requires_grad_(), signals, normal(self.channels, TRACKS).requires_grad_(),
            mask=torch.rand(size, generator=g, device=device).requires_grad_(),
            indices=indices if self.kept < 1 else None,
        )  # fmt: skip
        return EmbedInputs(bases, normal(*bases.out_shape).to(getattr(torch, self.dtype)))

    def call(self, form: Form, x: EmbedInputs) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed: () -> the output and the gradients of table, signal_weight and mask."""
        b = x.bases

        def both() -> tuple[Tensor, ...]:
            out = form(b, x.grad.dtype)
            return out.detach(), *torch.autograd.grad(out, (b.table, b.signal_weight, b.mask), x.grad)

        return both

    def exact(self, x: EmbedInputs) -> dict[str, Tensor]:
        """In float64; output and mask of the first 1,000 rows."""
        b = x.bases
        wide = b._replace(**{name: getattr(b, name).detach().double() for name in ("table", "signal_weight", "mask")})
        indices = torch.arange(self.elements, device=b.codes.device) if b.indices is None else b.indices
        sums = [torch.zeros_like(wide.table), torch.zeros_like(wide.signal_weight)]
        first: dict[str, Tensor] = {}
        for places, grad in zip(indices.split(100_000), x.grad.flatten(0, -2).split(100_000), strict=True):
            some = wide._replace(indices=places)
            grads = reference.backward(grad, some, Wanted(positions=False, mask=True, signals=False))
            sums = [sums[0] + grads.table, sums[1] + grads.signal_weight]
            if not first:
                out = reference.forward(some, torch.float64)[:1_000]
                first = {"out": out, "mask": grads.mask.flatten()[places[:1_000]]}
        return {"table": sums[0], "signal_weight": sums[1], **first}

    def check(self, got: tuple[Tensor, ...], x: EmbedInputs, exact: dict[str, Tensor] | None = None) -> float:
        """Worst relative RMS error; AssertionError over the limit."""
        exact = self.exact(x) if exact is None else exact
        found = dict(zip(NAMES, got, strict=True))
        found["out"] = found["out"].flatten(0, -2)[:1_000]
        places = slice(1_000) if x.bases.indices is None else x.bases.indices[:1_000]
        found["mask"] = found["mask"].flatten()[places]
        worst = 0.0
        for name, want in exact.items():
            error = float((found[name].double() - want).norm() / want.norm())
            if not error <= LIMITS[self.dtype]:
                raise AssertionError(
                    f"{name} is off by {error:.1e} relative RMS, the limit is {LIMITS[self.dtype]:.0e}"
                )
            worst = max(worst, error)
        return worst

    def memory(self, form: Form, x: EmbedInputs) -> dict[str, float]:
        """Per base what is kept for the backward."""
        found = saved(lambda: form(x.bases, x.grad.dtype), x.bases.table, nn.Module())
        return {f"{how}_bytes_per_base": round(n / self.elements, 1) for how, n in found._asdict().items()}


def on_backend(name: str) -> Form:
    """Our op on that backend."""

    def run(b: Bases, dtype: torch.dtype) -> Tensor:
        with set_backend(name):
            return embed_bases(
                b.codes, b.table, signals=b.signals, signal_weight=b.signal_weight, mask=b.mask, indices=b.indices,
                dtype=dtype,
            )  # fmt: skip

    return run


def composed(b: Bases, dtype: torch.dtype) -> Tensor:
    """The input as F.embedding, F.linear, an addition and a product give it; selected bases are gathered first."""
    codes, signals, mask = b.codes, b.signals, b.mask
    assert signals is not None and mask is not None
    if b.indices is not None:
        codes, signals, mask = (t.flatten(0, 1)[b.indices] for t in (codes, signals, mask))
    out = F.embedding(codes.long(), b.table) + F.linear(signals.to(b.table.dtype), b.signal_weight)
    return (out * mask[..., None]).to(dtype)
