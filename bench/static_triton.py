"""The static figures of the Triton kernels: the launches of an op on meta tensors, compiled instead of started."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import mask_trips
import sass
import torch
from mask_load import MaskLoad
from sass import LoopTree, SassError
from sass_graph import STEP
from scan_trips import Problem
from static_report import TORCH, TORCH_INSTRUCTIONS, Op, Variant
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

from seq2exp.kernels.beta_mask import triton as mask
from seq2exp.kernels.beta_mask import triton_kernels as mask_kernels
from seq2exp.kernels.beta_mask.settings import BetaMask, Saved
from seq2exp.kernels.bimamba import triton as mixer
from seq2exp.kernels.bimamba import triton_kernels as convolution_kernels
from seq2exp.kernels.bimamba import triton_variants as mixer_variants
from seq2exp.kernels.bimamba.direction import Direction, Taps
from seq2exp.kernels.embed import triton as embed
from seq2exp.kernels.embed import triton_kernels as embed_kernels
from seq2exp.kernels.embed.bases import Bases, Wanted
from seq2exp.kernels.gather import triton as gather
from seq2exp.kernels.gather import triton_kernels as gather_kernels
from seq2exp.kernels.selective_scan import triton as scan
from seq2exp.kernels.selective_scan import triton_kernels as scan_kernels
from seq2exp.kernels.selective_scan import triton_variants as scan_variants

KERNELS = [
    (module, name)
    for module in (scan_kernels, convolution_kernels, mask_kernels, embed_kernels, gather_kernels)
    for name in vars(module)
    if name.endswith("_kernel")
]
UNROLLED = 4  # ptxas unrolls the loops over ranks and tracks so often; what is left over has a loop of its own


@dataclass(frozen=True)
class Started:
    """A launch that did not happen. arguments: of the kernel, by name."""

    name: str
    programs: int
    threads: int
    arguments: dict[str, object]
    kernel: sass.Kernel
    resources: dict[str, int]  # as of a Variant

    def variant(self, architecture: int, chosen: tuple[str, ...]) -> Variant:
        """chosen: arguments that belong to the name."""
        options = [f"{name}={self.arguments[name]}" for name in chosen if name in self.arguments]
        return Variant(
            "triton", architecture, f"{self.name}[{', '.join(options)}]", self.threads,
            local_accesses=self.kernel.local_accesses, code=len(self.kernel.code) * STEP, **self.resources,
        )  # fmt: skip


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
        kernel, resources = disassembled(compiled, driver.active.get_current_device())
        resources["dynamic_shared"] = compiled.metadata.shared
        threads = 32 * compiled.metadata.num_warps
        self.started.append(Started(self.kernel.fn.__name__, grid[0], threads, arguments, kernel, resources))


def start(p: Problem, architecture: int) -> tuple[list[Started], int]:
    """The launches of the op, everything optional present, and the elements that torch handles around them."""
    prepare = {"convolution": prepared_convolution, "mask": prepared_mask}.get(p.direction.split(",")[0], prepared_scan)
    run = prepare(p)
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


def prepared_mask(p: mask_trips.Problem) -> Callable[[], object]:
    """As mask_trips.py says."""
    s = MaskLoad(p.kind, p.batch, p.length).settings
    size = (p.batch, p.length)
    logits, signals = weight(*size, 2), weight(*size, mask_trips.TRACKS)
    tracks = [weight(mask_trips.TRACKS) for _ in range(2)]
    if p.direction.endswith("forward"):
        rows = torch.empty(p.batch, dtype=torch.int64, device="meta")
        return partial(mask.forward, logits, signals, *tracks, None, None, rows, s)
    grads = BetaMask(weight(*size), None, None, None, weight(), weight())
    kept = Saved(*(weight(*size) for _ in range(3)), torch.empty(size, dtype=torch.uint8, device="meta"))
    return partial(mask.backward, grads, logits, None, *tracks, kept, s, False, False)


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
    started = [x for p in mask_trips.problems() for x in start(p, architecture)[0]]
    masks = [x.variant(architecture, chosen=("SAMPLE", "HARD")) for x in started]
    found += {variant.kernel: variant for variant in masks}.values()
    return [*found, *gather_variants(architecture), *embed_variants(architecture)]


def gather_variants(architecture: int) -> list[Variant]:
    """Selection with a capacity; 128 channels in each storage type, with a mask and without."""
    mask, total = weight(8, 200_000), 160_000
    with compiling(architecture) as started:
        indices, _ = gather.select(mask, total)
        for dtype in ("float32", "bfloat16", "float16"):
            x = torch.empty(*mask.shape, 128, dtype=getattr(torch, dtype), device="meta")
            gather.pack_backward(gather.pack_forward(x, mask, indices), x, mask, indices)
            gather.unpack_backward(gather.unpack_forward(x[0, :total], indices, tuple(mask.shape)), indices)
    return [gather_variant(x, architecture) for x in started]


def gather_variant(x: Started, architecture: int) -> Variant:
    kind = ""
    if "values" in x.arguments:
        dtype = str(x.arguments["values"].dtype).removeprefix("torch.")
        kind = f"[{dtype}, no mask]" if x.arguments["mask"] is None else f"[{dtype}]"
    return replace(x.variant(architecture, chosen=()), kernel=x.name + kind)


def embed_variants(architecture: int) -> list[Variant]:
    """128 channels, three float16 tracks, positions and mask; all bases and some, all gradients but the signals'."""
    codes = torch.empty(8, 200_000, dtype=torch.uint8, device="meta")
    signals = torch.empty(*codes.shape, mask_trips.TRACKS, dtype=torch.float16, device="meta")
    weights = dict(signal_weight=weight(128, mask_trips.TRACKS), positions=weight(codes.shape[1], 128))
    bases = Bases(codes, weight(5, 128), signals, **weights, mask=weight(*codes.shape))
    found = []
    for indices in (None, torch.empty(160_000, dtype=torch.int64, device="meta")):
        for dtype in ("float32", "bfloat16", "float16"):
            x = bases._replace(indices=indices)
            with compiling(architecture) as started:
                out = embed.forward(x, getattr(torch, dtype))
                embed.backward(out, x, Wanted(positions=True, mask=True, signals=False))
            kind = dtype if indices is None else f"{dtype}, indices"
            found += [replace(s.variant(architecture, chosen=()), kernel=f"{s.name}[{kind}]") for s in started]
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
        count = x.kernel.count(tree=trips(x, p), detours=not isinstance(p, mask_trips.Problem))
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
    if isinstance(p, mask_trips.Problem):
        return mask_loops(x, p)
    segments: int = x.arguments["n_segments"]
    tiles = -(-p.length // scan.CHUNK)
    ranks: LoopTree = [] if x.arguments.get("dt_proj") is None else [(p.rank // UNROLLED, []), (p.rank % UNROLLED, [])]
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


def mask_loops(x: Started, p: mask_trips.Problem) -> LoopTree:
    if x.name == "beta_mask_fwd_kernel":
        tracks = [(n, []) for n in divmod(mask_trips.TRACKS, UNROLLED)]
        return [*tracks, *((n, []) for n in mask_trips.attempts(p.kind, mask.BLOCK))]
    return [] if x.name == "beta_mask_finish_kernel" else [(mask.NODES.value, [])]
