"""The static figures of the Triton kernels: the launches of an op on meta tensors, compiled instead of started."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
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

from seq2exp.kernels.bimamba import triton as mixer
from seq2exp.kernels.bimamba import triton_kernels as convolution_kernels
from seq2exp.kernels.bimamba import triton_variants as mixer_variants
from seq2exp.kernels.bimamba.direction import Direction, Taps
from seq2exp.kernels.selective_scan import triton as scan
from seq2exp.kernels.selective_scan import triton_kernels as scan_kernels
from seq2exp.kernels.selective_scan import triton_variants as scan_variants

KERNELS = [
    (module, name)
    for module in (scan_kernels, convolution_kernels)
    for name in vars(module)
    if name.endswith("_kernel")
]
RANKS = 4  # ptxas unrolls the loop over ranks so often; what is left over has a loop of its own


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
    """Within it, launches of our kernels are compiled for `architecture` and listed."""
    started: list[Started] = []
    driver.set_active(Device(architecture))
    with ExitStack() as stack:
        for module, name in KERNELS:
            recorder = Recorder(getattr(module, name), started)
            stack.enter_context(patch.object(module, name, recorder))
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
    run = prepared_convolution(p) if p.direction.startswith("convolution") else prepared_scan(p)
    with compiling(architecture) as started, TorchWork() as work:
        run()
    return started, work.elements


def prepared_scan(p: Problem) -> Callable[[], object]:
    u, delta, z, grad, add = (signal(p, p.dim) for _ in range(5))
    B, C = (signal(p, p.state) for _ in range(2))
    A, D, bias, dt_proj = (weight(p.dim, *columns) for columns in ((p.state,), (), (), (p.rank,)))
    states = weight(*scan.states_shape(p.batch, p.dim, p.state, p.length, None))
    arguments = (u, delta, A, B[:, None], C[:, None], D, z, bias, True, p.reverse, None)
    d = Direction(u, signal(p, p.rank), dt_proj, A, B, C, D, bias, z, add, p.reverse, None)
    return {
        "forward": partial(scan.forward, *arguments),
        "backward": partial(scan.backward, grad, *arguments, states),
        "mixer forward": partial(mixer.scan, d),
        "mixer backward, open": partial(mixer.scan_backward, grad, d, states, False),
        "mixer backward, closing": partial(mixer.scan_backward, grad, d, states, True),
    }[p.direction]


def prepared_convolution(p: Problem) -> Callable[[], object]:
    """Both directions."""
    x, taps = signal(p, p.dim), Taps(weight(p.dim, 4), weight(p.dim))
    if p.direction == "convolution, forward":
        return partial(mixer.convolve, x, taps, taps, None)
    return partial(mixer.convolve_backward, x, x, x, taps, taps, None)


def signal(p: Problem, rows: int) -> Tensor:
    return torch.empty(p.batch, rows, p.length, dtype=getattr(torch, p.dtype), device="meta")


def weight(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def variants(architecture: int) -> list[Variant]:
    """Every variant, whatever the problem."""
    found = []
    for variant in chain(scan_variants.variants(), mixer_variants.variants()):
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
    if x.name.startswith("bimamba_conv"):
        return [(x.arguments["n_tiles"] / x.arguments["n_parts"], [])]
    segments: int = x.arguments["n_segments"]
    tiles = -(-p.length // scan.CHUNK)
    ranks: LoopTree = [] if x.arguments.get("dt_proj") is None else [(p.rank // RANKS, []), (p.rank % RANKS, [])]
    states: LoopTree = [*ranks, (p.state, [])]
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
