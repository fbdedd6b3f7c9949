"""The bidirectional layer as the benchmarks pose it: inputs, forms, the call that is timed, its check, its memory."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import published_layer as published
import torch
from layer_cost import Saved, Widths, moved, saved
from torch import Tensor

from seq2exp.backbone import CaduceusBackbone, published_layout
from seq2exp.kernels import bimamba, set_backend

# relative RMS; in bfloat16 the published form itself is off by 0.5e-2 and, in the worst of the gradients, 1.2e-2
LIMITS = {"float32": {"forward": 1e-5, "both": 1e-4}, "bfloat16": {"forward": 1e-2, "both": 2e-2}}
EXACT = 20_000  # positions of all batches up to which the check is done in float64


class Form(NamedTuple):
    """A way to compute the layer: run(shape, backbone, x). published: strands are (batch, L, 2 d), not
    (2, batch, L, d)."""

    run: Callable[[str, CaduceusBackbone, Tensor], Tensor]
    published: bool


class LayerInputs(NamedTuple):
    """x, grad: (batch, L, d); of the equivariant layer (2, batch, L, d)."""

    x: Tensor
    backbone: CaduceusBackbone  # one layer
    grad: Tensor


@dataclass(frozen=True)
class LayerLoad:
    """shape: "mixer" (bimamba alone), "layer" (a backbone of one layer: norm, mixer, sum, norm) or "equivariant" (that
    on both strands). direction: "forward", without gradients, or "both": forward and backward.

    bfloat16 is autocast, with float32 weights and signals that arrive in bfloat16.
    """

    shape: str
    direction: str
    batch: int
    length: int
    d_model: int = 128
    state: int = 16
    dtype: str = "float32"

    @property
    def name(self) -> str:
        size = [f"b{self.batch}", f"l{self.length}", f"d{self.d_model}", f"n{self.state}"]
        return "_".join([self.shape, self.direction, *size, self.dtype])

    @property
    def strands(self) -> int:
        return 2 if self.shape == "equivariant" else 1

    @property
    def elements(self) -> int:
        """State elements of both directions."""
        return 2 * self.bases * 2 * self.d_model * self.state

    @property
    def bases(self) -> int:
        """Signals of one channel: batch x L, on both strands where the layer is equivariant."""
        return self.strands * self.batch * self.length

    def moved(self, published: bool) -> int:
        """Bytes; see `layer_cost.moved`."""
        widths = Widths(self.d_model, 2 * self.d_model, -(-self.d_model // 16), self.state)
        values = moved(widths, self.shape, self.direction, published)
        return values * self.bases * getattr(torch, self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """That our form moves."""
        return self.moved(published=False)

    def traffic(self, form: Form) -> int:
        return self.moved(form.published)

    @property
    def proof(self) -> str:
        """The tests that must have passed."""
        return "layer"

    def inputs(self, device: str, seed: int = 0) -> LayerInputs:
        dtype = getattr(torch, self.dtype)
        g = torch.Generator(device).manual_seed(seed)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            backbone = CaduceusBackbone(
                self.d_model, 1, d_state=self.state, rc_equivariant=self.shape == "equivariant"
            )  # fmt: skip
        size = [self.batch, self.length, self.d_model]
        if self.strands == 2:
            size.insert(0, 2)
        x, grad = (torch.randn(size, generator=g, device=device, dtype=dtype) for _ in range(2))
        return LayerInputs(x, backbone.to(device), grad)

    def call(self, form: Form, x: LayerInputs) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed. Forward: () -> (out,). Both: () -> out and the gradients of x and of all weights."""
        signal, grad = (self._laid_out(form, t) for t in (x.x, x.grad))
        if self.direction == "forward":

            def forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return (self._run(form, x.backbone, signal),)

            return forward
        leaves = [signal.requires_grad_(), *self._weights(x.backbone).values()]

        def both() -> tuple[Tensor, ...]:
            out = self._run(form, x.backbone, signal)
            return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))

        return both

    def _run(self, form: Form, backbone: CaduceusBackbone, x: Tensor) -> Tensor:
        with self._autocast(x.device.type):
            return form.run(self.shape, backbone, x)

    def _autocast(self, device: str) -> contextlib.AbstractContextManager:
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device, getattr(torch, self.dtype))

    def _laid_out(self, form: Form, x: Tensor) -> Tensor:
        x = x.detach()
        return published_layout(x) if form.published and self.strands == 2 else x.clone()

    def _weights(self, backbone: CaduceusBackbone) -> dict[str, Tensor]:
        """Those that the form uses: a mixer has no norms."""
        return {n: p for n, p in backbone.named_parameters() if self.shape != "mixer" or ".mixer." in n}

    def check(self, got: tuple[Tensor, ...], x: LayerInputs, exact: dict[str, Tensor] | None = None) -> float:
        """Worst relative RMS error against `exact(x)`. AssertionError over the limit."""
        exact = self.exact(x) if exact is None else exact
        worst = 0.0
        limit = LIMITS[self.dtype][self.direction]
        for (name, want), ours in zip(exact.items(), got, strict=True):
            ours = self._strands_first(ours) if name in ("out", "x") else ours
            if not torch.isfinite(ours).all():
                raise AssertionError(f"{name} is not finite")
            error = float((ours - want).norm() / want.norm())
            if error > limit:
                raise AssertionError(f"{name} is off by {error:.1e} relative RMS, the limit is {limit:.0e}")
            worst = max(worst, error)
        return worst

    def exact(self, x: LayerInputs) -> dict[str, Tensor]:
        """Output, and gradients by name, of the published form, one row of the batch at a time.

        In float64 where that takes seconds, else in float32 on the compiled scan, which has tests of its own.
        """
        wide = torch.float64 if self.bases <= EXACT else torch.float32
        backbone = copy.deepcopy(x.backbone).to(wide)
        one = LayerLoad(self.shape, self.direction, 1, self.length, self.d_model, self.state)
        rows = [
            one.call(COMPOSED, LayerInputs(signal, backbone, grad))()
            for signal, grad in zip(*(t.to(wide).split(1, -3) for t in (x.x, x.grad)), strict=True)
        ]
        found = [self._strands_first(torch.cat(column)) for column in zip(*(row[:2] for row in rows), strict=True)]
        if self.direction == "forward":
            return {"out": found[0]}
        found += [torch.stack(column).sum(0) for column in zip(*(row[2:] for row in rows), strict=True)]
        return dict(zip(("out", "x", *self._weights(backbone)), found, strict=True))

    def saved(self, form: Form, x: LayerInputs) -> Saved:
        """What the forward with gradients leaves behind for the backward."""
        signal = self._laid_out(form, x.x).requires_grad_()
        return saved(lambda: self._run(form, x.backbone, signal), signal, x.backbone)

    def memory(self, form: Form, x: LayerInputs) -> dict[str, float]:
        """Per base of the window what is kept for the backward."""
        if self.direction == "forward":
            return {}
        found = self.saved(form, x)
        return {f"{how}_bytes_per_base": round(n / (self.batch * self.length), 1) for how, n in found._asdict().items()}

    def parts(self, x: LayerInputs) -> list[published.Part]:
        """The steps of the composed mixer alone."""
        return published.parts(x.x, *mixer_weights(x.backbone), partial(self._autocast, x.x.device.type))

    def _strands_first(self, x: Tensor) -> Tensor:
        """(2, batch, L, d) from either layout of both strands."""
        if self.strands == 1 or x.dim() == 4:
            return x
        first, second = x.chunk(2, -1)
        return torch.stack([first, second.flip(-1)])


