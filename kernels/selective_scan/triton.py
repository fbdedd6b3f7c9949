"""The Triton implementation: launches of the kernels in triton_kernels.py. Needs the package triton.

Runs on CUDA tensors, or with TRITON_INTERPRET=1 on CPU tensors.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from triton import cdiv

from seq2exp.kernels.selective_scan import triton_kernels as kernels
from seq2exp.kernels.selective_scan import triton_tiles as tiles

CHUNK = tiles.TILE.value
FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 512, 1024  # with fewer, L is cut into segments
FORWARD_REGISTERS, BACKWARD_REGISTERS = 128, 255  # declared, because ptxas by itself spills one or two to save a few
CARRY_SEGMENTS, CARRY_ELEMENTS = 16, 32  # block of the carry kernel
LOG2E = tiles.LOG2E.value
WARPS = 4  # of a program, unless tuned
TUNING = (2, 4, 8)  # numbers of warps worth trying
_warps = WARPS


def tune(warps: int | None) -> None:
    """Use another number of warps; None: the default."""
    global _warps
    _warps = warps or WARPS


def chunk_length(length: int) -> int:
    """Positions between saved states."""
    return CHUNK


def states_shape(batch: int, dim: int, state: int, length: int, n_sequences: int | None) -> list[int]:
    """Shape of the saved states: the one that enters each tile of each sequence. Tiles start at multiples of CHUNK."""
    tiles = cdiv(length, CHUNK)
    return [batch * tiles if n_sequences is None else tiles + n_sequences, dim, state]


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (batch, dim, L) with u's dtype and strides, last state and chunk-boundary states (float32).

    u, delta, z: (batch, dim, L) of one dtype (float32, bfloat16, float16), any strides. A: (dim, state) float32.
    B, C: (batch, groups, state, L), float32, bfloat16 or float16, any strides; their groups may differ.
    D, delta_bias: (dim,) float32. cu_seqlens: int64 (sequences + 1,).
    """
    scan = Scan.of(None, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens)
    states = scan.new_states()
    out, carry = scan.forward(states)
    return _like(u, out), carry[:, -1].contiguous(), states


def backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, states: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """du, ddelta, dA, dB, dC, dD, dz, ddelta_bias; None for absent inputs. The same bits every time.

    du, ddelta and dz have the dtypes and strides of their inputs; dA, dD, ddelta_bias are float32; dB and dC are
    contiguous, in the dtypes of B and C.
    """
    scan = Scan.of(grad_out, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens)
    du, ddelta, dA, dB, dC, dD, dz, dbias, _ = scan.backward(states)
    return _like(u, du), _like(delta, ddelta), dA, dB, dC, dD, None if z is None else _like(z, dz), dbias


