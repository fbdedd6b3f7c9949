"""The instruction counter on mamba-ssm's own scan, against figures that were counted independently.

The variant: bfloat16 storage, real weights, variable B and C, softplus and z, state 16, 128 threads of 16 positions,
which the package takes at L > 1024. L = 200,000 is no multiple of 2,048 and takes its uneven path, 200,704 the even
one. It is compiled for sm_80 with the package's own flags. One rule gives all four figures: that of sass.py, from the
trips of the loops; the kernels of torch around it are not counted.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import peers
import sass
from gpu_build import load_setup
from sass import LoopTree, SassError

SOURCES = peers.FETCHED / peers.MAMBA.folder / peers.MAMBA.csrc
EXPECTED = {
    ("forward", 200_000): 36.7,
    ("forward", 200_704): 20.9,
    ("backward", 200_000): 90.8,
    ("backward", 200_704): 68.0,
}  # instructions per state element
TOLERANCE = 0.05
STATE, THREADS, CHUNK = 16, 128, 2048
# B, C variable, z; in the backward also softplus, which the forward asks at run time
TRAITS = {"forward": "128, 16, 1, {even}, true, true, true", "backward": "128, 16, {even}, true, true, true, true"}
INSTANCE = """
#include "selective_scan_{way}_kernel.cuh"
using Traits = Selective_Scan_{way}_kernel_traits<{traits}, at::BFloat16, float>;
template __global__ void selective_scan_{way}_kernel<Traits>({parameters});
"""
# In place of torch's header, which CPU builds of torch cannot compile.
CUDA_EXCEPTION = "#pragma once\n#define C10_CUDA_CHECK(x) (void)(x)\n#define C10_CUDA_KERNEL_LAUNCH_CHECK()\n"


def missing() -> str | None:
    """Why there is nothing to count, or None."""
    return None if SOURCES.is_dir() else "mamba-ssm is not here (python bench/peers.py fetch)"


def calibrate() -> list[dict]:
    """A record for each figure. Raises SassError."""
    records = []
    for (direction, length), expected in EXPECTED.items():
        got = per_element(direction, length)
        records.append(
            {
                "direction": direction, "length": length, "per_element": round(got, 3), "expected": expected,
                "error": round(got / expected - 1, 4), "met": abs(got / expected - 1) <= TOLERANCE,
            }
        )  # fmt: skip
    return records


def per_element(direction: str, length: int) -> float:
    chunks = -(-length // CHUNK)
    tree: LoopTree = [(chunks, [(STATE, [])])]
    if direction == "backward":
        tree = [*tree, (1, [])]  # dA of the channel, state by state over the threads
    count = compile_kernel(direction, even=length % CHUNK == 0).count(tree=tree)
    return count.total * THREADS / (length * STATE)


def compile_kernel(direction: str, even: bool) -> sass.Kernel:
    setup = load_setup()
    way, parameters = {"forward": ("fwd", "SSMParamsBase"), "backward": ("bwd", "SSMParamsBwd")}[direction]
    traits = TRAITS[direction].format(even=str(even).lower())
    with TemporaryDirectory() as folder:
        stub = Path(folder, "c10", "cuda", "CUDAException.h")
        stub.parent.mkdir(parents=True)
        stub.write_text(CUDA_EXCEPTION)
        source, cubin = Path(folder, "scan.cu"), Path(folder, "scan.cubin")
        source.write_text(INSTANCE.format(way=way, traits=traits, parameters=parameters))
        command = [setup.find_nvcc(), *peers.NVCC_FLAGS, "-arch=sm_80", "-cubin", f"-I{folder}", f"-I{SOURCES}"]
        command += ["-isystem", setup.find_torch() / "include", source, "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SassError(f"mamba-ssm's {direction} does not compile:\n{done.stderr}")
        (kernel,) = sass.kernels(cubin).values()
        return kernel
