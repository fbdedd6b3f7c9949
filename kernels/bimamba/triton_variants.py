"""Variants of the mixer's Triton kernels, compiled ahead of time; see `selective_scan/triton_variants.py`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from seq2exp.kernels.bimamba import triton as launches
from seq2exp.kernels.bimamba import triton_kernels as kernels
from seq2exp.kernels.selective_scan import triton as scan
from seq2exp.kernels.selective_scan import triton_kernels as scan_kernels
from seq2exp.kernels.selective_scan.triton_variants import FLOATS, Variant

TYPES = ("fp32", "bf16")
TAPS = {f"{x}_{way}" for x in ("weight", "bias", "dweight", "dbias") for way in ("fwd", "rev")}
# what a mixer does without
FORWARD = {"first": {"z", "add"}, "second": set(), "inference": {"z", "add", "states"}}
BACKWARD = {"open": {"add", "dz"}, "closing": set()}


def variants() -> Iterator[Variant]:
    """Rows read in quads and dense, or value by value, packed and reverse."""
    for dtype, odd in product(TYPES, (False, True)):
        for name, absent in FORWARD.items():
            yield _scan("fwd", name, absent, dtype, odd)
        for name, absent in BACKWARD.items():
            yield _scan("bwd", name, absent, dtype, odd)
        yield _scan("segment fwd", "", {"z"}, dtype, odd)
        yield _scan("segment bwd", "", set(), dtype, odd)
        for way in ("fwd", "bwd"):
            yield _convolution(way, dtype, odd)


def _scan(kernel: str, name: str, absent: set[str], dtype: str, odd: bool) -> Variant:
    segment = kernel.startswith("segment")
    constants = {"SOFTPLUS": True, "REVERSE": odd, "QUADS": not odd, "W": scan.WARPS}
    constants |= {"CONSTANT": False} if segment else {"CONSTANT_B": False, "CONSTANT_C": False}
    if segment:
        constants["BACKWARD"] = kernel.endswith("bwd")
    registers = scan.BACKWARD_REGISTERS if kernel == "bwd" else scan.FORWARD_REGISTERS
    return Variant.of(
        f"mixer {kernel} {name}".strip(), dtype, "packed odd reverse" if odd else "all",
        getattr(scan_kernels, f"selective_scan_{kernel.split()[0]}_kernel"), FLOATS, constants,
        absent | (set() if odd else {"cu_seqlens"}), scan.WARPS, registers,
    )  # fmt: skip


def _convolution(way: str, dtype: str, odd: bool) -> Variant:
    constants = {"WIDTH_FWD": 4, "WIDTH_REV": 4, "QUADS": not odd, "W": launches.WARPS}
    return Variant.of(
        f"convolution {way}", dtype, "packed odd" if odd else "all", getattr(kernels, f"bimamba_conv_{way}_kernel"),
        TAPS, constants, set() if odd else {"cu_seqlens"}, launches.WARPS,
        launches.BACKWARD_REGISTERS if way == "bwd" else launches.FORWARD_REGISTERS,
    )  # fmt: skip
