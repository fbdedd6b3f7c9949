"""The bidirectional Mamba mixer, and the residual block around it."""

from seq2exp.kernels.bimamba.block import bimamba_block
from seq2exp.kernels.bimamba.ops import bimamba
from seq2exp.kernels.bimamba.reference import ScanWeights

__all__ = ["ScanWeights", "bimamba", "bimamba_block"]
