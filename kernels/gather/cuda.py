"""The CUDA C++ implementation (csrc/gather/cuda), loaded by seq2exp.kernels._extension.

The native ops have the same names and arguments on the CPU and on a GPU.
"""

from seq2exp.kernels.gather.native import pack_backward, pack_forward, select, unpack_backward, unpack_forward

__all__ = ["pack_backward", "pack_forward", "select", "unpack_backward", "unpack_forward"]
