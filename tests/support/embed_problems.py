"""Problems for embed_bases, and what every backend is held against."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from scan_problems import FORWARD_LIMIT, GRAD_LIMIT, rms_error
from torch import Tensor

from seq2exp.kernels.embed import reference
from seq2exp.kernels.embed.bases import Bases, Wanted

FLOAT, BFLOAT, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = [(FLOAT, FLOAT), (BFLOAT, HALF), (BFLOAT, BFLOAT), (HALF, FLOAT), (FLOAT, HALF)]  # of the output and signals
CHANNELS = [1, 3, 127, 128, 129, 256, 300]
ALL = Wanted(True, True, True)


class Problem(NamedTuple):
    bases: Bases
    grad: Tensor  # in the dtype of the output


def problem(
    shape=(2, 37), d=24, dtype=FLOAT, signal_dtype=FLOAT, tracks=3, positions=True, mask=True,
    kept: float | None = None, padding=0, complement=False, seed=0,
) -> Problem:  # fmt: skip
    """tracks 0: no signals. kept: the fraction of the bases in `indices`, in no order, and `padding` places beyond."""
    g = torch.Generator().manual_seed(seed)
    n = shape[0] * shape[1]
    indices = None
    if kept is not None:
        chosen = torch.randperm(n, generator=g)[: max(1, int(kept * n))]
        beyond = n + torch.randint(0, 1000, (padding,), generator=g)
        indices = torch.cat([chosen, beyond])[torch.randperm(len(chosen) + padding, generator=g)]
    x = Bases(
        torch.randint(0, 5, shape, generator=g, dtype=torch.uint8), torch.randn(5, d, generator=g),
        signals=3 * torch.rand(*shape, tracks, generator=g).to(signal_dtype) if tracks else None,
        signal_weight=torch.randn(d, tracks, generator=g) if tracks else None,
        positions=torch.randn(shape[1], d, generator=g) if positions else None,
        mask=torch.rand(shape, generator=g) if mask else None, indices=indices, complement=complement,
    )  # fmt: skip
    return Problem(x, torch.randn(x.out_shape, generator=g).to(dtype))


def moved(p: Problem, dtype: torch.dtype | None = None, **to: Any) -> Problem:
    """p on another device, or its floating point tensors in another dtype."""

    def move(x: object) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(dtype=dtype if x.is_floating_point() and dtype else x.dtype, **to)

    return Problem(Bases(*map(move, p.bases)), move(p.grad))


def wanted(p: Problem) -> Wanted:
    """Every gradient of an input that is there."""
    x = p.bases
    return Wanted(x.positions is not None, x.mask is not None, x.signals is not None)


def results(module: ModuleType, p: Problem, asked: Wanted | None = None) -> dict[str, Tensor | None]:
    """The output and all gradients."""
    out = module.forward(p.bases, p.grad.dtype)
    return {"out": out, **module.backward(p.grad, p.bases, wanted(p) if asked is None else asked)._asdict()}


def check(module: ModuleType, p: Problem, device: str = "cpu", asked: Wanted | None = None) -> None:
    """Against plain PyTorch in float64, to the project's limits; dtypes and shapes too."""
    found, exact = results(module, moved(p, device=device), asked), results(reference, moved(p, dtype=DOUBLE), asked)
    for name, want in exact.items():
        got = found[name]
        if want is None:
            assert got is None, name
            continue
        limit = FORWARD_LIMIT[p.grad.dtype] if name == "out" else GRAD_LIMIT[FLOAT]  # the gradients are float32
        assert got is not None and got.dtype == (p.grad.dtype if name == "out" else FLOAT), name
        assert got.is_contiguous() and got.shape == want.shape, name
        assert torch.equal(got.isnan().cpu(), want.isnan()), name
        assert rms_error(got.nan_to_num(), want.nan_to_num()) <= limit, name


def strided(p: Problem) -> Problem:
    """p with other strides: bases and tracks of signals apart, rows of positions, channels of the gradient."""
    x = p.bases
    spread = torch.full((3 * x.codes.shape[1], x.codes.shape[0], 2 * x.signals.shape[2] + 1), torch.nan)
    signals = spread.to(x.signals.dtype).transpose(0, 1)[:, 1::3, 1::2]
    signals.copy_(x.signals)
    rows = torch.full((x.positions.shape[0], x.positions.shape[1] + 5), torch.nan)
    positions = rows[:, 2:-3]
    positions.copy_(x.positions)
    x = x._replace(
        codes=x.codes.t().contiguous().t(), table=x.table.t().contiguous().t(), signals=signals, positions=positions,
        signal_weight=x.signal_weight.repeat_interleave(2, 1)[:, ::2], mask=x.mask.t().contiguous().t(),
    )  # fmt: skip
    return Problem(x, p.grad.transpose(-1, -2).contiguous().transpose(-1, -2))
