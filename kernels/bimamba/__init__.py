"""The bidirectional Mamba mixer, the residual block around it, and the mixer of one direction with its convolution."""

from seq2exp.kernels.bimamba.block import bimamba_block
from seq2exp.kernels.bimamba.ops import bimamba
from seq2exp.kernels.bimamba.reference import ScanWeights
from seq2exp.kernels.bimamba.single import causal_convolution, mamba

__all__ = ["ScanWeights", "bimamba", "bimamba_block", "causal_convolution", "mamba"]
