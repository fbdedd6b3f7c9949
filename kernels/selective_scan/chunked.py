"""The selective scan in plain PyTorch, vectorised over chunks: what runs where no compiled kernel does.

L is cut into about sqrt(L) chunks of T positions. Three passes, each a loop over T or over the chunks, not over L:

1. every chunk at once from a zero state, keeping only its final state;
2. the carry from chunk to chunk: h0[c+1] = exp(A sum dt) h0[c] + final[c];
3. every chunk at once from its true initial state, producing the output.

The backward walks the same chunks with the adjoint. Tiles over batch rows and channels bound the temporaries.
No division and no cumulative product occurs, so long inputs and strong decay are as exact as the sequential form.
States are float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_BYTES = 64 << 20  # state-sized temporaries of one tile


def chunk_length(length: int) -> int:
    """Positions between saved states."""
    return max(1, math.isqrt(length))


def n_chunks(length: int) -> int:
    return -(-length // chunk_length(length))


def states_shape(batch: int, dim: int, state: int, length: int, n_sequences: int | None) -> list[int]:
    """Shape of the saved chunk-boundary states."""
    return [batch, n_chunks(length), dim, state]


@dataclass
class _Tile:
    """One block of batch rows and channels, laid out (T, batch, chunks, groups, channels a group) in scan order."""

    rows: slice
    channels: slice
    groups: slice
    dt: Tensor
    slope: Tensor  # d dt / d delta
    u: Tensor
    A: Tensor  # (groups, channels a group, state)
    B: Tensor  # (T, batch, chunks, groups, 1, state)
    C: Tensor
    keep: Tensor | None  # (T, 1, chunks, 1, 1, 1): 0 where a sequence starts

    def state_shape(self) -> tuple[int, ...]:
        return (*self.dt.shape, self.A.shape[-1])

    def decay(self, out: Tensor) -> Tensor:
        """exp(dt A) of every position, 0 where a sequence starts: (T, ..., state)."""
        torch.mul(self.dt.unsqueeze(-1), self.A, out=out).exp_()
        return out if self.keep is None else out.mul_(self.keep)

    def chunk_decay(self) -> Tensor:
        """Product of the decays of a chunk: (batch, chunks, groups, channels a group, state)."""
        total = torch.exp(self.dt.sum(0).unsqueeze(-1) * self.A)
        return total if self.keep is None else total * self.keep.amin(0)


class _Scratch:
    """State-sized buffers that all tiles share: fresh memory costs more in page faults than the arithmetic."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._pool: list[Tensor] = []
        self._empty = like.new_empty(0, dtype=dtype)

    def __call__(self, index: int, shape: tuple[int, ...]) -> Tensor:
        if index == len(self._pool):
            self._pool.append(self._empty.new_empty(math.prod(shape)))
        if self._pool[index].numel() < math.prod(shape):
            self._pool[index] = self._empty.new_empty(math.prod(shape))
        return self._pool[index][: math.prod(shape)].view(shape)


