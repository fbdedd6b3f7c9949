"""The Triton implementation: launches of the kernels in triton_kernels.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from seq2exp.kernels.embed import cuda, native
from seq2exp.kernels.embed import triton_kernels as kernels
from seq2exp.kernels.embed.bases import CODES, Bases, Grads, Wanted

ELEMENTS = 2048  # of a tile of the forward, and of the sums that a program of the backward holds
SEGMENT = 256  # channels of a tile at most
ROWS = 16  # of a tile of the backward
PROGRAMS, MOST_TILES = 1024, 64  # of the backward: as many programs as keep a GPU busy, of so many tiles at most


def forward(x: Bases, dtype: torch.dtype) -> Tensor:
    """See reference.py; on CUDA tensors, or on the CPU in the interpreter."""
    out = x.table.new_empty(x.out_shape, dtype=dtype)
    given, options = inputs(x, SEGMENT)
    n_rows, rows = out.numel() // out.shape[-1], ELEMENTS // options["BD"]
    with _device_of(x.codes):
        kernels.embed_fwd_kernel[(cdiv(n_rows, rows) * options["SEGMENTS"],)](
            *given, out, *strides(given), n_rows, x.codes.numel(), x.codes.shape[1], **options, ROWS=rows
        )
    return out


def backward(grad: Tensor, x: Bases, wanted: Wanted) -> Grads:
    """See reference.py. The same bits in every run."""
    (batch, length), d, places = x.codes.shape, x.table.shape[1], x.codes.numel()
    tracks = 0 if x.signals is None else x.signals.shape[2]
    features = max(16, next_power_of_2(CODES + tracks))
    given, options = inputs(x, min(SEGMENT, ELEMENTS // features))
    dy, row_at = native.rows(grad), native.inverse(x, wanted)
    units, of_unit = (length, batch) if wanted.positions else (len(dy), 1)
    tiles = min(MOST_TILES, cdiv(units, PROGRAMS * ROWS))
    parts = cdiv(units, ROWS * tiles)
    zeros_or_empty = x.table.new_empty if x.indices is None else x.table.new_zeros
    sums = x.table.new_empty(parts, CODES + tracks, d)
    dpositions = x.table.new_empty(length, d) if wanted.positions else None
    dmask = zeros_or_empty(options["SEGMENTS"], batch, length) if wanted.mask else None
    dsignals = zeros_or_empty(options["SEGMENTS"], batch, length, tracks) if wanted.signals else None
    with _device_of(x.codes):
        kernels.embed_bwd_kernel[(parts * options["SEGMENTS"],)](
            dy, *given, row_at, sums, dpositions, dmask, dsignals, dy.stride(0), *strides(given), units, of_unit, tiles,
            places, length, **options, ROWS=ROWS, FEATURES=features,
        )  # fmt: skip
    return cuda.joined([t for t in (sums, dpositions, dmask, dsignals) if t is not None], x, wanted)


def inputs(x: Bases, segment: int) -> tuple[tuple[Tensor | None, ...], dict[str, int]]:
    """The tensors that both kernels read, and what they are compiled for. segment: channels of a tile at most."""
    d = x.table.shape[1]
    block = max(16, min(segment, next_power_of_2(d)))
    tracks = 0 if x.signals is None else x.signals.shape[2]
    return native.arguments(x), dict(d=d, TRACKS=tracks, COMPLEMENT=x.complement, SEGMENTS=cdiv(d, block), BD=block)


def strides(given: tuple[Tensor | None, ...]) -> tuple[int, int, int, int]:
    """Of the signals, and from one position to the next."""
    _, _, signals, _, positions, *_ = given
    return *((0, 0, 0) if signals is None else signals.stride()), 0 if positions is None else positions.stride(0)


def _device_of(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
