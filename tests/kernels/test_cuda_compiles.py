"""nvcc compiles every variant of the CUDA kernels for sm_80 and sm_90, as setup.py does, without spills."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from gpu_build import load_setup

ROOT = Path(__file__).resolve().parents[2]
SETUP = load_setup()
NVCC = SETUP.find_nvcc()
STORAGE = ("float32", "bfloat16", "float16")
SOURCES = sorted(  # those with kernels
    p for p in (ROOT / "csrc").glob("*/cuda/*.cu") if p.stem.endswith(STORAGE) or p.stem in ("mask", "select")
)
NO_SPILLS = ["-Xptxas", "-warn-spills,-warn-lmem-usage,-Werror"]  # nor local arrays
SPILLING = """
__global__ void __launch_bounds__(1024, 2) kernel(float* x) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) a[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[(63 - i) * 1024 + threadIdx.x] = a[i] * a[63 - i];
}
"""

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc was not found")


def compile_source(source: Path, architecture: str, folder: Path) -> subprocess.CompletedProcess[str]:
    cubin = folder / f"{source.parts[-3]}_{source.stem}_{architecture}.cubin"
    flags = [*SETUP.NVCC_FLAGS.split(), f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", "-cubin", *NO_SPILLS]
    return subprocess.run([NVCC, *flags, source, "-o", cubin], capture_output=True, text=True)


def test_every_variant(tmp_path):
    assert {p.stem.split("_")[0] for p in SOURCES} == {"conv", "embed", "mask", "norm", "rows", "scan", "select"}
    assert len(SOURCES) == 6 * 3 + 2
    jobs = list(product(SOURCES, SETUP.CUDA_ARCHITECTURES))
    with ThreadPoolExecutor(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))) as pool:
        done = pool.map(lambda job: compile_source(*job, tmp_path), jobs)
        failed = [
            f"{source.name}, sm_{arch}: {run.stderr}"
            for (source, arch), run in zip(jobs, done, strict=True)
            if run.returncode
        ]
    assert not failed, "\n".join(failed)


def test_spills_are_noticed(tmp_path):
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    run = compile_source(source, "80", tmp_path)
    assert run.returncode and "spill" in run.stderr.lower()
