"""Random numbers as functions of what they are for: the same on every machine, whatever was drawn before."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one purpose and one step, epoch or row."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(items: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch takes its items."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(items, generator=generator).tolist()
