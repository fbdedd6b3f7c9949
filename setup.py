"""Builds seq2exp/_C.so from csrc/ with ninja, g++ and nvcc; the rest of the metadata is in pyproject.toml.

C++ kernels are built when there is a working compiler (CXX, default g++), CUDA kernels when there is also nvcc (NVCC,
CUDA_HOME or PATH). What is missing is left out and said in one notice. MAX_JOBS bounds the parallel jobs. The extension
uses the libtorch stable ABI: it holds nothing of Python and works with every torch from 2.10 on, so the wheel is tagged
py3-none-<platform>.
"""

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# as in pyproject.toml
MAPPED = {"seq2exp": "seq2exp", "seq2exp.kernels": "kernels", "seq2exp.data_tools": "data_tools"}

X86 = platform.machine().lower() in ("x86_64", "amd64")
ISA_FLAGS = {
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl",
}
CUDA_ARCHITECTURES = ("80", "90")  # the last one also as PTX, for newer GPUs
TORCH_DEFINES = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# -ffast-math would switch the whole process to flush-to-zero when given to the linker; these flags do not.
CXX_FLAGS = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra -ffp-contract=fast -fno-math-errno -fno-trapping-math "
    + TORCH_DEFINES
    + (" -DSEQ2EXP_X86" if X86 else "")
)
NVCC_FLAGS = f"-O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden --threads 2 {TORCH_DEFINES}"


def packages() -> list[str]:
    """Every package under the mapped folders."""
    return [name for name in MAPPED] + [
        f"{name}.{sub}" for name, folder in MAPPED.items() for sub in find_packages(str(ROOT / folder))
    ]


def notice(text: str) -> None:
    print(f"\nseq2exp: {text}\n", file=sys.stderr, flush=True)


