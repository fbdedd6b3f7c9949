"""The pack as the benchmarks pose it: inputs, forms, the call that is timed, its check, its traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels import Packed, pack_selected, set_backend
from seq2exp.kernels.gather import reference

LIMITS = {"float32": 1e-5, "bfloat16": 1e-2}  # relative RMS

# Called with x and mask.
Form = Callable[[Tensor, Tensor], Packed]


class GatherInputs(NamedTuple):
    """x (batch, L, d), mask (batch, L) of 0 and 1, grad (total, d): of the values."""

    x: Tensor
    mask: Tensor
    grad: Tensor


@dataclass(frozen=True)
class GatherLoad:
    """Forward and backward together, the gradients of x and of the mask.

    share: of the bases that are selected, at random places. The mask is float32.
    """

    share: float
    batch: int
    length: int
    channels: int = 128
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"pack_{self.share:g}_b{self.batch}_l{self.length}_d{self.channels}_{self.dtype}"

    @property
    def elements(self) -> int:
        """Bases."""
        return self.batch * self.length

    @property
    def bytes(self) -> int:
        """Every input read once and every output written once.

        Forward: mask, selected rows of x -> indices, values. Backward: gradient of the values, indices, selected rows
        of x and of the mask -> gradients of x and of the mask, zeros and all.
        """
        row, total = self.channels * getattr(torch, self.dtype).itemsize, int(self.share * self.elements)
        forward = 4 * self.elements + total * (8 + 2 * row)
        return forward + total * (8 + 4 + 2 * row) + self.elements * (row + 4)

    @property
    def proof(self) -> str:
        """The tests that must have passed."""
        return "gather"

    def traffic(self, form: Form) -> int:
        """The same for everybody: the composed form moves more."""
        return self.bytes

    def inputs(self, device: str, seed: int = 0) -> GatherInputs:
        g = torch.Generator(device).manual_seed(seed)
        dtype, size = getattr(torch, self.dtype), (self.batch, self.length)
        x = torch.randn(*size, self.channels, generator=g, device=device, dtype=dtype)
        mask = (torch.rand(size, generator=g, device=device) < self.share).float()
        grad = torch.randn(int(mask.sum()), self.channels, generator=g, device=device, dtype=dtype)
        return GatherInputs(x.requires_grad_(), mask.requires_grad_(), grad)

    def call(self, form: Form, x: GatherInputs) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed: () -> values, indices, cu_seqlens, and the gradients of x and mask."""

        def both() -> tuple[Tensor, ...]:
            out = form(x.x, x.mask)
            return *(t.detach() for t in out), *torch.autograd.grad(out.values, (x.x, x.mask), x.grad)

        return both

    def exact(self, x: GatherInputs) -> dict[str, Tensor]:
        """Of the first row, in float64."""
        row, mask = x.x[:1].detach().double(), x.mask[:1].detach().double()
        indices, cu_seqlens = reference.select(mask, None)
        values = reference.pack_forward(row, mask, indices)
        by_x, by_mask = reference.pack_backward(x.grad[: len(indices)].double(), row, mask, indices)
        return {"values": values, "indices": indices, "cu_seqlens": cu_seqlens, "by_x": by_x, "by_mask": by_mask}

    def check(self, got: tuple[Tensor, ...], x: GatherInputs, exact: dict[str, Tensor] | None = None) -> float:
        """Worst relative RMS error; AssertionError over the limit, or where the selection is another one."""
        exact = self.exact(x) if exact is None else exact
        n = len(exact["indices"])
        parts = {"values": got[0][:n], "indices": got[1][:n], "cu_seqlens": got[2][:2], "by_x": got[3][:1]}
        parts["by_mask"] = got[4][:1]
        if len(got[1]) != len(x.grad):
            raise AssertionError(f"{len(got[1])} bases are selected, not {len(x.grad)}")
        worst = 0.0
        for name, want in exact.items():
            error = float((parts[name].double() - want.double()).norm() / want.double().norm())
            limit = LIMITS[self.dtype] if want.is_floating_point() else 0.0
            if not error <= limit:
                raise AssertionError(f"{name} is off by {error:.1e} relative RMS, the limit is {limit:.0e}")
            worst = max(worst, error)
        return worst

    def memory(self, form: Form, x: GatherInputs) -> dict[str, float]:
        """Nothing beside x, the mask and the indices is kept."""
        return {}


def on_backend(name: str) -> Form:
    """Our op on that backend."""

    def run(x: Tensor, mask: Tensor) -> Packed:
        with set_backend(name):
            return pack_selected(x, mask)

    return run


def composed(x: Tensor, mask: Tensor) -> Packed:
    """The pack as torch.nonzero, an index and a product give it."""
    indices = mask.flatten().nonzero().squeeze(1)
    values = x.flatten(0, 1)[indices] * mask.flatten()[indices, None].to(x.dtype)
    return Packed(values, indices, F.pad((mask != 0).sum(1).cumsum(0), (1, 0)))
