"""A problem of the selective scan as the benchmarks pose it: inputs, the call that is timed, its check, its traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from seq2exp.kernels import selective_scan, set_backend
from seq2exp.kernels.selective_scan import chunked

# Called like `selective_scan`, with `reverse` as keyword argument.
Scan = Callable[..., Tensor]

LIMITS = {"float32": {"forward": 1e-5, "backward": 1e-4}, "bfloat16": {"forward": 1e-2, "backward": 1e-2}}


class Inputs(NamedTuple):
    """u, delta, z, grad (batch, dim, L); A (dim, state); B, C (batch, 1, state, L); D, delta_bias (dim,)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    delta_bias: Tensor
    grad: Tensor


@dataclass(frozen=True)
class Workload:
    """direction: "forward" or "backward". channels_last: u, delta, z, grad lie as (batch, L, dim) in memory."""

    direction: str
    batch: int
    length: int
    dim: int = 256
    state: int = 16
    dtype: str = "float32"
    channels_last: bool = False
    gate: bool = True
    reverse: bool = False

    @property
    def name(self) -> str:
        options = {"channels_last": self.channels_last, "no_gate": not self.gate, "reverse": self.reverse}
        shape = [f"b{self.batch}", f"l{self.length}", f"d{self.dim}", f"n{self.state}"]
        return "_".join([self.direction, *shape, self.dtype, *(name for name, chosen in options.items() if chosen)])

    @property
    def elements(self) -> int:
        """State elements: batch x L x channels x states."""
        return self.batch * self.length * self.dim * self.state

    def inputs(self, device: str, seed: int = 0) -> Inputs:
        """Random, as Mamba has them: step sizes near 1e-3..1e-1, A = -(1..state)."""
        dtype = getattr(torch, self.dtype)
        g = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, device=device, dtype=dtype)

        def signal() -> Tensor:
            if self.channels_last:
                return normal(self.batch, self.length, self.dim).transpose(1, 2)
            return normal(self.batch, self.dim, self.length)

        step = torch.linspace(-6.9, -2.3, self.dim, device=device)
        return Inputs(
            u=signal(),
            delta=signal(),
            A=-torch.arange(1.0, self.state + 1, device=device).repeat(self.dim, 1),
            B=normal(self.batch, 1, self.state, self.length),
            C=normal(self.batch, 1, self.state, self.length),
            D=torch.ones(self.dim, device=device),
            z=signal() if self.gate else None,
            delta_bias=step,
            grad=signal(),
        )

    @property
    def bytes(self) -> int:
        """Every input read once and every output written once; what an implementation saves or sums is not counted."""
        size = getattr(torch, self.dtype).itemsize
        signal = self.batch * self.dim * self.length * size
        inputs = (2 + self.gate) * signal
        inputs += 2 * self.batch * self.state * self.length * size + 4 * self.dim * (self.state + 2)
        return inputs + signal if self.direction == "forward" else 2 * inputs + signal

    @property
    def proof(self) -> str:
        """The tests that must have passed."""
        return self.direction

    def traffic(self, scan: Scan) -> int:
        return self.bytes

    def memory(self, scan: Scan, x: Inputs) -> dict[str, float]:
        """What is kept for a backward: no part of these problems."""
        return {}

    def call(self, scan: Scan, x: Inputs) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed. Forward: () -> (out,). Backward: () -> gradients of the inputs that are there."""
        if self.direction == "forward":

            def forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return (scan(*x[:-1], True, reverse=self.reverse),)

            return forward
        leaves = [None if t is None else t.detach().requires_grad_() for t in x[:-1]]
        present = [t for t in leaves if t is not None]
        out = scan(*leaves, True, reverse=self.reverse)
        return lambda: torch.autograd.grad(out, present, x.grad, retain_graph=True)

    def check(self, got: tuple[Tensor, ...], x: Inputs, exact: dict[str, Tensor] | None = None) -> float:
        """Worst relative RMS error against `exact(x)`, first and last channel. AssertionError over the limit."""
        exact = self.exact(x) if exact is None else exact
        worst = 0.0
        for name, ours in zip(_names(self.direction, x), got, strict=True):
            if name not in exact:
                continue
            pick = _channels(ours, name, self.dim)
            if not torch.isfinite(pick).all():
                raise AssertionError(f"{name} is not finite")
            error = float((pick.double() - exact[name]).norm() / exact[name].norm())
            limit = LIMITS[self.dtype][self.direction]
            if error > limit:
                raise AssertionError(f"{name} is off by {error:.1e} relative RMS, the limit is {limit:.0e}")
            worst = max(worst, error)
        return worst

    def exact(self, x: Inputs) -> dict[str, Tensor]:
        """In float64, first and last channel: output, or gradients but those of B and C, sums over all channels."""
        narrow = {name: None if t is None else _channels(t, name, self.dim).double() for name, t in x._asdict().items()}
        grad = narrow.pop("grad")
        options = (True, self.reverse, None)
        out, _, states = chunked.forward(*narrow.values(), *options)
        if self.direction == "forward":
            return {"out": out}
        grads = chunked.backward(grad, *narrow.values(), *options, states)
        return {name: g for name, g in zip(narrow, grads, strict=True) if g is not None and name not in ("B", "C")}


def backend(name: str) -> Scan:
    """Our op on that backend."""

    def scan(*arguments: object, reverse: bool = False) -> Tensor:
        with set_backend(name):
            return selective_scan(*arguments, reverse=reverse)

    return scan


def _names(direction: str, x: Inputs) -> list[str]:
    if direction == "forward":
        return ["out"]
    return [name for name, t in x._asdict().items() if t is not None and name != "grad"]


def _channels(t: Tensor, name: str, dim: int) -> Tensor:
    """The first and the last channel; all of B and C."""
    if name in ("B", "C"):
        return t
    return t.detach()[:, [0, dim - 1]] if t.dim() == 3 else t.detach()[[0, dim - 1]]
