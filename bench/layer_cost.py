"""What a layer moves, from its shapes, and what it saves for its backward, measured."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from harness import resident
from torch import Tensor, nn


class Widths(NamedTuple):
    """Channels of the signals. inner: of convolution and scan; both: of a projection to x and z."""

    model: int
    inner: int
    rank: int
    state: int

    @property
    def projected(self) -> int:
        return self.rank + 2 * self.state


def moved(w: Widths, shape: str, direction: str, published: bool) -> int:
    """Values that go to or come from memory, for one base on one strand.

    Every kernel and every product reads its inputs once and writes its outputs once, whatever the caches do. Weights,
    chunk states and sums over bases are not counted. The published form is that of mamba-ssm's fused function, which
    recomputes the convolution and the step sizes in the backward.
    """
    forward, backward = (_published_mixer if published else _mixer)(w)
    total = forward + (backward if direction == "both" else 0)
    if shape == "mixer":
        return total
    norm, norm_backward = 2 * w.model, 4 * w.model  # x -> h; grad, stream and its gradient -> gradient of x
    add = 3 * w.model if published else 2 * w.model  # fused with the second norm: one read more, one write more
    total += 2 * norm + add + (2 * norm_backward if direction == "both" else 0)
    if published and shape == "equivariant":
        total += 3 * _both_strands(w) * (2 if direction == "both" else 1)
    return total


def _mixer(w: Widths) -> tuple[int, int]:
    d, inner, projected = w.model, w.inner, w.projected
    recomputed = (d + 2 * inner) + 2 * (inner + projected)  # in_proj, x_proj
    forward = recomputed + sum((
        3 * inner,  # both convolutions
        2 * inner + projected,  # scan: c -> y
        4 * inner + projected,  # scan: c, y, z -> gated sum
        inner + d,  # out_proj
    ))  # fmt: skip
    backward = recomputed + sum((
        2 * 2 * inner,  # the convolutions, one at a time
        d + inner,  # gradient before the gate
        (3 * inner + projected) + (3 * inner + 2 * w.state),  # scan: grad, c, z -> du, ddelta, y
        (4 * inner + projected) + (4 * inner + 2 * w.state),  # scan: grad, c, y, z -> du, ddelta, gated sum, dz
        d + inner,  # out_proj's gradient
        2 * 2 * (inner + w.rank),  # dt_proj: low's gradient, the weights'
        2 * (3 * inner + 2 * projected),  # x_proj: onto du, the weights'
        4 * inner,  # convolutions: x, both gradients -> dx
        2 * (2 * inner + d),  # in_proj: dh, the weights'
    ))  # fmt: skip
    return forward, backward


def _published_mixer(w: Widths) -> tuple[int, int]:
    d, inner, projected = w.model, w.inner, w.projected
    recomputed = 2 * inner + (w.rank + inner)  # convolution, step sizes
    module = recomputed + sum((
        d + 2 * inner,  # in_proj
        inner + projected,  # x_proj
        2 * 2 * w.state,  # B and C copied
        (3 * inner + 2 * w.state) + 2 * inner,  # scan: c, delta, z -> y, gated y
        inner + d,  # out_proj
    ))  # fmt: skip
    module_backward = recomputed + sum((
        d + inner,  # gradient of the gated y
        (5 * inner + 2 * w.state) + (4 * inner + 2 * w.state),  # scan: c, delta, z, grad, y -> du, ddelta, dz, gated y
        d + inner,  # out_proj's gradient
        2 * 2 * 2 * w.state,  # dB and dC copied twice
        2 * (inner + w.rank),  # dt_proj: low's gradient, the weights'
        3 * inner + 2 * projected,  # x_proj: onto du, the weights'
        3 * inner,  # convolution: x, grad -> dx
        2 * (2 * inner + d),  # in_proj: dh, the weights'
    ))  # fmt: skip
    flips, sum_ = 2 * 2 * d, 3 * d
    return 2 * module + flips + sum_, 2 * module_backward + flips + sum_


def _both_strands(w: Widths) -> int:
    """Around a norm or a mixer: one strand of the two flipped before and after, both concatenated."""
    return 2 * 2 * w.model // 2 + 2 * w.model


class Saved(NamedTuple):
    """Bytes kept for the backward, the input among them: as autograd's hooks see them, and as memory shows them."""

    hooks: int
    live: int


def saved(forward: Callable[[], Tensor], x: Tensor, module: nn.Module) -> Saved:
    """Parameters are not counted; the output neither, unless it is saved."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = forward()
    hooks, kept = sum(storages.values()), out.untyped_storage().data_ptr() in storages
    del out  # and the graph
    before = _allocated(x)
    out = forward()
    live = _allocated(x) - before + x.nbytes - (0 if kept else out.nbytes)
    return Saved(hooks, live)


def _allocated(x: Tensor) -> int:
    if x.is_cuda:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")