@functools.cache
def compiler() -> str | None:
    """The C++ compiler, when it can build a C++17 shared library."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <optional>\nint probe() { return std::optional<int>(0).value(); }\n")
        command = [*cxx().split(), "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(source.with_suffix(".so"))]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
    return cxx()


def cxx() -> str:
    return os.environ.get("CXX") or "g++"


def find_nvcc() -> str | None:
    if named := os.environ.get("NVCC"):
        return named
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = [Path(home, "bin", "nvcc") for home in homes if home]
    return shutil.which("nvcc") or next((str(path) for path in candidates if path.exists()), None)


def find_torch() -> Path:
    """Folder of the torch of this environment, found without importing it.

    Under pip's build isolation torch cannot be imported, but sys.prefix is still that of the real environment.
    """
    spec = importlib.util.find_spec("torch")
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    prefixes = [sys.prefix, os.environ.get("VIRTUAL_ENV"), sys.base_prefix]
    for prefix in filter(None, prefixes):
        library = Path(prefix, "lib", f"python{sysconfig.get_python_version()}")
        candidates += [library / "site-packages" / "torch", library / "dist-packages" / "torch"]
    for torch in candidates:
        if (torch / "version.py").exists():
            version = re.search(r"__version__ = '(\d+)\.(\d+)", (torch / "version.py").read_text())
            if version and (int(version[1]), int(version[2])) >= (2, 10):
                return torch
    sys.exit(
        "seq2exp: the kernels are compiled against the PyTorch of this environment and none from 2.10 on was found in "
        f'{sys.prefix}: run "pip install torch setuptools ninja" first, then repeat the install with '
        "--no-build-isolation."
    )


def find_ninja() -> str:
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    return shutil.which("ninja") or sys.exit('seq2exp: ninja was not found: run "pip install ninja" and install again.')


def ninja_file(torch: Path, output: Path, nvcc: str | None) -> str:
    """The build as text: one rule a kind of source, header dependencies from the compilers."""

    def quote(path: object) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    names = ",".join([f"sm_{arch}" for arch in CUDA_ARCHITECTURES] + [f"compute_{CUDA_ARCHITECTURES[-1]}"])
    gencode = " ".join(f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHITECTURES)
    gencode += f" -gencode arch=compute_{CUDA_ARCHITECTURES[-1]},code=compute_{CUDA_ARCHITECTURES[-1]}"
    ccbin = f" -ccbin {os.environ['CXX']}" if os.environ.get("CXX") else ""
    lines = [
        "ninja_required_version = 1.5",
        f"includes = -I{ROOT / 'csrc'} -isystem {torch / 'include'}",
        f"libraries = -L{torch / 'lib'} -ltorch_cpu",
        "rule cxx",
        f"  command = {cxx()} -MMD -MF $out.d {CXX_FLAGS} $isa $includes -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in $isa",
        "rule nvcc",
        f"  command = {nvcc}{ccbin} -MD -MF $out.d {NVCC_FLAGS} {gencode} -DSEQ2EXP_CUDA_ARCHITECTURES='\"{names}\"' "
        "$includes -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in for " + names,
        "rule link",
        f"  command = {nvcc}{ccbin} -shared -cudart static {gencode} $in -o $out $libraries -Xlinker --exclude-libs=ALL"
        if nvcc
        else f"  command = {cxx()} -shared $in -o $out $libraries",
        "  description = link $out",
    ]
    objects = []
    for source in sorted((ROOT / "csrc").rglob("*.c*")):
        isa = next((isa for isa in ISA_FLAGS if source.stem.endswith(f"_{isa}")), None)
        wanted = {
            ".cpp": (X86 or isa is None) and not (nvcc and source.stem.endswith("_nocuda")),
            ".cu": nvcc is not None,
        }
        if not wanted.get(source.suffix, False):
            continue
        target = f"objects/{source.relative_to(ROOT / 'csrc')}.o"
        objects.append(quote(target))
        lines.append(f"build {quote(target)}: {'nvcc' if source.suffix == '.cu' else 'cxx'} {quote(source)}")
        if isa:
            lines.append(f"  isa = {ISA_FLAGS[isa]}")
    lines.append(f"build {quote(output)}: link {' '.join(objects)}")
    return "\n".join([*lines, ""])


class BuildPython(build_py):
    def run(self) -> None:
        if not compiler():
            notice(
                f"no working C++ compiler ({cxx()}), so the compiled kernels are left out: the CPU uses plain PyTorch, "
                "the scan several times slower there, GPU tensors Triton where it is installed."
            )
        super().run()


class BuildNative(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        torch, nvcc = find_torch(), find_nvcc()
        if nvcc and self.ninja(torch, output, nvcc):
            architectures = ", ".join(f"sm_{arch}" for arch in CUDA_ARCHITECTURES)
            notice(f"built the CPU kernels ({cxx()}) and the CUDA code ({nvcc}: {architectures} and PTX).")
        elif self.ninja(torch, output, None):
            reason = f"nvcc ({nvcc}) failed, see above" if nvcc else "nvcc was not found"
            notice(
                f"{reason}, so the CUDA kernels are left out: the CPU kernels are built ({cxx()}), GPU tensors use "
                "Triton, or plain PyTorch where it is not installed."
            )
        else:
            sys.exit(
                f"seq2exp: {cxx()} could not compile the CPU kernels, see above: name another compiler with CXX, or "
                "install without them by CXX=/bin/false."
            )

    def ninja(self, torch: Path, output: Path, nvcc: str | None) -> bool:
        """Whether the build succeeded."""
        folder = ROOT / "build" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        built = folder / output.name
        (folder / "build.ninja").write_text(ninja_file(torch, built, nvcc))
        jobs = os.environ.get("MAX_JOBS")
        if subprocess.run([find_ninja(), "-C", str(folder), *(["-j", jobs] if jobs else [])]).returncode:
            return False
        shutil.copy2(built, output)
        return True


class Wheel(bdist_wheel):
    """One wheel for every Python 3: py3-none-<platform> with the extension, py3-none-any without."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        packages=packages(),
        ext_modules=[Extension("seq2exp._C", sources=[])] if compiler() else [],
        cmdclass={"build_py": BuildPython, "build_ext": BuildNative, "bdist_wheel": Wheel},
    )
