"""Residual add, RMSNorm and gate in one pass."""

from seq2exp.kernels.add_norm.ops import add_norm

__all__ = ["add_norm"]