def mixer_weights(backbone: CaduceusBackbone) -> tuple:
    """in_proj, out_proj, fwd, rev."""
    return backbone.layers[0].mixer.weights(complement=False)[0]


def on_backend(backend: str) -> Form:
    """The op, or the backbone, on that backend."""

    def run(shape: str, backbone: CaduceusBackbone, x: Tensor) -> Tensor:
        with set_backend(backend):
            return bimamba(x, *mixer_weights(backbone)) if shape == "mixer" else backbone(x)

    return Form(run, published=False)


def published_form(module: published.Mamba) -> Form:
    """From two of those modules; a scan of ours runs on the fastest backend."""

    def run(shape: str, backbone: CaduceusBackbone, x: Tensor) -> Tensor:
        mixer = partial(_published_mixer, backbone=backbone, module=module)
        if shape == "mixer":
            return mixer(x)
        norms = (partial(published.rms_norm, weight=m.weight) for m in (backbone.layers[0].norm, backbone.norm))
        norm, final_norm = norms
        strands = (norm, mixer, final_norm)
        if shape == "equivariant":
            strands = tuple(partial(published.on_both_strands, strand) for strand in strands)
        return published.layer(x, *strands)

    return Form(run, published=True)


def _published_mixer(h: Tensor, backbone: CaduceusBackbone, module: published.Mamba) -> Tensor:
    return published.bimamba(h, *mixer_weights(backbone), module=module)


COMPOSED = published_form(published.mamba)