@dataclass(frozen=True)
class Scan:
    """The inputs as the kernels take them, their launches, and how the work is cut, which depends on shapes alone."""

    grad: Tensor | None  # None: forward
    u: Tensor
    delta: Tensor
    A2: Tensor  # log2(e) A: decays are powers of 2
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    softplus: bool
    reverse: bool
    cu_seqlens: Tensor | None
    dt_proj: Tensor | None  # (dim, rank): then delta is (batch, rank, L)
    add: Tensor | None  # (batch, dim, L): the output is (y + add) silu(z)

    @classmethod
    def of(
        cls, grad: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, bias: Tensor | None, softplus: bool, reverse: bool, cu_seqlens: Tensor | None,
        dt_proj: Tensor | None = None, add: Tensor | None = None,
    ) -> Scan:  # fmt: skip
        """Copies what is neither adjacent nor constant along L. No copy is larger than the gradient of its original."""
        grad, u, delta, z, add = (adjacent(x) for x in (grad, u, delta, z, add))
        B, C = (x if _constant(x) else adjacent(x) for x in (B, C))
        D, bias, cu_seqlens, dt_proj = (None if x is None else x.contiguous() for x in (D, bias, cu_seqlens, dt_proj))
        A2 = A.contiguous() * LOG2E
        return cls(grad, u, delta, A2, B, C, D, z, bias, softplus, reverse, cu_seqlens, dt_proj, add)

    def new_states(self) -> Tensor:
        n_sequences = None if self.cu_seqlens is None else self.sequences
        shape = states_shape(*self.u.shape[:2], self.A2.shape[1], self.u.shape[2], n_sequences)
        return self.A2.new_zeros(shape)

    def forward(self, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output, contiguous, and the states that leave the segments. Fills `states`."""
        _, dim, length = self.u.shape
        out = _contiguous_like(self.u)
        with device_of(self.u):
            carry = self.carry()
            kernels.selective_scan_fwd_kernel[(self.sequences * self.segments * self.blocks,)](
                self.u, self.delta, self.dt_proj, self.A2, self.B, self.C, self.D, self.z, self.add, self.bias,
                self.cu_seqlens, out, states, carry,
                *self.strides(self.u, self.delta, self.z, self.add, self.B, self.C),
                length, dim, self.rank, self.A2.shape[1], self.segments, self.blocks, self.joint_groups,
                self.channels(self.B), self.channels(self.C),
                CONSTANT_B=_constant(self.B), CONSTANT_C=_constant(self.C), maxnreg=FORWARD_REGISTERS, **self.options,
            )  # fmt: skip
        return out, carry

    def backward(self, states: Tensor, gate: bool = True, output: bool = False) -> tuple[Tensor | None, ...]:
        """du, ddelta, dA, dB, dC, dD, dz, ddelta_bias and output, contiguous; None for absent inputs.

        ddelta: with dt_proj that of dt_proj delta. Without `gate` there is no dz. The output is returned if asked for:
        (y + add) silu(z), without `gate` y + add.
        """
        _, dim, length = self.u.shape

        def parts(x: Tensor | None) -> Tensor | None:
            """A sum for each sequence and segment."""
            return None if x is None else x.new_zeros(self.sequences * self.segments, *x.shape)

        du, ddelta = _contiguous_like(self.u), _contiguous_like(self.u)
        dz = _contiguous_like(self.u) if gate and self.z is not None else None
        y = _contiguous_like(self.u) if output else None
        dA, dD, dbias = parts(self.A2), parts(self.D), parts(self.bias)
        dB, dC = (torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in (self.B, self.C))
        with device_of(self.u):
            carry = self.carry()
            kernels.selective_scan_bwd_kernel[(self.sequences * self.segments * self.closed_groups,)](
                self.grad, self.u, self.delta, self.dt_proj, self.A2, self.B, self.C, self.D, self.z, self.add,
                self.bias, self.cu_seqlens, states, carry, du, ddelta, dA, dB, dC, dD, dz, dbias, y,
                *self.strides(self.grad, self.u, self.delta, self.z, self.add, self.B, self.C),
                length, dim, self.rank, self.A2.shape[1], self.segments, self.closed_groups, self.blocks,
                self.joint_groups, self.channels(self.B), self.channels(self.C),
                CONSTANT_B=_constant(self.B), CONSTANT_C=_constant(self.C), maxnreg=BACKWARD_REGISTERS, **self.options,
            )  # fmt: skip
        dA, dD, dbias = (None if x is None else x.sum(0) for x in (dA, dD, dbias))
        return du, ddelta, dA, dB.to(self.B.dtype), dC.to(self.C.dtype), dD, dz, dbias, y

    @property
    def sequences(self) -> int:
        return self.u.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def rank(self) -> int:
        return 0 if self.dt_proj is None else self.dt_proj.shape[1]

    @property
    def joint_groups(self) -> int:
        """Runs of channels that share both B and C."""
        return math.lcm(self.B.shape[1], self.C.shape[1])

    @property
    def closed_groups(self) -> int:
        """Runs of channels that share neither B nor C with any other."""
        return math.gcd(self.B.shape[1], self.C.shape[1])

    @property
    def blocks(self) -> int:
        """Blocks of channels, none of which reaches over two joint groups."""
        return self.joint_groups * cdiv(self.u.shape[1] // self.joint_groups, _warps)

    @property
    def segments(self) -> int:
        """Parts of L that run side by side."""
        programs, wanted = (
            (self.blocks, FORWARD_PROGRAMS) if self.grad is None else (self.closed_groups, BACKWARD_PROGRAMS)
        )
        return min(cdiv(wanted, programs * self.sequences), cdiv(self.u.shape[2], CHUNK))

    @cached_property
    def quads(self) -> bool:
        """Are all rows read four elements at a time?"""
        tensors = (self.grad, self.u, self.delta, self.z, self.add, self.B, self.C)
        return self.u.shape[2] % 4 == 0 and all(in_quads(x) for x in tensors if x is not None and not _constant(x))

    @property
    def options(self) -> dict[str, Any]:
        return {
            "SOFTPLUS": self.softplus, "REVERSE": self.reverse, "QUADS": self.quads, "W": _warps, "num_warps": _warps,
        }  # fmt: skip

    def strides(self, *tensors: Tensor | None) -> list[int]:
        """Of all dimensions but L, in quads where rows are read as such; of an absent (batch, dim, L) tensor 0."""
        found: list[int] = []
        for x in tensors:
            unit = 4 if self.quads and x is not None and not _constant(x) else 1
            found += [0, 0] if x is None else [step // unit for step in steps(x)]
        return found

    def channels(self, x: Tensor) -> int:
        """Channels of a group of B or C."""
        return self.u.shape[1] // x.shape[1]

    def carry(self) -> Tensor:
        """(sequences, segments, dim, state) float32: the states that enter the segments, backward the adjoints."""
        backward = self.grad is not None
        dim, state = self.A2.shape
        carry = self.A2.new_zeros(self.sequences, self.segments, dim, state)
        if self.segments == 1:
            return carry
        ends, sums = torch.zeros_like(carry), torch.empty_like(carry[..., 0])
        value, z, P = (self.grad, self.z, self.C) if backward else (self.u, None, self.B)
        kernels.selective_scan_segment_kernel[(self.sequences * self.segments * self.blocks,)](
            value, z, self.delta, self.dt_proj, self.A2, P, self.bias, self.cu_seqlens, ends, sums,
            *self.strides(value, z, self.delta, P),
            self.u.shape[2], dim, self.rank, state, self.segments, self.blocks, self.joint_groups, self.channels(P),
            CONSTANT=_constant(P), BACKWARD=backward, maxnreg=FORWARD_REGISTERS, **self.options,
        )  # fmt: skip
        elements = cdiv(dim * state, CARRY_ELEMENTS)
        kernels.selective_scan_carry_kernel[(self.sequences * elements,)](
            self.A2, ends, sums, carry, dim, state, self.segments, elements,
            BS=CARRY_SEGMENTS, BE=CARRY_ELEMENTS, BACKWARD=backward, num_warps=1,
        )  # fmt: skip
        return carry


def adjacent(x: Tensor | None) -> Tensor | None:
    """x, or a copy of it, with the positions of a row next to each other."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def in_quads(x: Tensor) -> bool:
    """Do all rows start at multiples of four elements?"""
    return x.data_ptr() % 16 == 0 and all(step % 4 == 0 for step in steps(x))


def _constant(x: Tensor) -> bool:
    """Is x the same along L?"""
    return x.stride(-1) == 0


def steps(x: Tensor) -> list[int]:
    """Strides of all dimensions but the last; of one of size 1 it does not matter."""
    return [step if size > 1 else 0 for size, step in zip(x.shape[:-1], x.stride()[:-1], strict=True)]


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _like(x: Tensor, rows: Tensor) -> Tensor:
    """rows with the strides that torch.empty_like(x) has."""
    strides = torch.empty_like(x, device="meta").stride()
    return rows if strides == rows.stride() else torch.empty_like(x).copy_(rows)


def device_of(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
