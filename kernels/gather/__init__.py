"""Mask-gated packing of selected bases."""

from seq2exp.kernels.gather.ops import Packed, Selection, check_capacity, pack_selected, select, unpack_selected

__all__ = ["Packed", "Selection", "check_capacity", "pack_selected", "select", "unpack_selected"]
