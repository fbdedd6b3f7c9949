"""The static figures of the CUDA kernels: compiled with nvcc as setup.py does, with and without marks."""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import conv_trips
import mask_trips
import sass
import scan_trips
from gpu_build import load_setup
from sass import Kernel, SassError
from sass_graph import STEP
from scan_trips import Problem
from static_report import TORCH, TORCH_INSTRUCTIONS, Op, Variant

ROOT = Path(__file__).resolve().parents[1]
# of the scan, of the mixer's scan, of its convolutions, of pack and input, one a storage type; of mask and selection
KINDS = ("scan_*", "conv_*", "rows_*", "embed_*", "mask", "select")
SOURCES = sorted(path for kind in KINDS for path in (ROOT / "csrc").glob(f"*/cuda/{kind}.cu"))
TRIPS = {scan_trips.Problem: scan_trips, conv_trips.Problem: conv_trips, mask_trips.Problem: mask_trips}
LINE_BYTES = 32  # sizeof(Line) of csrc/embed/cuda/embed.cuh
MARKED = "-DSEQ2EXP_MARKERS"


@dataclass(frozen=True)
class Compiled:
    """Kernels of one architecture by name such as selective_scan_fwd_kernel<float, false>."""

    architecture: int
    plain: dict[str, Kernel]
    marked: dict[str, Kernel]
    resources: dict[str, dict[str, int]]


def compile_all(architectures: tuple[int, ...]) -> list[Compiled]:
    """Raises SassError when a source does not compile."""
    setup = load_setup()
    command = [setup.find_nvcc(), *setup.NVCC_FLAGS.split(), f"-I{ROOT / 'csrc'}", "-cubin"]
    with (
        TemporaryDirectory() as folder,
        ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool,
    ):

        def build(architecture: int, source: Path, define: str) -> Path:
            cubin = Path(folder, f"{source.parts[-3]}_{source.stem}_{architecture}{define}.cubin")
            options = [f"-arch=sm_{architecture}", *([define] if define else [])]
            done = subprocess.run([*command, *options, source, "-o", cubin], capture_output=True, text=True)
            if done.returncode:
                raise SassError(f"{source.name} does not compile for sm_{architecture}:\n{done.stderr}")
            return cubin

        jobs = {
            (architecture, define): [pool.submit(build, architecture, source, define) for source in SOURCES]
            for architecture in architectures
            for define in ("", MARKED)
        }
        cubins = {key: [job.result() for job in started] for key, started in jobs.items()}
        return [
            Compiled(
                architecture,
                plain=_by_name(cubins[architecture, ""], sass.kernels),
                marked=_by_name(cubins[architecture, MARKED], sass.kernels),
                resources=_by_name(cubins[architecture, ""], partial(sass.resources, architecture=architecture)),
            )
            for architecture in architectures
        ]


def _by_name(cubins: list[Path], read) -> dict:
    """Everything that `read` finds, by demangled name without namespaces, return type and parameters."""
    found = {}
    for cubin in cubins:
        here = read(cubin)
        names = subprocess.run(["c++filt", *here], capture_output=True, text=True, check=True).stdout.splitlines()
        for name, value in zip(names, here.values(), strict=True):
            short = re.search(
                r"(\w+_kernel(?:<.*?>)?)\(", name.replace("seq2exp::", "").replace("(anonymous namespace)::", "")
            )
            if short is None:
                raise SassError(f"a kernel of another name than ..._kernel: {name}")
            found[short[1]] = value
    return found


def variants(compiled: Compiled) -> list[Variant]:
    found = []
    for name, kernel in sorted(compiled.plain.items()):
        threads, dynamic = block_shape(name)
        found.append(
            Variant(
                "cuda", compiled.architecture, name, threads, local_accesses=kernel.local_accesses,
                dynamic_shared=dynamic, code=len(kernel.code) * STEP, **compiled.resources[name],
            )
        )  # fmt: skip
    return found


def block_shape(name: str) -> tuple[int, int]:
    """Threads and bytes of dynamic shared memory of a block."""
    if name.startswith(("select_", "pack_", "unpack_")):
        constant, source = ("kScanThreads", "select.cu") if "_scan_" in name else ("kGatherThreads", "gather.h")
        found = re.search(rf"{constant} = (\d+)", (ROOT / "csrc" / "gather" / "cuda" / source).read_text())
        assert found
        return int(found[1]), 0
    if name.startswith("embed_"):
        return embed_block_shape()
    trips = conv_trips if "_conv_" in name else mask_trips if "_mask_" in name else scan_trips
    return trips.block_shape(name)


def embed_block_shape() -> tuple[int, int]:
    """With three tracks: a line and the features of one chunk for each thread."""
    folder = ROOT / "csrc" / "embed" / "cuda"
    found = re.findall(r"(kEmbedThreads|kFeatures) = (\d+)", (folder / "embed.h").read_text())
    constants = {name: int(value) for name, value in found}
    return constants["kEmbedThreads"], constants["kEmbedThreads"] * (LINE_BYTES + 4 * constants["kFeatures"])


def changed_by_marks(compiled: Compiled) -> dict[str, float]:
    """By how much marks change the number of instructions of each kernel: the error they bring."""
    return {
        name: compiled.marked[name].instructions / kernel.instructions - 1 for name, kernel in compiled.plain.items()
    }


def op(compiled: Compiled, problem: Problem) -> Op:
    """Raises SassError where kernels and what the trip counts know of them do not fit together."""
    trips = TRIPS[type(problem)]
    numbers = (mask_trips if trips is mask_trips else scan_trips).mark_numbers()
    kernels, classes = {}, dict.fromkeys(sass.CLASSES, 0.0)
    for launch in trips.launches(problem):
        marks, branches, sites = (
            {numbers[name]: value for name, value in given.items()}
            for given in (launch.marks, launch.branches, launch.sites)
        )
        if launch.kernel not in compiled.marked:
            raise SassError(f"{launch.kernel} was not compiled; there are {', '.join(sorted(compiled.marked))}")
        count = compiled.marked[launch.kernel].count(
            marks=marks, branches=branches, sites=sites, detours=trips is not mask_trips
        )
        share = launch.blocks * launch.threads / problem.elements
        kernels[launch.kernel] = count.total * share
        for name, n in count.classes.items():
            classes[name] += n * share
    if elements := trips.torch_elements(problem):
        kernels[TORCH] = TORCH_INSTRUCTIONS * elements / problem.elements
        classes["other"] += kernels[TORCH]
    return Op(
        "cuda",
        compiled.architecture,
        problem.direction,
        problem.dtype,
        problem.length,
        problem.reverse,
        kernels,
        classes,
    )
