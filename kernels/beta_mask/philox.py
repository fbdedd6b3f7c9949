"""Philox4x32-10, the counter-based generator of Salmon et al. 2011 (Random123), in plain PyTorch.

A draw is a pure function of (seed, row, position, draw number), so a mask does not depend on the batch layout, on
ranks or on threads, and a kernel can make the same bits without any state.
"""

from __future__ import annotations

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four uint32 words of a counter (broadcastable) and a key pair; tensors are int64 and hold uint32 values."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _multiply(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit product of a uint32 tensor and a uint32 constant, without overflow in int64."""
    low = x * (m & 0xFFFF)  # below 2^48
    high = x * (m >> 16) + (low >> 16)  # below 2^49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def uniform(word: Tensor) -> Tensor:
    """A uint32 word as a float64 in (0, 1): the middle of one of 2^23 cells, so exact in float32 too."""
    return ((word >> 9).double() + 0.5) * 2.0**-23
