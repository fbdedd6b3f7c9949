"""mamba-ssm and causal-conv1d, to be measured beside our ops on a GPU machine that has no network.

    python bench/peers.py fetch    here: downloads both source packages into bench/peers/
    python bench/peers.py pack     here: copies what the GPU machine needs of them to carry/peers/, under 1 MB
    python bench/peers.py build    there: compiles them with that machine's torch and nvcc into build/peers/

All three folders are ignored by git. build/peers/ is then a folder for PYTHONPATH, with an empty mamba_ssm/__init__.py
(the original imports every model), and build/peers/status.json says null or why a package cannot be measured. Of the
scan only what is measured is compiled: real weights, float32 and bfloat16, L > 1024; the rest raises. `build` needs
torch, nvcc and Python.h. What fails costs one line and no exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FETCHED, CARRIED, BUILT = ROOT / "bench" / "peers", ROOT / "carry" / "peers", ROOT / "build" / "peers"

# as in the setup.py of both packages
NVCC_FLAGS = [
    "-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math", "-lineinfo",
    *(f"-U__CUDA_NO_{name}__" for name in (
        "HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS",
        "BFLOAT162_CONVERSIONS",
    )),
]  # fmt: skip


class PeerError(Exception):
    """Why a package cannot be measured, in one line."""


@dataclass(frozen=True)
class Peer:
    """A source package: the files needed of it, the extension to compile and a statement that proves it usable."""

    name: str
    version: str
    skip: str  # variable under which its setup.py compiles nothing
    files: tuple[str, ...]
    extension: str
    csrc: str
    sources: Callable[[Path], dict[str, str]]  # text to compile, by file name
    proof: str

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


SCAN_KERNELS = """\
#include "selective_scan_{direction}_kernel.cuh"
template <> void selective_scan_{direction}_cuda<{storage}, float>({params}& params, cudaStream_t stream) {{
  TORCH_CHECK(params.seqlen > 1024, "compiled for L > 1024 only");
  selective_scan_{direction}_launch<128, 16, {storage}, float>(params, stream);
}}
"""
SCAN_ABSENT_HEAD = """\
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include <cuda_runtime_api.h>
#include "selective_scan.h"
template <class T, class W> void selective_scan_fwd_cuda(SSMParamsBase&, cudaStream_t);
template <class T, class W> void selective_scan_bwd_cuda(SSMParamsBwd&, cudaStream_t);
"""
SCAN_ABSENT = """\
template <> void selective_scan_{direction}_cuda<{storage}, {weight}>({params}&, cudaStream_t) {{
  TORCH_CHECK(false, "not compiled for {storage}, {weight}");
}}
"""


INSTANCE = re.compile(r"^template void \w+<([\w:]+, [\w:]+)>\(.*\);$", re.MULTILINE)


def scan_sources(csrc: Path) -> dict[str, str]:
    """The kernels that the package's launcher takes beyond L = 1024, a file for each direction and storage type."""
    sources, absent = {}, SCAN_ABSENT_HEAD
    for direction, params in (("fwd", "SSMParamsBase"), ("bwd", "SSMParamsBwd")):
        for storage in ("at::BFloat16", "float", "at::Half"):
            for weight in ("float", "c10::complex<float>"):
                names = {"direction": direction, "params": params, "storage": storage, "weight": weight}
                if storage == "at::Half" or weight != "float":
                    absent += SCAN_ABSENT.format(**names)
                else:
                    sources[f"{direction}_{storage.removeprefix('at::')}.cu"] = SCAN_KERNELS.format(**names)
    return sources | {"absent.cpp": absent, "selective_scan.cpp": (csrc / "selective_scan.cpp").read_text()}


def conv_sources(csrc: Path) -> dict[str, str]:
    """All of it, but a file for each pair of storage types: one file for all takes a single core 7 minutes."""
    sources = {}
    for path in csrc.iterdir():
        text = path.read_text()
        if path.suffix == ".cpp":
            sources[path.name] = text
        elif path.suffix == ".cu":
            for pair in set(INSTANCE.findall(text)):
                kept = INSTANCE.sub(lambda match, pair=pair: match[0] if match[1] == pair else "", text)
                sources[f"{path.stem}_{re.sub(r'(at::)|, ', '_', pair)}.cu"] = kept
    return sources


MAMBA = Peer(
    name="mamba_ssm",
    version="2.3.2.post1",
    skip="MAMBA_SKIP_CUDA_BUILD",
    files=(
        "mamba_ssm/ops/selective_scan_interface.py",
        "mamba_ssm/ops/triton/layer_norm.py",
        "mamba_ssm/utils/torch.py",
        "mamba_ssm/utils/determinism.py",
    ),
    extension="selective_scan_cuda",
    csrc="csrc/selective_scan",
    sources=scan_sources,
    proof="from mamba_ssm.ops.selective_scan_interface import selective_scan_fn",
)
CONV = Peer(
    name="causal_conv1d",
    version="1.7.0",
    skip="CAUSAL_CONV1D_SKIP_CUDA_BUILD",
    files=(
        "causal_conv1d/__init__.py",
        "causal_conv1d/causal_conv1d_interface.py",
        "causal_conv1d/causal_conv1d_varlen.py",
        "causal_conv1d/cpp_functions.py",
    ),
    extension="causal_conv1d_cuda",
    csrc="csrc",
    sources=conv_sources,
    proof="from causal_conv1d import causal_conv1d_fn",
)
PEERS = (MAMBA, CONV)


