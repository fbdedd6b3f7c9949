"""The bidirectional Mamba mixer."""

from seq2exp.kernels.bimamba.ops import bimamba
from seq2exp.kernels.bimamba.reference import ScanWeights

__all__ = ["ScanWeights", "bimamba"]
