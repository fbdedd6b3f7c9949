"""The static figures of the Triton kernels: the launches of the op on meta tensors, compiled instead of started."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import sass
import torch
from sass import LoopTree, SassError
from sass_graph import STEP
from scan_trips import Problem
from static_report import TORCH, TORCH_INSTRUCTIONS, Op, Variant
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

from seq2exp.kernels.selective_scan import triton as scan
from seq2exp.kernels.selective_scan import triton_kernels as kernels
from seq2exp.kernels.selective_scan import triton_variants

KERNELS = [name for name in vars(kernels) if name.endswith("_kernel")]


@dataclass(frozen=True)
class Started:
    """A launch that did not happen. arguments: of the kernel, by name."""

    name: str
    programs: int
    threads: int
    arguments: dict[str, object]
    kernel: sass.Kernel


class Device:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_device(self) -> int:
        return self._architecture  # compiled kernels are kept for each device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)


class TorchWork(TorchDispatchMode):
    """Counts the elements that torch's own kernels handle."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            used = [out] if "zeros" in func.name() else [*args, out]
            self.elements += max((x.numel() for x in used if isinstance(x, Tensor)), default=0)
        return out


@contextmanager
def compiling(architecture: int) -> Iterator[list[Started]]:
    """Within it, launches of the scan's kernels are compiled for `architecture` and listed."""
    started: list[Started] = []
    driver.set_active(Device(architecture))
    with ExitStack() as stack:
        for name in KERNELS:
            recorder = Recorder(getattr(kernels, name), started)
            stack.enter_context(patch.object(kernels, name, recorder))
        yield started


@dataclass(frozen=True)
class Recorder:
    """Stands for a kernel: kernel[grid](...)."""

    kernel: JITFunction
    started: list[Started]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._compile, grid)

    def _compile(self, grid: tuple[int, ...], *args: object, **options: object) -> None:
        compiled = self.kernel.run(*args, grid=grid, warmup=True, **options)
        own = {name: value for name, value in options.items() if name in self.kernel.arg_names}
        arguments = inspect.signature(self.kernel.fn).bind(*args, **own).arguments
        kernel, _ = disassembled(compiled, driver.active.get_current_device())
        threads = 32 * compiled.metadata.num_warps
        self.started.append(Started(self.kernel.fn.__name__, grid[0], threads, arguments, kernel))


def start(p: Problem, architecture: int) -> tuple[list[Started], int]:
    """The launches of the op, everything optional present, and the elements that torch handles around them."""

    def empty(*shape: int, dtype: str = p.dtype) -> Tensor:
        return torch.empty(*shape, dtype=getattr(torch, dtype), device="meta")

    u, delta, z, grad = (empty(p.batch, p.dim, p.length) for _ in range(4))
    B, C = (empty(p.batch, 1, p.state, p.length) for _ in range(2))
    A, D, bias = (empty(*shape, dtype="float32") for shape in ((p.dim, p.state), (p.dim,), (p.dim,)))
    arguments = (u, delta, A, B, C, D, z, bias, True, p.reverse, None)
    states = empty(*scan.states_shape(p.batch, p.dim, p.state, p.length, None), dtype="float32")
    with compiling(architecture) as started, TorchWork() as work:
        if p.direction == "forward":
            scan.forward(*arguments)
        else:
            scan.backward(grad, *arguments, states)
    return started, work.elements


def variants(architecture: int) -> list[Variant]:
    """Every variant, whatever the problem."""
    found = []
    for variant in triton_variants.variants():
        compiled = variant.compile(architecture)
        kernel, resources = disassembled(compiled, architecture)
        found.append(
            Variant(
                "triton", architecture, variant.name, 32 * compiled.metadata.num_warps,
                local_accesses=kernel.local_accesses, dynamic_shared=compiled.metadata.shared,
                code=len(kernel.code) * STEP, **resources,
            )
        )  # fmt: skip
    return found


def disassembled(compiled: CompiledKernel, architecture: int) -> tuple[sass.Kernel, dict[str, int]]:
    """Code and resources."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        (kernel,), (resources,) = sass.kernels(cubin).values(), sass.resources(cubin, architecture).values()
    return kernel, resources


def op(p: Problem, architecture: int) -> Op:
    started, torch_elements = start(p, architecture)
    per_kernel, classes = {}, dict.fromkeys(sass.CLASSES, 0.0)
    for x in started:
        count = x.kernel.count(tree=trips(x, p))
        share = x.programs * x.threads / p.elements
        per_kernel[x.name] = count.total * share
        for name, n in count.classes.items():
            classes[name] += n * share
    per_kernel[TORCH] = TORCH_INSTRUCTIONS * torch_elements / p.elements
    classes["other"] += per_kernel[TORCH]
    return Op("triton", architecture, p.direction, p.dtype, p.length, p.reverse, per_kernel, classes)


def trips(x: Started, p: Problem) -> LoopTree:
    """Mean trips of the loops of a program."""
    segments: int = x.arguments["n_segments"]
    tiles = -(-p.length // scan.CHUNK)
    states: LoopTree = [(p.state, [])]
    if x.name == "selective_scan_carry_kernel":
        return [(-(-segments // x.arguments["BS"]), [])]
    if x.name == "selective_scan_segment_kernel":
        each = -(-tiles // segments)
        skipped = each if x.arguments["BACKWARD"] else max(0, tiles - each * (segments - 1))
        return [((tiles - skipped) / segments, states)]
    if x.name == "selective_scan_fwd_kernel":
        return [(tiles / segments, states)]
    if x.name == "selective_scan_bwd_kernel":
        blocks = p.batch * segments * x.arguments["n_blocks"] / x.programs  # of channels, for each program
        return [(tiles / segments, [(blocks, states)])]
    raise SassError(f"nothing is known of the loops of {x.name}")
