"""How the compiled kernels see a tensor."""

from __future__ import annotations

from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """x (..., d) as (rows, d) with adjacent channels, rows at any stride; copied only where that needs it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
