"""Mask-gated packing of selected bases."""

from seq2exp.kernels.gather.ops import pack_selected, unpack_selected
from seq2exp.kernels.gather.reference import Packed

__all__ = ["Packed", "pack_selected", "unpack_selected"]
