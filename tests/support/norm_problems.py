"""Problems for add_norm, and what every backend is held against."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from scan_problems import FORWARD_LIMIT, GRAD_LIMIT, rms_error
from torch import Tensor

from seq2exp.kernels.add_norm import reference

EPSILON = 1e-5
FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
# of x and of residual
DTYPES = [(FLOAT, FLOAT), (BFLOAT, BFLOAT), (BFLOAT, FLOAT), (FLOAT, BFLOAT), (HALF, HALF), (HALF, FLOAT)]
CHANNELS = [1, 3, 127, 128, 129, 256, 1000]


def problem(
    shape=(2, 37, 128), dtype=FLOAT, residual_dtype: torch.dtype | None = None, residual=True, gate=True, seed=0
) -> SimpleNamespace:
    """x, residual, weight, gate, and the gradients of h and residual_out; the residual stream has grown, as it does."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    kept = residual_dtype or dtype
    return SimpleNamespace(
        x=normal(*shape).to(dtype), residual=(3 * normal(*shape)).to(kept) if residual else None,
        weight=1 + 0.2 * normal(shape[-1]), gate=torch.rand(shape[:-1], generator=g) if gate else None,
        grad=normal(*shape).to(dtype), grad_residual=normal(*shape).to(kept) if residual else None,
    )  # fmt: skip


def moved(p: SimpleNamespace, **to: Any) -> SimpleNamespace:
    """p in another dtype or on another device."""
    return SimpleNamespace(**{name: None if x is None else x.to(**to) for name, x in vars(p).items()})


def results(module: ModuleType, p: SimpleNamespace) -> dict[str, Tensor | None]:
    """h, residual_out and all gradients; backward from the residual_out of this forward."""
    h, total = module.forward(p.x, p.residual, p.weight, p.gate, EPSILON)
    kept = p.x if p.residual is None else total
    dr, dweight, dgate = module.backward(p.grad, p.grad_residual, kept, p.weight, p.gate, EPSILON)
    return {"h": h, "residual_out": total, "dr": dr, "dweight": dweight, "dgate": dgate}


def check(module: ModuleType, p: SimpleNamespace, device: str = "cpu") -> None:
    """Against plain PyTorch in float64, to the project's limits; dtypes and shapes too."""
    found, exact = results(module, moved(p, device=device)), results(reference, moved(p, dtype=torch.float64))
    kept = p.x.dtype if p.residual is None else p.residual.dtype
    low = [dtype for dtype in (p.x.dtype, kept) if dtype != FLOAT]
    limits = {"h": FORWARD_LIMIT, "residual_out": FORWARD_LIMIT}
    dtypes = {"h": p.x.dtype, "residual_out": kept, "dr": kept}
    for name, want in exact.items():
        got = found[name]
        if want is None:
            assert got is None, name
            continue
        assert got is not None and got.dtype == dtypes.get(name, FLOAT), name
        assert got.is_contiguous(), name
        if want.numel():
            assert rms_error(got, want) <= limits.get(name, GRAD_LIMIT)[low[0] if low else FLOAT], name
        else:
            assert got.numel() == 0


def check_rounding(module: ModuleType, p: SimpleNamespace, device: str = "cpu") -> None:
    """residual_out is rounded once, and h comes from what was stored, so that it can be had again bit for bit."""
    p = moved(p, device=device)
    h, total = module.forward(p.x, p.residual, p.weight, p.gate, EPSILON)
    assert torch.equal(total, (p.residual.float() + p.x.float()).to(p.residual.dtype))
    again, none = module.forward(total, None, p.weight, p.gate, EPSILON)
    assert torch.equal(again.to(p.x.dtype), h) and none.numel() == 0


def strided(p: SimpleNamespace) -> SimpleNamespace:
    """p with other strides: channels apart, rows apart, one gradient for all rows, a gate of every other position."""
    p = SimpleNamespace(**vars(p))
    p.x = p.x.transpose(0, 1).contiguous().transpose(0, 1)
    spread = torch.full((*p.residual.shape[:-1], p.residual.shape[-1] + 5), torch.nan, dtype=p.residual.dtype)
    spread[..., 3:-2] = p.residual
    p.residual = spread[..., 3:-2]
    p.grad = p.grad.transpose(1, 2).contiguous().transpose(1, 2)
    p.grad_residual = p.grad_residual[:1, :1].expand(p.grad_residual.shape)
    if p.gate is not None:
        p.gate = p.gate.repeat_interleave(2, -1)[..., ::2]
    return p
