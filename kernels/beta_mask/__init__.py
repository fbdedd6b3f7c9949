"""The Beta mask."""

from seq2exp.kernels.beta_mask.ops import beta_mask
from seq2exp.kernels.beta_mask.settings import BetaMask

__all__ = ["BetaMask", "beta_mask"]
