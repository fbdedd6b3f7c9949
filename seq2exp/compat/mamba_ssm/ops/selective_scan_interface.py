"""The selective scan, and the part of a Mamba layer behind its input projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.compat.causal_conv1d import causal_conv1d_fn
from seq2exp.kernels import selective_scan

__all__ = ["mamba_inner_fn", "mamba_inner_ref", "selective_scan_fn", "selective_scan_ref"]


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Any:  # fmt: skip
    """The scan of Mamba, by our kernels.

    Parameters
    ----------
    u, delta, z: (batch, dim, L), of one dtype; z gates with silu. A: (dim, N), real or complex.
    B, C: (dim, N), (batch, N, L) or (batch, groups, N, L), those with L in u's dtype; with complex A (dim, N) complex,
        or real with 2 L in place of L, real and imaginary parts in turn. D, delta_bias: (dim,).
    delta_softplus: the step size is softplus(delta + delta_bias). return_last_state: also return the last state.

    Returns
    -------
    (batch, dim, L) in u's dtype; with return_last_state also (batch, dim, N), float32 (complex64 for complex A),
    through which no gradient flows. A complex A goes position by position in plain torch.

    Raises
    ------
    TypeError: mixed or unsupported dtypes. ValueError: shapes or devices that do not fit.
    """
    if A.is_complex():
        out, last = selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, True)
        return (out, last.detach()) if return_last_state else out
    if u.dtype in (torch.bfloat16, torch.float16) and 2 in (B.dim(), C.dim()):  # these are not rounded to u's dtype
        wide = [x if x is None else x.float() for x in (u, delta, A, B, C, D, z, delta_bias)]
        out, last = selective_scan(*wide, delta_softplus, True)  # type: ignore[arg-type]
        return (out.to(u.dtype), last) if return_last_state else out.to(u.dtype)
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Any:  # fmt: skip
    """`selective_scan_fn` as it is defined, position by position in float32 (float64 for float64), in plain torch."""
    wide = torch.promote_types(u.dtype, torch.float32)
    x, step = u.to(wide), delta.to(wide)
    step = step if delta_bias is None else step + delta_bias[:, None]
    step = F.softplus(step) if delta_softplus else step
    B_at, C_at = (_by_position(t, A) for t in (B, C))
    h = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.promote_types(A.dtype, wide), device=u.device)
    ys = []
    for t in range(u.shape[2]):
        h = torch.exp(step[..., t, None] * A) * h + (step * x)[..., t, None] * B_at(t)
        y = (h * C_at(t)).sum(-1)
        ys.append(2 * y.real if y.is_complex() else y)  # of each pair of conjugate states one is kept
    out = torch.stack(ys, -1) if ys else torch.zeros_like(x)
    out = out if D is None else out + D[:, None] * x
    out = (out if z is None else out * F.silu(z.to(wide))).to(u.dtype)
    return (out, h) if return_last_state else out


def _by_position(x: Tensor, A: Tensor) -> Callable[[int], Tensor]:
    """B or C of one position, (dim, N) or (batch, 1 or dim, N)."""
    if x.dim() == 2:
        return lambda t: x
    groups = x[:, None] if x.dim() == 3 else x
    if A.is_complex():
        groups = torch.view_as_complex(groups.float().unflatten(-1, (-1, 2)).contiguous())
    groups = groups if groups.shape[1] == 1 else groups.repeat_interleave(A.shape[0] // groups.shape[1], 1)
    return lambda t: groups[..., t].to(torch.promote_types(groups.dtype, torch.float32))


def mamba_inner_fn(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor, B: Tensor | None = None, C: Tensor | None = None,
    D: Tensor | None = None, delta_bias: Tensor | None = None, B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None, delta_softplus: bool = True,
) -> Tensor:  # fmt: skip
    """A Mamba layer behind its input projection: convolution, scan, gate and output projection.

    Parameters
    ----------
    xz: (batch, 2 d_inner, L), the scan's input above the gate. conv1d_weight: (d_inner, 1, width), conv1d_bias:
        (d_inner,). x_proj_weight: (rank + 2 N, d_inner); 4 N with complex A. delta_proj_weight: (d_inner, rank).
    out_proj_weight: (d, d_inner), out_proj_bias: (d,). A, D, delta_bias: as for `selective_scan_fn`.
    B, C: as there, or None: from x_proj, plus B_proj_bias, C_proj_bias (N,).

    Returns
    -------
    (batch, L, d) in out_proj_weight's dtype; under autocast xz and the projections are cast to autocast's dtype.
    """
    return _inner(
        causal_conv1d_fn, selective_scan_fn, xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight,
        out_proj_weight, out_proj_bias, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus,
    )  # fmt: skip


def mamba_inner_ref(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor, B: Tensor | None = None, C: Tensor | None = None,
    D: Tensor | None = None, delta_bias: Tensor | None = None, B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None, delta_softplus: bool = True,
) -> Tensor:  # fmt: skip
    """`mamba_inner_fn` in plain torch, with `selective_scan_ref`."""
    return _inner(
        _convolution_ref, selective_scan_ref, xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight,
        out_proj_weight, out_proj_bias, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus,
    )  # fmt: skip


def _convolution_ref(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    assert activation == "silu"
    padded = F.pad(x.to(weight.dtype), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])).to(x.dtype)


def _inner(
    convolve: Callable[..., Any], scan: Callable[..., Any], xz: Tensor, conv1d_weight: Tensor,
    conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor, out_proj_weight: Tensor,
    out_proj_bias: Tensor | None, A: Tensor, B: Tensor | None, C: Tensor | None, D: Tensor | None,
    delta_bias: Tensor | None, B_proj_bias: Tensor | None, C_proj_bias: Tensor | None, delta_softplus: bool,
) -> Tensor:  # fmt: skip
    device = xz.device.type
    if torch.is_autocast_enabled(device) and xz.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        xz, x_proj_weight, delta_proj_weight = (t.to(dtype) for t in (xz, x_proj_weight, delta_proj_weight))
        out_proj_weight = out_proj_weight.to(dtype)
        out_proj_bias = None if out_proj_bias is None else out_proj_bias.to(dtype)
    x, z = xz.chunk(2, 1)
    x = convolve(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    rank = delta_proj_weight.shape[1]
    states = A.shape[1] * (2 if A.is_complex() else 1)
    low, B_low, C_low = _product(x_proj_weight, x).split([rank, states, states], 1)
    B = _projected(B_low, B_proj_bias, A) if B is None else B
    C = _projected(C_low, C_proj_bias, A) if C is None else C
    y = scan(x, _product(delta_proj_weight, low), A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """weight (rows, columns) times x (batch, columns, L), with L adjacent in memory."""
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


def _projected(x: Tensor, bias: Tensor | None, A: Tensor) -> Tensor:
    """B or C (batch, N, L) from the projection; with complex A (batch, N, 2 L) from (batch, 2 N, L)."""
    x = x if bias is None else x + bias.to(x.dtype)[:, None]
    return x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2) if A.is_complex() else x
