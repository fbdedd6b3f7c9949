"""Problems for pack_selected and unpack_selected, and what every backend is held against."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from scan_problems import FORWARD_LIMIT, GRAD_LIMIT, rms_error
from torch import Tensor

from seq2exp.kernels.gather import reference

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
# of x and of the mask
DTYPES = [(FLOAT, FLOAT), (BFLOAT, FLOAT), (HALF, FLOAT), (FLOAT, BFLOAT), (BFLOAT, BFLOAT), (HALF, HALF)]
LENGTHS = [1, 63, 130, 2047, 2049]
CHANNELS = [1, 3, 8, 31, 128, 130, 300]
SHARES = [0.0, 0.1, 1.0]  # of the bases that are selected


def problem(batch=2, length=130, channels=12, dtype=FLOAT, mask_dtype=FLOAT, share=0.3, seed=0) -> SimpleNamespace:
    """x (batch, L, d), a mask whose values are 1 and others, and grad (batch, L, d) to take gradients from."""
    g = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(batch, length, channels, generator=g).to(dtype) for _ in range(2))
    value = torch.rand(batch, length, generator=g) + 0.5
    value[:, ::2] = 1
    selected = torch.rand(batch, length, generator=g) < share
    return SimpleNamespace(x=x, mask=torch.where(selected, value, -0.0).to(mask_dtype), grad=grad)


def moved(p: SimpleNamespace, **to: Any) -> SimpleNamespace:
    """p in another dtype or on another device."""
    return SimpleNamespace(**{name: x.to(**to) for name, x in vars(p).items()})


def results(module: ModuleType, p: SimpleNamespace, capacity: int | None = None) -> dict[str, Tensor]:
    """Selection, values, all gradients, and the values put back."""
    indices, cu_seqlens = module.select(p.mask, capacity)
    grad = p.grad.flatten(0, 1)[indices % p.mask.numel()]
    values = module.pack_forward(p.x, p.mask, indices)
    grad_x, grad_mask = module.pack_backward(grad, p.x, p.mask, indices)
    return {
        "indices": indices, "cu_seqlens": cu_seqlens, "values": values, "grad_x": grad_x, "grad_mask": grad_mask,
        "unpacked": module.unpack_forward(values, indices, p.mask.shape),
        "grad_values": module.unpack_backward(p.grad, indices),
    }  # fmt: skip


def check(module: ModuleType, p: SimpleNamespace, capacity: int | None = None, device: str = "cpu") -> None:
    """Against plain PyTorch in float64, to the project's limits; exact where nothing is computed."""
    found = results(module, moved(p, device=device), capacity)
    exact = results(reference, moved(p, dtype=torch.float64), capacity)
    dtypes = {"indices": torch.int64, "cu_seqlens": torch.int64, "grad_mask": p.mask.dtype}
    low = next((dtype for dtype in (p.x.dtype, p.mask.dtype) if dtype != FLOAT), FLOAT)
    for name, want in exact.items():
        got = found[name]
        assert got.dtype == dtypes.get(name, p.x.dtype) and got.is_contiguous() and got.shape == want.shape, name
        if name in ("indices", "cu_seqlens", "grad_values"):
            assert torch.equal(got.cpu().to(want.dtype), want), name
        elif want.numel() and not want.isnan().any():
            limit = (GRAD_LIMIT if name.startswith("grad") else FORWARD_LIMIT)[low]
            assert rms_error(got, want) <= limit, name
            assert torch.equal(got.cpu() == 0, want == 0), name
        else:
            assert torch.equal(got.cpu().isnan(), want.isnan()), name


def check_overflow(module: ModuleType, device: str = "cpu") -> None:
    """More than the capacity are selected: nothing of the selection is given, nothing reads or writes out of bounds."""
    p = moved(problem(3, 70, 8, share=0.8), device=device)
    for capacity in (1, 40, int(p.mask.count_nonzero()) - 1):
        found = results(module, p, capacity)
        assert (found["indices"] == -1).all() and found["values"].isnan().all()
        assert found["cu_seqlens"].max() == capacity and (found["cu_seqlens"].diff() >= 0).all()
        assert not any(found[name].any() for name in ("grad_x", "grad_mask", "unpacked", "grad_values"))
    assert results(module, p, capacity + 1)["indices"].min() >= 0


def strided(p: SimpleNamespace) -> SimpleNamespace:
    """p with other strides: channels apart, a mask of every other position, one gradient for all rows."""
    p = SimpleNamespace(**vars(p))
    p.x = p.x.transpose(1, 2).contiguous().transpose(1, 2)
    p.mask = p.mask.repeat_interleave(2, 1)[:, ::2].t().contiguous().t()
    p.grad = p.grad[:1].expand(p.grad.shape)
    return p


def spread(p: SimpleNamespace) -> SimpleNamespace:
    """p with adjacent channels, but rows and batch apart, between NaN."""
    around = p.x.new_full((p.x.shape[0] + 1, p.x.shape[1], p.x.shape[2] + 5), torch.nan)
    around[1:, :, 3:-2] = p.x
    return SimpleNamespace(x=around[1:, :, 3:-2], mask=p.mask.repeat_interleave(2, 1)[:, ::2], grad=p.grad)
