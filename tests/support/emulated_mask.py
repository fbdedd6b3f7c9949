"""The CUDA mask on the CPU, under the emulator: kernels/beta_mask/cuda.py for CPU tensors.

Every output starts as NaN, between guard bytes that are checked after each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_double, c_float, c_int, c_int64, c_uint32, c_void_p
from pathlib import Path

import torch
from emulated_cuda import EMULATOR, SOURCES, entry, library
from emulated_op import pointer, run
from emulated_scan import SCALARS, Outputs
from torch import Tensor

from seq2exp.kernels.beta_mask import tiles
from seq2exp.kernels.beta_mask.settings import EPSILON, BetaMask, Saved, Settings


class Channels(ctypes.Structure):
    """GpuChannels of csrc/beta_mask/cuda/mask.h."""

    _fields_ = [
        ("data", c_void_p), ("batch", c_int64), ("position", c_int64), ("channel", c_int64), ("storage", c_int),
    ]  # fmt: skip

    @classmethod
    def of(cls, x: Tensor | None) -> Channels:
        return cls() if x is None else cls(x.data_ptr(), *x.stride(), list(SCALARS).index(x.dtype))


class Mask(ctypes.Structure):
    """GpuMask of csrc/beta_mask/cuda/mask.h."""

    _fields_ = (
        [(name, c_int64) for name in ("batch", "length", "tiles")]
        + [("tracks", c_int), ("logits", Channels), ("signals", Channels), ("weights", c_void_p), ("betas", c_void_p)]
        + [(name, c_float) for name in ("minimum", "signal_scale", "z_scale", "alpha_shift", "beta_shift")]
        + [("prior", c_float * 5), ("sample", c_bool), ("hard", c_bool), ("threshold", c_float)]
        + [("key0", c_uint32), ("key1", c_uint32), ("rows", c_void_p), ("centre_begin", c_int64)]
        + [("centre_end", c_int64)]
        + [(name, c_void_p) for name in ("exclude", "include", "selected", "mask", "soft", "alpha", "beta", "logit")]
        + [(name, c_void_p) for name in ("marks", "sums", "lowest", "grad_mask", "grad_soft", "grad_alpha")]
        + [(name, c_void_p) for name in ("grad_beta", "grad_divergence", "grad_continuity")]
        + [("of_bases", c_float), ("of_steps", c_float), ("grad_logits", Channels), ("grad_signals", Channels)]
        + [("grad_sums", c_void_p)]
    )


class EmulatedMask:
    """`forward` and `backward` of kernels/beta_mask/cuda.py.

    checked: every access of a kernel is watched, see tests/emulator/memory_checks.h; slower.
    """

    def __init__(self, checked: bool = False, sources: Path = SOURCES) -> None:
        self._checked = checked
        self._library = library(
            EMULATOR / "beta_mask.cpp", sources / "beta_mask" / "cuda" / "mask.cu", sources / "common" / "prior.cpp",
            sources=sources, defines=("SEQ2EXP_GRAIN=1",), checked=checked,
        )  # fmt: skip
        self._forward, self._backward = (
            entry(self._library, f"mask_{name}", POINTER(Mask)) for name in ("forward", "backward")
        )
        for name in ("mask_tiles", "mask_blocks"):
            getattr(self._library, name).argtypes, getattr(self._library, name).restype = (c_int64,), c_int64
        self._library.mask_prior.argtypes = (c_double, c_double, POINTER(c_float))
        self._library.mask_layout.restype = POINTER(c_int64)
        offsets = [getattr(Mask, name).offset for name, _ in Mask._fields_] + [ctypes.sizeof(Mask)]
        assert offsets == self._library.mask_layout()[: len(offsets)], "Mask is not laid out as GpuMask"

    def set_order(self, order: int) -> None:
        """0: blocks, warps and lanes run forward; 1: in reverse; above: in random orders from this seed."""
        self._library.emulator_set_order(order)

    def forward(
        self, seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, exclude: Tensor | None,
        include: Tensor | None, rows: Tensor, s: Settings,
    ) -> tuple[BetaMask, Saved, Tensor]:  # fmt: skip
        def kernel(selected: Tensor | None) -> list[Tensor]:
            outputs, shape = Outputs(), seq_logits.shape[:2]
            mask, soft, alpha, beta = (outputs.empty(shape) for _ in range(4))
            logit = outputs.empty(shape) if s.sample else torch.empty(0)
            marks = outputs.empty(shape, torch.uint8)
            a = self._mask(seq_logits, signals, weights, betas, s)
            sums, lowest = (outputs.empty((a.batch * a.tiles, 3)) for _ in range(2))
            a.hard, a.threshold, a.rows = s.hard, s.threshold, pointer(rows)
            a.key0, a.key1 = s.seed & 0xFFFFFFFF, s.seed >> 32 & 0xFFFFFFFF
            a.centre_begin = (a.length - s.center) // 2
            a.centre_end = a.centre_begin + s.center
            used = dict(
                exclude=exclude, include=include, selected=selected, mask=mask, soft=soft, alpha=alpha, beta=beta,
                logit=logit, marks=marks, sums=sums, lowest=lowest,
            )  # fmt: skip
            self._run(
                self._forward,
                a,
                outputs,
                used,
                logits=seq_logits,
                signals=signals,
                weights=weights,
                betas=betas,
                rows=rows,
            )
            return [mask, soft, alpha, beta, logit, marks, sums, lowest]

        return tiles.forward(kernel, s)

    def backward(
        self, grads: BetaMask, seq_logits: Tensor, signals: Tensor | None, weights: Tensor, betas: Tensor, saved: Saved,
        s: Settings, for_signals: bool, for_tracks: bool,
    ) -> list[Tensor]:  # fmt: skip
        outputs, a = Outputs(), self._mask(seq_logits, signals, weights, betas, s)
        results = [outputs.empty(seq_logits.shape, seq_logits.dtype)]
        a.grad_logits = Channels.of(results[0])
        if for_signals:
            results.append(outputs.empty(signals.shape, signals.dtype))
            a.grad_signals = Channels.of(results[1])
        bases = a.batch * a.length
        sums = outputs.empty((self._library.mask_blocks(bases), a.tracks + 2)) if for_tracks else None
        a.of_bases, a.of_steps = 1 / bases, 1 / (a.batch * (a.length + 1))
        names = ("grad_mask", "grad_soft", "grad_alpha", "grad_beta", "grad_divergence", "grad_continuity")
        used = dict(zip(names, (None if g is None else g.contiguous() for g in grads), strict=True))
        used |= dict(**saved._asdict(), grad_sums=sums)
        extra = {f"grad_{i}": x for i, x in enumerate(results)}
        self._run(
            self._backward, a, outputs, used, logits=seq_logits, signals=signals, weights=weights, betas=betas, **extra
        )
        results = results if sums is None else [*results, sums]
        return tiles.backward(results, signals, weights, betas, s, for_tracks)

    def _mask(self, logits: Tensor, signals: Tensor | None, weights: Tensor, betas: Tensor, s: Settings) -> Mask:
        one = s.rule == "product"
        a = Mask(
            batch=logits.shape[0], length=logits.shape[1], tiles=self._library.mask_tiles(logits.shape[1]),
            tracks=len(weights), logits=Channels.of(logits), signals=Channels.of(signals), weights=pointer(weights),
            betas=pointer(betas), minimum=s.beta_min + EPSILON, signal_scale=s.signal_scale, z_scale=s.z_scale,
            alpha_shift=s.beta_min * s.signal_scale + EPSILON - one, beta_shift=s.beta_min * s.signal_scale - one,
            sample=s.sample,
        )  # fmt: skip
        self._library.mask_prior(*s.prior, a.prior)
        return a

    def _run(
        self, function: Callable[..., None], a: Mask, outputs: Outputs, fields: dict[str, Tensor | None],
        **others: Tensor | None,
    ) -> None:  # fmt: skip
        for name, x in fields.items():
            setattr(a, name, pointer(x))
        run(self._library, self._checked, function, (a,), outputs, fields | others)