class _Layout:
    """Between (batch, channels, L) in genome order and (T, batch, chunks, groups, channels a group) in scan order."""

    def __init__(self, length: int, reverse: bool, dtype: torch.dtype) -> None:
        self.length, self.reverse, self.dtype = length, reverse, dtype
        self.steps, self.chunks = chunk_length(length), n_chunks(length)

    def to_tile(self, x: Tensor, groups: int) -> Tensor:
        """(batch, groups * k, L) -> (T, batch, chunks, groups, k), zero padded at the end of the scan."""
        steps, chunks = self.steps, self.chunks
        padded = x.new_zeros(x.shape[0], steps * chunks, x.shape[1], dtype=self.dtype)
        padded[:, : self.length] = (x.flip(-1) if self.reverse else x).transpose(1, 2)
        return padded.view(x.shape[0], chunks, steps, groups, -1).permute(2, 0, 1, 3, 4).contiguous()

    def from_tile(self, x: Tensor) -> Tensor:
        """(T, batch, chunks, groups, k) -> (batch, groups * k, L)."""
        x = x.permute(1, 3, 4, 2, 0).flatten(1, 2).flatten(2)[..., : self.length]
        return x.flip(-1) if self.reverse else x

    def starts(self, cu_seqlens: Tensor | None) -> Tensor | None:
        """(T, 1, chunks, 1, 1, 1): 0 where a sequence after the first starts, else 1."""
        if cu_seqlens is None:
            return None
        keep = torch.ones(self.steps * self.chunks, dtype=self.dtype, device=cu_seqlens.device)
        bounds = self.length - cu_seqlens if self.reverse else cu_seqlens
        keep[bounds[bounds < self.length]] = 0
        return keep.view(self.chunks, self.steps).t().reshape(self.steps, 1, self.chunks, 1, 1, 1)

    def ends(self, cu_seqlens: Tensor | None) -> dict[int, list[tuple[int, int]]]:
        """step t -> (sequence, chunk) of the sequences whose scan ends there; empty sequences are left out."""
        spans = [(0, self.length)] if cu_seqlens is None else list(zip(*_pairs(cu_seqlens), strict=True))
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for i, (first, last) in enumerate(spans):
            if last > first:
                end = self.length - first - 1 if self.reverse else last - 1
                found[end % self.steps].append((i, end // self.steps))
        return found


def _pairs(cu_seqlens: Tensor) -> tuple[list[int], list[int]]:
    bounds = cu_seqlens.tolist()
    return bounds[:-1], bounds[1:]


def _tiles(bytes_per_channel: int, batch: int, dim: int, groups: int) -> Iterator[tuple[slice, slice, slice]]:
    """(rows, channels, groups) slices with temporaries near TILE_BYTES: a range of whole groups, or a part of one."""
    fit = max(1, TILE_BYTES // max(1, bytes_per_channel))  # channels of one row
    per_group = dim // groups
    rows = max(1, min(batch, fit // dim))
    wide = rows > 1 or fit >= dim
    for b in range(0, batch, rows):
        if wide:
            yield slice(b, min(b + rows, batch)), slice(0, dim), slice(0, groups)
            continue
        for g in range(groups):
            for k in range(0, per_group, fit):
                first, last = g * per_group + k, g * per_group + min(k + fit, per_group)
                yield slice(b, b + 1), slice(first, last), slice(g, g + 1)


def _load(
    rows: slice, channels: slice, groups: slice, layout: _Layout, u: Tensor, delta: Tensor, A: Tensor, B: Tensor,
    C: Tensor, delta_bias: Tensor | None, softplus: bool, keep: Tensor | None,
) -> _Tile:  # fmt: skip
    n = groups.stop - groups.start
    raw = layout.to_tile(delta[rows, channels], n)
    if delta_bias is not None:
        raw += delta_bias[channels].to(layout.dtype).view(n, -1)
    dt, slope = (F.softplus(raw), torch.sigmoid(raw)) if softplus else (raw, torch.ones((), dtype=raw.dtype))
    tail = layout.steps * layout.chunks - layout.length
    if tail:  # the padding must neither decay nor add
        dt[layout.steps - tail :, :, -1] = 0

    def per_step(x: Tensor) -> Tensor:
        return layout.to_tile(x[rows, groups].flatten(1, 2), n).unsqueeze(-2)

    return _Tile(
        rows, channels, groups, dt, slope.to(raw), layout.to_tile(u[rows, channels], n),
        A[channels].to(layout.dtype).view(n, -1, A.shape[1]), per_step(B), per_step(C), keep,
    )  # fmt: skip


def _carry(decay: Tensor, final: Tensor) -> Tensor:
    """Initial state of every chunk: x[0] = 0, x[c + 1] = decay[c] x[c] + final[c] along dim 1."""
    initial = torch.zeros_like(final)
    for c in range(final.shape[1] - 1):
        torch.addcmul(final[:, c], decay[:, c], initial[:, c], out=initial[:, c + 1])
    return initial


def _run(h: Tensor, decay: Tensor, initial: Tensor) -> None:
    """In place along dim 0: what drives the states becomes the states."""
    before = initial
    for h_t, decay_t in zip(h.unbind(), decay.unbind(), strict=True):
        before = h_t.addcmul_(decay_t, before)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out, last state, chunk states. Shapes as in `reference.selective_scan_forward`."""
    batch, dim, length = u.shape
    state = A.shape[1]
    layout = _Layout(length, reverse, torch.promote_types(u.dtype, torch.float32))
    keep, ends = layout.starts(cu_seqlens), layout.ends(cu_seqlens)
    out = torch.empty_like(u)
    states = u.new_empty(batch, layout.chunks, dim, state, dtype=layout.dtype)
    n_last = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    last = u.new_zeros(n_last, dim, state, dtype=layout.dtype)

    scratch = _Scratch(u, layout.dtype)
    for rows, channels, groups in _tiles(2 * layout.dtype.itemsize * length * state, batch, dim, B.shape[1]):
        tile = _load(rows, channels, groups, layout, u, delta, A, B, C, delta_bias, delta_softplus, keep)
        shape = tile.state_shape()
        decay = tile.decay(scratch(0, shape))
        h = torch.mul((tile.dt * tile.u).unsqueeze(-1), tile.B, out=scratch(1, shape))
        final = torch.zeros_like(h[0])
        for h_t, decay_t in zip(h.unbind(), decay.unbind(), strict=True):
            final = torch.addcmul(h_t, decay_t, final)
        initial = _carry(tile.chunk_decay(), final)
        states[rows, :, channels] = initial.flatten(2, 3)
        _run(h, decay, initial)
        for t, sequences in ends.items():
            for sequence, chunk in sequences:
                row = rows if cu_seqlens is None else slice(sequence, sequence + 1)
                last[row, channels] = h[t, :, chunk].flatten(1, 2)
        y = torch.matmul(h, tile.C.transpose(-1, -2)).squeeze(-1)
        if D is not None:
            y.addcmul_(D[channels].to(y).view(tile.A.shape[:2]), tile.u)
        part = layout.from_tile(y)
        out[rows, channels] = part if z is None else part * F.silu(z[rows, channels].to(part))
    return out, last, states


def backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, states: Tensor,
    *, output: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, delta_bias (None where absent); see `reference.selective_scan_backward`.

    output: (batch, dim, L), takes the output of the scan before the gate.
    """
    batch, dim, length = u.shape
    state = A.shape[1]
    layout = _Layout(length, reverse, torch.promote_types(u.dtype, torch.float32))
    keep = layout.starts(cu_seqlens)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dz = None if z is None else torch.empty_like(z)
    dA = torch.zeros(A.shape, dtype=layout.dtype, device=A.device)
    dB, dC = (torch.zeros(x.shape, dtype=layout.dtype, device=x.device) for x in (B, C))
    dD = None if D is None else torch.zeros(dim, dtype=layout.dtype, device=D.device)
    dbias = None if delta_bias is None else torch.zeros(dim, dtype=layout.dtype, device=delta_bias.device)

    scratch = _Scratch(u, layout.dtype)
    for rows, channels, groups in _tiles(4 * layout.dtype.itemsize * length * state, batch, dim, B.shape[1]):
        tile = _load(rows, channels, groups, layout, u, delta, A, B, C, delta_bias, delta_softplus, keep)
        n, shape = groups.stop - groups.start, tile.A.shape[:2]
        x = tile.dt * tile.u
        decay = tile.decay(scratch(0, tile.state_shape()))
        h = torch.mul(x.unsqueeze(-1), tile.B, out=scratch(1, decay.shape))
        initial = states[rows, :, channels].unflatten(2, shape)
        _run(h, decay, initial)

        grad = grad_out[rows, channels].to(layout.dtype)
        if z is not None or output is not None:
            y = layout.from_tile(torch.matmul(h, tile.C.transpose(-1, -2)).squeeze(-1))
            if D is not None:
                y = y + D[channels].to(y)[:, None] * u[rows, channels]
        if output is not None:
            output[rows, channels] = y
        if z is not None and dz is not None:
            gate = torch.sigmoid(z[rows, channels].to(y))
            zt = z[rows, channels].to(y)
            dz[rows, channels] = (grad * y * gate * (1 + zt * (1 - gate))).to(dz.dtype)
            grad = grad * zt * gate
        dy = layout.to_tile(grad, n)

        g = torch.mul(dy.unsqueeze(-1), tile.C, out=scratch(2, decay.shape))
        own = torch.mul(g, decay, out=scratch(3, decay.shape))
        entering = torch.zeros_like(g[0])
        for own_t, decay_t in zip(reversed(own.unbind()), reversed(decay.unbind()), strict=True):
            entering = torch.addcmul(own_t, decay_t, entering)
        g[-1] += _carry(tile.chunk_decay().flip(1), entering.flip(1)).flip(1)
        g_t, decay_t = g.unbind(), decay.unbind()
        for t in reversed(range(layout.steps - 1)):
            g_t[t].addcmul_(decay_t[t + 1], g_t[t + 1])

        dx = torch.matmul(g, tile.B.transpose(-1, -2)).squeeze(-1)
        dB_t, dC_t = torch.matmul(x.unsqueeze(-2), g), torch.matmul(dy.unsqueeze(-2), h)
        w = torch.mul(decay, g, out=own)
        w[1:] *= h[:-1]
        w[0] *= initial
        dA_t = torch.mul(w, tile.dt.unsqueeze(-1), out=g).sum((0, 1, 2))
        ddt = torch.mul(w, tile.A, out=g).sum(-1)

        ddt.addcmul_(dx, tile.u).mul_(tile.slope)
        dx.mul_(tile.dt)
        if D is not None and dD is not None:
            dx.addcmul_(D[channels].to(dx).view(shape), dy)
            dD[channels] += (dy * tile.u).sum((0, 1, 2)).flatten()
        if dbias is not None:
            dbias[channels] += layout.from_tile(ddt).sum((0, 2))
        du[rows, channels] = layout.from_tile(dx).to(du.dtype)
        ddelta[rows, channels] = layout.from_tile(ddt).to(ddelta.dtype)
        dA[channels] += dA_t.flatten(0, 1)
        for total, part in ((dB, dB_t), (dC, dC_t)):
            total[rows, groups] += layout.from_tile(part.squeeze(-2)).unflatten(1, (n, state))
    return du, ddelta, dA, dB, dC, dD, dz, dbias
