"""The parts of a mixer in Triton: see `direction.py`. Needs the package triton.

The scan is that of the op `selective_scan`, whose kernels form the step sizes from `low` and `dt_proj`. Runs on CUDA
tensors, or with TRITON_INTERPRET=1 on CPU tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import cdiv

from seq2exp.kernels.bimamba import triton_kernels as kernels
from seq2exp.kernels.bimamba.direction import ConvolutionGrads, Direction, DirectionGrads, Taps
from seq2exp.kernels.selective_scan import triton as launches
from seq2exp.kernels.selective_scan.triton import Scan, adjacent, device_of, in_quads, steps

CHANNELS_LAST = False
states_shape = launches.states_shape
WARPS = 4  # of a program of the convolution, which has as many channels
MOST_TILES, PROGRAMS = 16, 4096  # of a program, unless there are fewer programs
FORWARD_REGISTERS, BACKWARD_REGISTERS = 128, 168


def scan(d: Direction, save_states: bool = True) -> tuple[Tensor, Tensor]:
    """out (batch, dim, L), contiguous, and chunk states, float32; empty unless `save_states`."""
    inputs = _inputs(None, d)
    states = inputs.new_states() if save_states else None
    out, _ = inputs.forward(states)
    return out, d.A.new_empty(0) if states is None else states


def scan_backward(grad: Tensor, d: Direction, states: Tensor, closing: bool) -> DirectionGrads:
    """See `DirectionGrads`. All contiguous, the same bits every time."""
    inputs = _inputs(grad, d if closing else d._replace(add=None))
    du, ddelta, dA, dB, dC, dD, dz, dbias, y = inputs.backward(states, gate=closing, output=True)
    return DirectionGrads(du, ddelta, dA, dB[:, 0], dC[:, 0], dD, dbias, y, dz)


def convolve(
    x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """silu of the causal (fwd) and the anti-causal (rev) depthwise convolution of x (batch, dim, L), contiguous.

    Neither looks across a boundary of cu_seqlens. None for an absent direction.
    """
    inputs = _Convolution(adjacent(x), fwd, rev, cu_seqlens)
    outs = [None if taps is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for taps in (fwd, rev)]
    inputs.launch(kernels.bimamba_conv_fwd_kernel, [], outs, FORWARD_REGISTERS)
    return outs[0], outs[1]


def convolve_backward(
    x: Tensor, grad_fwd: Tensor | None, grad_rev: Tensor | None, fwd: Taps | None, rev: Taps | None,
    cu_seqlens: Tensor | None,
) -> ConvolutionGrads:  # fmt: skip
    """Gradients of `convolve`, which is recomputed. x's is contiguous; the same bits every time."""
    inputs = _Convolution(adjacent(x), fwd, rev, cu_seqlens)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = [
        None if t is None else t.new_empty(x.shape[0] * inputs.parts, *t.shape)
        for taps in (fwd, rev)
        for t in taps or (None,) * 2
    ]
    grads = [adjacent(grad_fwd), adjacent(grad_rev)]
    inputs.launch(kernels.bimamba_conv_bwd_kernel, grads, [dx, *parts], BACKWARD_REGISTERS)
    sums = [None if t is None else t.sum(0) for t in parts]
    return ConvolutionGrads(dx, *(None if w is None else Taps(w, b) for w, b in (sums[:2], sums[2:])))


@dataclass(frozen=True)
class _Convolution:
    """The inputs of both kernels, and how the work is cut, which depends on shapes alone."""

    x: Tensor
    fwd: Taps | None
    rev: Taps | None
    cu_seqlens: Tensor | None

    @property
    def sequences(self) -> int:
        return 0 if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def tiles(self) -> int:
        """Of a row; of packed sequences the pairs of a sequence and a tile, at most one more for each than tiles."""
        return cdiv(self.x.shape[2], launches.CHUNK) + self.sequences

    @property
    def blocks(self) -> int:
        return cdiv(self.x.shape[1], WARPS)

    @property
    def per_part(self) -> int:
        """Tiles that a program takes."""
        return max(1, min(self.x.shape[0] * self.tiles * self.blocks // PROGRAMS, MOST_TILES))

    @property
    def parts(self) -> int:
        """Programs that share a row of channels."""
        return cdiv(self.tiles, self.per_part)

    def launch(self, kernel: Any, grads: list[Tensor | None], results: list[Tensor | None], registers: int) -> None:
        quads = self.x.shape[2] % 4 == 0 and all(in_quads(t) for t in (self.x, *grads) if t is not None)
        strides = [
            step // (4 if quads else 1) for t in (self.x, *grads) for step in ((0, 0) if t is None else steps(t))
        ]
        taps = [*(self.fwd or (None, None)), *(self.rev or (None, None))]
        widths = [0 if weight is None else weight.shape[1] for weight in taps[::2]]
        with device_of(self.x):
            kernel[(self.x.shape[0] * self.parts * self.blocks,)](
                self.x, *grads, *taps, self.cu_seqlens, *results, *strides,
                self.x.shape[2], self.x.shape[1], self.sequences, self.tiles, self.parts, self.per_part,
                self.blocks,
                WIDTH_FWD=widths[0], WIDTH_REV=widths[1], QUADS=quads, W=WARPS, num_warps=WARPS, maxnreg=registers,
            )  # fmt: skip


def _inputs(grad: Tensor | None, d: Direction) -> Scan:
    return Scan.of(
        grad, d.u, d.low, d.A, d.B[:, None], d.C[:, None], d.D, d.z, d.dt_bias, True, d.reverse, d.cu_seqlens,
        d.dt_proj, d.add,
    )  # fmt: skip
