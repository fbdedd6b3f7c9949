"""How the compiled kernels see a tensor."""

from __future__ import annotations

from torch import Tensor

MOST_CHANNELS = 4096  # of the GPU kernels, which hold a row in the registers of one block


def rows(x: Tensor) -> Tensor:
    """x (..., d) as (rows, d) with adjacent channels, rows at any stride; copied only where that needs it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def check_channels(x: Tensor, backend: str) -> int:
    """The channels of x, or a ValueError where they are too many."""
    d = x.shape[-1]
    if d > MOST_CHANNELS:
        raise ValueError(
            f"add_norm: the {backend} kernels take at most {MOST_CHANNELS} channels, got {d}; "
            "use set_backend('reference')"
        )
    return d
