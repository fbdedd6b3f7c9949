"""Enformer (Avsec et al., Nature Methods 2021), as the baseline of Seq2Exp has it: trained from scratch on expression.

The trunk is that of the package enformer-pytorch (`pip install 'seq2exp[enformer]'`). It reads the sequence alone.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor

from seq2exp.baselines.base import Baseline, Inputs
from seq2exp.config import Size, WindowFields
from seq2exp.errors import UserError
from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.model import ExpressionHead
from seq2exp.strands import one_hot

BIN = 128  # bases
MOST_BINS, CUT_BINS = 1_536, 320  # 196,608 bases, of which the trunk cuts 40,960 from each end


class EnformerConfig(WindowFields):
    """dim, depth, heads: of the trunk. d_model: hidden width of the head."""

    dim: Size = 1_536
    depth: Size = 11
    heads: Size = 8
    d_model: Size = 128

    @model_validator(mode="after")
    def _fits_the_trunk(self) -> Self:
        if self.dim % 2 or self.dim % self.heads or self.dim // self.heads % 6:
            raise ValueError(f"dim is {self.dim} with {self.heads} heads: it must be a multiple of 6 * heads, and even")
        if self.length < BIN:
            raise ValueError(f"length is {self.length}: Enformer works in bins of {BIN} bases, it needs at least one")
        return self

    @property
    def bins(self) -> int:
        """Bins that are read: the middle 196,608 bases, or what the window has."""
        return min(self.length // BIN, MOST_BINS)


class Enformer(Baseline):
    """The trunk on the middle of the window, the mean over its bins, the head of Seq2Exp.

    Raises
    ------
    UserError: enformer-pytorch is not installed.
    """

    config_class = EnformerConfig
    config: EnformerConfig

    def __init__(self, config: EnformerConfig) -> None:
        super().__init__()
        self.config = config
        kept = config.bins - 2 * (config.bins * CUT_BINS // MOST_BINS)
        made = _trunk_class().from_hparams(
            dim=config.dim, depth=config.depth, heads=config.heads, output_heads={}, target_length=kept,
            dim_divisible_by=math.gcd(BIN, config.dim // 2),
        )  # fmt: skip
        self.trunk = made.trunk  # one-hot (batch, bases, 4) -> (batch, kept, 2 * dim)
        self.head = ExpressionHead(2 * config.dim, config.gene_features, config.d_model)

    def hidden(self, batch: Inputs) -> Tensor:
        middle = batch.sequence[:, centre_slice(self.config.length, self.config.bins * BIN)]
        return self.trunk(middle if middle.is_floating_point() else one_hot(middle, torch.float32))


def _trunk_class() -> Any:
    try:
        from enformer_pytorch import Enformer as Trunk
    except ImportError as error:
        raise UserError(
            f"the Enformer baseline needs the package enformer-pytorch ({error}): pip install 'seq2exp[enformer]'"
        ) from None
    return Trunk
