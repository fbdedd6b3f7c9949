"""Mamba in float64, from its formulas, but not as the code under test goes: no recurrence, sums over all pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mixer_weights(d=16, length=130, batch=2, state=16, rank=3, width=4, dtype=torch.float32, seed=0):
    """h, in_proj, out_proj and the ScanWeights, flat, leaves."""
    g = torch.Generator().manual_seed(seed)
    dim = 2 * d

    def draw(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=g)

    flat = [
        draw(batch, length, d), draw(2 * dim, d, scale=d**-0.5), draw(d, dim, scale=dim**-0.5),
        draw(dim, 1, width, scale=0.5), draw(dim, scale=0.1), draw(rank + 2 * state, dim, scale=dim**-0.5),
        draw(dim, rank, scale=rank**-0.5), draw(dim) - 3, torch.arange(1.0, state + 1).log().repeat(dim, 1), draw(dim),
    ]  # fmt: skip
    return [x.to(dtype).requires_grad_() for x in flat]


def double(x):
    """A detached float64 (complex128) leaf."""
    return None if x is None else x.detach().to(torch.complex128 if x.is_complex() else torch.float64).requires_grad_()


def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False) -> Tensor:
    """y_t = sum over s <= t of C_t exp(A (S_t - S_s)) dt_s B_s u_s with S the running sum of dt; u (batch, dim, L)."""
    dt = delta if delta_bias is None else delta + delta_bias[None, :, None]
    dt = F.softplus(dt) if delta_softplus else dt
    B, C = (_dense(t, u, A) for t in (B, C))  # (batch, dim, N, L)
    S = dt.cumsum(-1)
    causal = torch.ones(u.shape[2], u.shape[2], dtype=torch.bool).tril()
    gap = torch.where(causal, S[..., :, None] - S[..., None, :], 0.0)  # (batch, dim, t, s)
    kernel = torch.einsum("bdnt,bdnts,bdns->bdts", C, torch.exp(A[None, :, :, None, None] * gap[:, :, None]), B)
    kernel = 2 * kernel.real if kernel.is_complex() else kernel
    y = (torch.where(causal, kernel, 0.0) * (dt * u)[:, :, None]).sum(-1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * z / (1 + torch.exp(-z))


def last_state(u, delta, A, B, delta_bias=None, delta_softplus=False) -> Tensor:
    dt = delta if delta_bias is None else delta + delta_bias[None, :, None]
    dt = F.softplus(dt) if delta_softplus else dt
    S = dt.cumsum(-1)
    decay = torch.exp(A[None, :, :, None] * (S[..., -1:] - S)[:, :, None])
    return (decay * _dense(B, u, A) * (dt * u)[:, :, None]).sum(-1)


def _dense(x, u, A):
    if x.dim() == 2:
        return x[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    x = x[:, None] if x.dim() == 3 else x
    if A.is_complex():
        x = torch.complex(x[..., ::2], x[..., 1::2])
    return torch.stack([x[:, d * x.shape[1] // A.shape[0]] for d in range(A.shape[0])], 1)


def convolution(x, weight, bias=None) -> Tensor:
    """Causal, x (batch, dim, L), weight (dim, width)."""
    width, length = weight.shape[1], x.shape[2]
    rows = []
    for t in range(length):
        taps = [weight[:, width - 1 - k] * x[:, :, t - k] for k in range(min(width, t + 1))]
        rows.append(sum(taps))
    out = torch.stack(rows, -1)
    return out if bias is None else out + bias[:, None]


def inner(
    xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias, A, B=None, C=None, D=None, delta_bias=None,
    B_bias=None, C_bias=None, delta_softplus=True,
) -> Tensor:  # fmt: skip
    x, z = xz.chunk(2, 1)
    c = convolution(x, conv_weight[:, 0], conv_bias)
    c = c / (1 + torch.exp(-c))
    rank, n = dt_proj.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    p = torch.einsum("od,bdl->bol", x_proj, c)

    def own(part, bias):
        part = part if bias is None else part + bias[:, None]
        if not A.is_complex():
            return part
        return torch.stack([part[:, ::2], part[:, 1::2]], -1).flatten(2)

    B = own(p[:, rank : rank + n], B_bias) if B is None else B
    C = own(p[:, rank + n :], C_bias) if C is None else C
    delta = torch.einsum("dr,brl->bdl", dt_proj, p[:, :rank])
    y = scan(c, delta, A, B, C, D, z, delta_bias, delta_softplus)
    out = torch.einsum("ed,bdl->ble", out_proj, y)
    return out if out_bias is None else out + out_bias


def mamba(module, h, weights) -> Tensor:
    """A Mamba module's forward; weights: its parameters by name, in float64."""
    xz = torch.einsum("od,bld->bol", weights["in_proj.weight"], h)
    if "in_proj.bias" in weights:
        xz = xz + weights["in_proj.bias"][:, None]
    return inner(
        xz, weights["conv1d.weight"], weights.get("conv1d.bias"), weights["x_proj.weight"], weights["dt_proj.weight"],
        weights["out_proj.weight"], weights.get("out_proj.bias"), -torch.exp(weights["A_log"]), D=weights["D"],
        delta_bias=weights["dt_proj.bias"],
    )  # fmt: skip
