"""The ops of seq2exp. They know tensors, not models. Always imported as `seq2exp.kernels`."""

from seq2exp.kernels.backend import backends, set_backend
from seq2exp.kernels.selective_scan import selective_scan

__all__ = ["backends", "selective_scan", "set_backend"]
