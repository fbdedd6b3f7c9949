"""The CUDA embed_bases on the CPU, under the emulator: kernels/embed/cuda.py for CPU tensors.

Every output starts as NaN, between guard bytes that are checked after each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_int, c_int64, c_void_p

import torch
from emulated_cuda import EMULATOR, SOURCES, entry, library
from emulated_op import pointer, run
from emulated_scan import SCALARS, Outputs
from torch import Tensor

from seq2exp.kernels.embed import cuda, native
from seq2exp.kernels.embed.bases import CODES, Bases, Grads, Wanted

ITEMS = 8  # kItems of csrc/common/items.h


class Embed(ctypes.Structure):
    """GpuEmbed of csrc/embed/cuda/embed.h."""

    _fields_ = (
        [(name, c_int64) for name in ("rows", "places", "length", "reciprocal")]
        + [("dim", c_int), ("tracks", c_int), ("complement", c_bool), ("vectors", c_bool)]
        + [(name, c_void_p) for name in ("codes", "table", "weight", "signals")]
        + [(name, c_int64) for name in ("signal_batch", "signal_time", "signal_track")]
        + [("positions", c_void_p), ("position_stride", c_int64), ("mask", c_void_p), ("indices", c_void_p)]
        + [("data", c_void_p), ("stride", c_int64), ("units", c_int64), ("batch", c_int64)]
        + [(name, c_void_p) for name in ("row_at", "sums", "dpositions", "dmask", "dsignals")]
    )


class EmulatedEmbed:
    """`forward` and `backward` of kernels/embed/cuda.py, for one dtype of the output.

    checked: every access of a kernel is watched, see tests/emulator/memory_checks.h; slower.
    """

    def __init__(self, dtype: torch.dtype, checked: bool = False) -> None:
        self._dtype, self._checked = dtype, checked
        self._library = library(
            EMULATOR / "embed.cpp",
            SOURCES / "embed" / "cuda" / f"embed_{str(dtype).removeprefix('torch.')}.cu",
            defines=(f"SCALAR={SCALARS[dtype]}",),
            checked=checked,
        )
        self._forward = entry(self._library, "embed_forward", POINTER(Embed), c_int)
        self._backward = entry(self._library, "embed_backward", POINTER(Embed), c_int)
        for name, *types in (
            ("reciprocal", c_int64), ("quotient", c_int64, c_int64), ("sum_parts", POINTER(Embed)),
        ):  # fmt: skip
            function = getattr(self._library, f"embed_{name}")
            function.restype, function.argtypes = c_int64, types
        self._library.embed_layout.restype = POINTER(c_int64)
        offsets = [getattr(Embed, name).offset for name, _ in Embed._fields_] + [ctypes.sizeof(Embed)]
        assert offsets == self._library.embed_layout()[: len(offsets)], "Embed is not laid out as GpuEmbed"

    def set_order(self, order: int) -> None:
        """0: blocks, warps and lanes run forward; 1: in reverse; above: in random orders from this seed."""
        self._library.emulator_set_order(order)

    def quotient(self, n: int, by: int) -> int:
        return self._library.embed_quotient(n, by)

    def forward(self, x: Bases, dtype: torch.dtype) -> Tensor:
        assert dtype == self._dtype
        outputs = Outputs()
        data = outputs.empty((x.out_shape[-2] if x.indices is not None else x.codes.numel(), x.out_shape[-1]), dtype)
        embed, used = self._embed(x, data)
        self._run(self._forward, embed, x, outputs, used)
        return data.view(x.out_shape)

    def backward(self, grad: Tensor, x: Bases, wanted: Wanted) -> Grads:
        outputs, data, row_at = Outputs(), native.rows(grad), native.inverse(x, wanted)
        embed, used = self._embed(x, data)
        (batch, length), d = x.codes.shape, embed.dim
        embed.units = length if wanted.positions else embed.rows
        places = (self._library.embed_channel_segments(d), batch, length)
        sums = outputs.empty((self._library.embed_sum_parts(embed), CODES + embed.tracks, d))
        dpositions = outputs.empty((length, d)) if wanted.positions else None
        dmask = outputs.empty(places) if wanted.mask else None
        dsignals = outputs.empty((*places, embed.tracks)) if wanted.signals else None
        for t in (dmask, dsignals):
            if t is not None and x.indices is not None:
                t.zero_()
        made = dict(sums=sums, dpositions=dpositions, dmask=dmask, dsignals=dsignals, row_at=row_at)
        for name, t in made.items():
            setattr(embed, name, pointer(t))
        self._run(self._backward, embed, x, outputs, used | made)
        return cuda.joined([t for t in (sums, dpositions, dmask, dsignals) if t is not None], x, wanted)

    def _embed(self, x: Bases, data: Tensor) -> tuple[Embed, dict[str, Tensor | None]]:
        """data: (rows, d). Also all tensors that the kernels read or write, which must stay alive."""
        names = ("codes", "table", "signals", "weight", "positions", "mask", "indices")
        used = dict(zip(names, native.arguments(x), strict=True)) | {"data": data}
        s, p = used["signals"], used["positions"]
        strides = (0, 0, 0) if s is None else s.stride()
        position_stride = 0 if p is None else p.stride(0)
        rows = [t for t in (used["table"], used["weight"], p, data) if t is not None]
        vectors = data.shape[1] % ITEMS == 0 and data.stride(0) * data.itemsize % 16 == 0 and position_stride % 4 == 0
        embed = Embed(
            rows=data.shape[0], places=x.codes.numel(), length=x.codes.shape[1],
            reciprocal=self._library.embed_reciprocal(x.codes.shape[1]), dim=data.shape[1],
            tracks=0 if s is None else s.shape[2], complement=x.complement,
            vectors=vectors and all(t.data_ptr() % 16 == 0 for t in rows), signal_batch=strides[0],
            signal_time=strides[1], signal_track=strides[2], position_stride=position_stride, stride=data.stride(0),
            batch=x.codes.shape[0], **{name: None if t is None else t.data_ptr() for name, t in used.items()},
        )  # fmt: skip
        return embed, used

    def _run(
        self, function: Callable[..., None], embed: Embed, x: Bases, outputs: Outputs, used: dict[str, Tensor | None]
    ) -> None:
        signals = used["signals"]
        storage = 0 if signals is None else list(SCALARS).index(signals.dtype)
        run(self._library, self._checked, function, (embed, storage), outputs, used)