def fetch() -> None:
    """Downloads and unpacks the source packages; nothing of them is installed."""
    FETCHED.mkdir(parents=True, exist_ok=True)
    for peer in PEERS:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        pip += ["--no-binary", ":all:", "--no-build-isolation", f"{peer.name}=={peer.version}"]
        subprocess.run(pip, check=True, cwd=FETCHED, env=os.environ | {peer.skip: "TRUE"})
        with tarfile.open(FETCHED / f"{peer.folder}.tar.gz") as archive:
            archive.extractall(FETCHED, filter="data")
        print(FETCHED / peer.folder)


def pack() -> None:
    """carry/peers/ anew, from what was fetched."""
    shutil.rmtree(CARRIED, ignore_errors=True)
    for peer in PEERS:
        source, target = FETCHED / peer.folder, CARRIED / peer.folder
        if not source.is_dir():
            sys.exit(f"bench/peers.py: {source} is not here; run: python bench/peers.py fetch")
        shutil.copytree(source / peer.csrc, target / peer.csrc)
        copy(source, target, (*peer.files, "LICENSE"))
    size = sum(path.stat().st_size for path in CARRIED.rglob("*") if path.is_file())
    print(f"{CARRIED}: {size / 1e6:.1f} MB")


def copy(source: Path, target: Path, names: Sequence[str]) -> None:
    """With an empty __init__.py in every folder that brings none of its own."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)
        for folder in Path(name).parents[:-1]:
            (target / folder / "__init__.py").touch()


def build(architecture: int | None) -> None:
    """Compiles every package; says in one line each whether it can be measured."""
    status = {}
    for peer in PEERS:
        try:
            build_one(peer, architecture or gpu_architecture())
            status[peer.name] = None
        except (PeerError, OSError) as error:
            status[peer.name] = str(error)
        print(f"{peer.name} {peer.version}: {'not measured: ' + status[peer.name] if status[peer.name] else 'built'}")
    BUILT.mkdir(parents=True, exist_ok=True)
    (BUILT / "status.json").write_text(json.dumps(status, indent=1) + "\n")


def build_one(peer: Peer, architecture: int) -> None:
    """Leaves the extension and the Python files in build/peers/. Raises PeerError."""
    package = next((base / peer.folder for base in (CARRIED, FETCHED) if (base / peer.folder).is_dir()), None)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if package is None:
        raise PeerError(f"{peer.folder} is neither in {CARRIED} nor in {FETCHED}")
    if nvcc is None:
        raise PeerError("nvcc was not found")
    objects = BUILT / "objects" / peer.extension
    objects.mkdir(parents=True, exist_ok=True)
    csrc = package / peer.csrc
    compile_flags, link_flags = flags(peer.extension, architecture)
    commands = []
    for name, text in peer.sources(csrc).items():
        (objects / name).write_text(text)
        target = objects / f"{name}.o"
        commands.append([nvcc, *compile_flags, f"-I{csrc}", "-c", str(objects / name), "-o", str(target)])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))
    extension = BUILT / f"{peer.extension}{sysconfig.get_config_var('EXT_SUFFIX')}"
    run([nvcc, "-shared", *(command[-1] for command in commands), "-o", str(extension), *link_flags])
    copy(package, BUILT, peer.files)
    run([sys.executable, "-c", f"import torch\n{peer.proof}"], PYTHONPATH=str(BUILT))


def flags(extension: str, architecture: int) -> tuple[list[str], list[str]]:
    """For compiling and for linking."""
    try:
        import torch
    except ImportError as error:
        raise PeerError(f"torch cannot be imported: {error}") from None
    folder = Path(torch.__file__).parent
    python = sysconfig.get_paths()["include"]
    if not Path(python, "Python.h").exists():
        raise PeerError(f"{python}/Python.h is not there")
    system = [folder / "include", folder / "include/torch/csrc/api/include", python]
    defines = [f"-DTORCH_EXTENSION_NAME={extension}", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    code = [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xcompiler", "-fPIC"]
    libraries = [f"-l{name}" for name in ("c10", "torch", "torch_cpu", "torch_python", "c10_cuda", "torch_cuda")]
    compile_flags = [*NVCC_FLAGS, *defines, *code, *(f"-isystem={path}" for path in system)]
    return compile_flags, ["-cudart", "static", f"-L{folder / 'lib'}", *libraries]


def gpu_architecture() -> int:
    """Of the first GPU: 90 for sm_90."""
    try:
        import torch
    except ImportError as error:
        raise PeerError(f"torch cannot be imported: {error}") from None
    if not torch.cuda.is_available():
        raise PeerError("torch sees no GPU; name an architecture with --architecture")
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def run(command: list[str], **environment: str) -> None:
    """Raises PeerError with the first line that says error, or the last one."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise PeerError(next((line for line in lines if "error" in line.lower()), lines[-1])[:300])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("fetch", "pack", "build"))
    parser.add_argument("--architecture", type=int, help="build: such as 90; default that of the GPU")
    arguments = parser.parse_args()
    if arguments.step == "build":
        build(arguments.architecture)
    else:
        {"fetch": fetch, "pack": pack}[arguments.step]()
