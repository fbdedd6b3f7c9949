"""Variants of the Triton kernels, compiled ahead of time where no GPU is: registers, spills, instructions.

Not in a process with TRITON_INTERPRET set, where the kernels are plain Python.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from seq2exp.kernels.selective_scan import triton as launches
from seq2exp.kernels.selective_scan import triton_kernels as kernels

TYPES = ("fp32", "bf16", "fp16")
# float32 always; the rest has the storage type
FLOATS = {"A2", "D", "bias", "dt_proj", "states", "carry", "ends", "sums", "dA", "dB", "dC", "dD", "dbias"}
MIXER = {"dt_proj", "add", "y"}  # arguments that only a mixer has
OPTIONS: dict[str, dict[str, bool]] = {
    "all": {},
    "odd reverse": {"quads": False, "reverse": True},
    "packed": {"packed": True},
    "packed odd reverse": {"packed": True, "quads": False, "reverse": True},
    "bare": {"optional": False},
    "constant B C": {"constant": True},
}


@dataclass(frozen=True)
class Variant:
    """A kernel, the types of its arguments (those absent are constants None) and how it is launched.

    kernel: "fwd", "bwd", "segment fwd", "segment bwd", "carry fwd" or "carry bwd". dtype: storage of u, delta, z, B, C.
    options: a key of OPTIONS; with D, z, delta_bias and softplus unless "bare", with quads unless "odd".
    """

    kernel: str
    dtype: str
    options: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    launch: dict[str, int]

    @classmethod
    def of(
        cls, kernel: str, dtype: str, options: str, function: Any, floats: set[str], constants: dict[str, Any],
        absent: set[str], warps: int, registers: int | None,
    ) -> Variant:  # fmt: skip
        """floats: arguments of float32 tensors, absent: those that are None, as far as the kernel has them."""

        def kind(parameter: Any) -> str:
            if parameter.do_not_specialize:
                return parameter.annotation_type or "i32"
            name = parameter.name
            return "*i64" if name == "cu_seqlens" else "*fp32" if name in floats else f"*{dtype}"

        constants = constants | dict.fromkeys(set(function.arg_names) & absent)
        signature = {p.name: kind(p) for p in function.params if p.name not in constants}
        launch = {"num_warps": warps} | ({} if registers is None else {"maxnreg": registers})
        return cls(kernel, dtype, options, function, signature, constants, launch)

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.dtype} {self.options}"

    def compile(self, architecture: int) -> CompiledKernel:
        """architecture: 80 or 90. `asm["cubin"]` of the result is the machine code."""
        names = self.function.arg_names
        pointers = [name for name, kind in self.signature.items() if kind.startswith("*")]
        source = ASTSource(
            fn=self.function,
            signature=self.signature | dict.fromkeys(self.constants, "constexpr"),
            constexprs={(names.index(name),): value for name, value in self.constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
        )
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=self.launch)


def variants() -> Iterator[Variant]:
    """Every kernel for every storage type and every entry of OPTIONS."""
    for backward in (False, True):
        yield _carry(backward)
    for dtype, options in product(TYPES, OPTIONS):
        for kernel in ("fwd", "segment fwd", "segment bwd", "bwd"):
            yield _scan(kernel, dtype, options, **OPTIONS[options])


def _scan(
    kernel: str, dtype: str, options: str, *, optional: bool = True, packed: bool = False, quads: bool = True,
    reverse: bool = False, constant: bool = False,
) -> Variant:  # fmt: skip
    segment = kernel.startswith("segment")
    function = getattr(kernels, f"selective_scan_{kernel.split()[0]}_kernel")
    constants: dict[str, Any] = {"SOFTPLUS": optional, "REVERSE": reverse, "QUADS": quads, "W": launches.WARPS}
    constants |= {"CONSTANT": constant} if segment else {"CONSTANT_B": constant, "CONSTANT_C": constant}
    if segment:
        constants["BACKWARD"] = kernel.endswith("bwd")
    absent = set() if packed else {"cu_seqlens"}
    absent |= MIXER
    absent |= set() if optional else {"D", "z", "bias", "dD", "dz", "dbias"}
    absent |= {"z"} if kernel == "segment fwd" else set()
    registers = launches.BACKWARD_REGISTERS if kernel == "bwd" else launches.FORWARD_REGISTERS
    return Variant.of(kernel, dtype, options, function, FLOATS, constants, absent, launches.WARPS, registers)


def _carry(backward: bool) -> Variant:
    constants = {"BS": launches.CARRY_SEGMENTS, "BE": launches.CARRY_ELEMENTS, "BACKWARD": backward}
    kernel = "carry bwd" if backward else "carry fwd"
    return Variant.of(kernel, "fp32", "all", kernels.selective_scan_carry_kernel, FLOATS, constants, set(), 1, None)


def tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm, which come with Triton."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """registers (a thread), spilled (bytes of stack a thread), shared (bytes a program)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool("cuobjdump"), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return {
        "registers": usage["REG"],
        "spilled": usage["STACK"] + usage["LOCAL"],
        "shared": compiled.metadata.shared,
    }
