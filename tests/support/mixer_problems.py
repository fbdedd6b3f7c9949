"""Problems for the parts of a bidirectional mixer, and what every backend's parts are held against."""

from __future__ import annotations

from types import ModuleType

import torch
from scan_problems import FORWARD_LIMIT, GRAD_LIMIT, rms_error
from torch import Tensor

from seq2exp.kernels.bimamba import composed
from seq2exp.kernels.bimamba.direction import Direction, DirectionGrads, Taps

SIGNALS = ("u", "low", "B", "C", "z", "add")


def direction(
    batch=2, dim=20, state=16, rank=3, length=130, dtype=torch.float32, gate=True, add=True, reverse=False,
    cu_seqlens=None, channels_last=False, seed=0, device="cpu",
) -> Direction:  # fmt: skip
    """One direction as the mixer has it: u, and low, B, C as parts of one projection; step sizes 1e-3..1e-1."""
    g = torch.Generator().manual_seed(seed)

    def signal(rows: int) -> Tensor:
        x = (
            torch.randn(batch, length, rows, generator=g)
            if channels_last
            else torch.randn(batch, rows, length, generator=g)
        )
        return (x.transpose(1, 2) if channels_last else x).to(dtype).to(device)

    step = torch.exp(torch.rand(dim, generator=g) * 4.6 - 6.9)
    low, B, C = signal(rank + 2 * state).split([rank, state, state], 1)
    xz = signal(2 * dim)
    A = -torch.arange(1.0, state + 1).repeat(dim, 1) * (1 + 0.1 * torch.rand(dim, 1, generator=g))
    dt_proj = torch.randn(dim, rank, generator=g) * 0.5 / rank**0.5
    D = torch.randn(dim, generator=g)
    dt_proj, A, D, step = (x.to(device) for x in (dt_proj, A, D, step))
    return Direction(
        signal(dim), low, dt_proj, A, B, C, D, step.log(), xz[:, dim:] if gate else None, signal(dim) if add else None,
        reverse, None if cu_seqlens is None else torch.tensor(cu_seqlens, device=device),
    )  # fmt: skip


def on(d: Direction, *, dtype: torch.dtype | None = None, device: str | None = None) -> Direction:
    """d with all floating point tensors in another dtype, or all tensors on another device."""
    moved = [
        x.to(device=device, dtype=dtype if x.is_floating_point() else None) if isinstance(x, Tensor) else x for x in d
    ]
    return Direction(*moved)


def scan_backward(module: ModuleType, grad: Tensor, d: Direction, states: Tensor, closing: bool) -> DirectionGrads:
    """A backend's scan_backward, which may overwrite what it is given: on copies with the same strides."""

    def copy(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)

    return module.scan_backward(copy(grad), d._replace(z=copy(d.z), add=copy(d.add)), states, closing)


def check_scan(module: ModuleType, d: Direction, device: str = "cpu") -> None:
    """Forward and both kinds of backward of a backend's scan against plain PyTorch in float64."""
    batch, dim, length = d.u.shape
    dtype, exact_d, d = d.u.dtype, on(d, dtype=torch.float64), on(d, device=device)
    n = None if d.cu_seqlens is None else d.cu_seqlens.numel() - 1
    out, states = module.scan(d, True)
    exact_out, exact_states = composed.scan(exact_d, True)
    assert out.dtype == dtype and out.shape == d.u.shape
    assert states.dtype == torch.float32
    assert list(states.shape) == list(module.states_shape(batch, dim, d.A.shape[1], length, n))
    assert rms_error(out, exact_out) <= FORWARD_LIMIT[dtype]
    again, none = module.scan(d, False)
    assert torch.equal(again, out)
    assert none.numel() == 0
    if d.z is None:
        return
    grad = torch.randn(d.u.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    for closing in (False, True):
        got = scan_backward(module, grad.to(device), d, states, closing)
        exact = composed.scan_backward(grad.double(), exact_d, exact_states, closing)
        for name, x, want in zip(got._fields, got, exact, strict=True):
            if want is None:
                assert x is None, name
                continue
            assert rms_error(x, want) <= GRAD_LIMIT[dtype], (name, closing)
            assert x.dtype == (dtype if name in ("u", "delta", "B", "C", "y", "z") else torch.float32), name


def taps(dim: int, width: int, seed: int = 0, device: str = "cpu") -> Taps:
    g = torch.Generator().manual_seed(seed)
    return Taps(*(torch.randn(*shape, generator=g).to(device) * 0.5 for shape in ((dim, width), (dim,))))


def check_convolution(
    module: ModuleType, x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None, device: str = "cpu"
) -> None:
    """Both directions of a backend's convolution, forward and backward, against plain PyTorch in float64."""

    def moved(item, **to):
        return None if item is None else Taps(*(t.to(**to) for t in item)) if isinstance(item, tuple) else item.to(**to)

    here = [moved(item, device=device) for item in (x, fwd, rev, cu_seqlens)]
    exact = [*(moved(item, dtype=torch.float64) for item in (x, fwd, rev)), cu_seqlens]
    outs, wanted = module.convolve(*here), composed.convolve(*exact)
    g = torch.Generator().manual_seed(3)
    grads = [None if w is None else torch.randn(x.shape, generator=g).to(x.dtype) for w in (fwd, rev)]
    for out, want in zip(outs, wanted, strict=True):
        assert (out is None) == (want is None)
        if want is not None:
            assert out.dtype == x.dtype and rms_error(out, want) <= FORWARD_LIMIT[x.dtype]
    got = module.convolve_backward(here[0], *(moved(t, device=device) for t in grads), *here[1:])
    want = composed.convolve_backward(exact[0], *(moved(t, dtype=torch.float64) for t in grads), *exact[1:])
    assert got.x.dtype == x.dtype
    pairs = [("x", got.x, want.x)]
    for name, ours, theirs in (("fwd", got.fwd, want.fwd), ("rev", got.rev, want.rev)):
        assert (ours is None) == (theirs is None), name
        if theirs is not None:
            pairs += [(f"{name}.{field}", a, b) for field, a, b in zip(Taps._fields, ours, theirs, strict=True)]
    for name, ours, theirs in pairs:
        assert rms_error(ours, theirs) <= GRAD_LIMIT[x.dtype], name
