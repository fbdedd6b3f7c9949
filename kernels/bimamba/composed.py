"""The parts of a mixer in plain PyTorch: what runs where no compiled kernel does, and in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.bimamba.direction import ConvolutionGrads, Direction, DirectionGrads, Taps
from seq2exp.kernels.selective_scan import chunked

CHANNELS_LAST = True
states_shape = chunked.states_shape


def convolve(
    x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """silu of the causal (fwd) and the anti-causal (rev) depthwise convolution of x (batch, dim, L), each like x.

    Neither looks across a boundary of cu_seqlens. None for an absent direction.
    """
    offset = _offset_in_sequence(x.shape[2], cu_seqlens)
    return tuple(
        None if taps is None else F.silu(_convolution(x, taps, reverse, offset)).to(x.dtype)
        for taps, reverse in ((fwd, False), (rev, True))
    )  # type: ignore[return-value]


def convolve_backward(
    x: Tensor, grad_fwd: Tensor | None, grad_rev: Tensor | None, fwd: Taps | None, rev: Taps | None,
    cu_seqlens: Tensor | None,
) -> ConvolutionGrads:  # fmt: skip
    """Gradients of `convolve`, which is recomputed."""
    offset = _offset_in_sequence(x.shape[2], cu_seqlens)
    dx = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    weights: list[Taps | None] = []
    for taps, grad, reverse in ((fwd, grad_fwd, False), (rev, grad_rev, True)):
        if taps is None or grad is None:
            weights.append(None)
            continue
        grad = _silu_backward(grad, _convolution(x, taps, reverse, offset))
        columns = taps.weight.unbind(-1)
        dw = torch.zeros_like(taps.weight)
        dw[:, -1] = torch.einsum("bdl,bdl->d", grad, x.to(grad.dtype))
        dx.addcmul_(grad, columns[-1][:, None])
        for shift, source, target in _shifts(x.shape[2], taps.weight.shape[1], reverse):
            part = _inside(grad[..., target], target, shift, reverse, offset)
            dx[..., source].addcmul_(part, columns[-1 - shift][:, None])
            dw[:, -1 - shift] = torch.einsum("bdl,bdl->d", part, x[..., source].to(grad.dtype))
        weights.append(Taps(dw, grad.sum((0, 2))))
    return ConvolutionGrads(dx.to(x.dtype), *weights)


def scan(d: Direction, save_states: bool = True) -> tuple[Tensor, Tensor]:
    """out (batch, dim, L) and chunk states, float32 or wider, empty unless save_states."""
    y, _, states = chunked.forward(*_inputs(d), d.D, None, d.dt_bias, True, d.reverse, d.cu_seqlens)
    if d.add is not None:
        y = y + d.add
    out = y if d.z is None else y * F.silu(d.z)
    return out, states if save_states else states.new_empty(0)


def scan_backward(grad: Tensor, d: Direction, states: Tensor, closing: bool) -> DirectionGrads:
    """See `DirectionGrads`. The states within a chunk are recomputed from the one that enters it."""
    assert d.z is not None
    wide = torch.promote_types(grad.dtype, torch.float32)
    z, y = d.z.to(wide), torch.empty(grad.shape, dtype=wide, device=grad.device)
    gate = torch.sigmoid(z)
    du, ddelta, dA, dB, dC, dD, _, dbias = chunked.backward(
        grad.to(wide) * z * gate, *_inputs(d), d.D, None, d.dt_bias, True, d.reverse, d.cu_seqlens, states, output=y
    )
    assert dD is not None and dbias is not None
    dz = None
    if closing:
        total = y if d.add is None else y + d.add
        dz = (grad * total * gate * (1 + z * (1 - gate))).to(grad.dtype)
        y = total * z * gate
    dB, dC = (x[:, 0].to(grad.dtype) for x in (dB, dC))
    return DirectionGrads(du, ddelta.to(grad.dtype), dA, dB, dC, dD, dbias, y.to(grad.dtype), dz)


def _inputs(d: Direction) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u, delta, A, B, C as the scan takes them."""
    delta = torch.einsum("dr,brl->bdl", d.dt_proj, d.low.to(d.dt_proj.dtype))
    return d.u, delta, d.A, d.B[:, None], d.C[:, None]


def _silu_backward(grad: Tensor, pre: Tensor) -> Tensor:
    gate = torch.sigmoid(pre)
    return grad * gate * (1 + pre * (1 - gate))


def _convolution(x: Tensor, taps: Taps, reverse: bool, offset: tuple[Tensor, Tensor] | None) -> Tensor:
    """Before silu; (batch, dim, L), float32 or wider."""
    x = x.to(taps.weight.dtype)
    columns = taps.weight.unbind(-1)
    out = torch.addcmul(taps.bias[:, None], x, columns[-1][:, None])
    for shift, source, target in _shifts(x.shape[2], taps.weight.shape[1], reverse):
        out[..., target].addcmul_(_inside(x[..., source], target, shift, reverse, offset), columns[-1 - shift][:, None])
    return out


def _shifts(length: int, width: int, reverse: bool) -> Iterator[tuple[int, slice, slice]]:
    """(shift, positions read, positions written) of every tap but the one that reads its own position."""
    for shift in range(1, min(width, length)):
        near, far = slice(0, length - shift), slice(shift, length)
        yield (shift, far, near) if reverse else (shift, near, far)


def _inside(x: Tensor, target: slice, shift: int, reverse: bool, offset: tuple[Tensor, Tensor] | None) -> Tensor:
    """x (batch, dim, L - shift), zero where the tap would reach from `target` into another sequence."""
    if offset is None:
        return x
    inside = (offset[1] if reverse else offset[0])[target] >= shift
    return x * inside.to(x.dtype)


def _offset_in_sequence(length: int, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Bases to the first and to the last base of the own sequence, each (L,)."""
    if cu_seqlens is None:
        return None
    position = torch.arange(length, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), position, right=True)
    return position - cu_seqlens[sequence], cu_seqlens[sequence + 1] - 1 - position
