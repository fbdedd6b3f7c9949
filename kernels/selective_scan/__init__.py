"""Selective state space scan, forward and backward."""

from seq2exp.kernels.selective_scan.ops import selective_scan

__all__ = ["selective_scan"]
