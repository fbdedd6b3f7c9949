"""Compiles CUDA kernels for the CPU with tests/emulator/cuda_emulator.h and loads them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "emulator"
SOURCES = ROOT / "csrc"
CACHE = ROOT / "build" / "emulator"
FLAGS = (
    "-x c++ -O2 -std=c++17 -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-sign-compare -fno-gnu-unique "
    f"-DSEQ2EXP_EMULATOR -I{EMULATOR}"
).split()
CHECKED = ["-g1", "-gdwarf-4", "-fsanitize=thread", "-DSEQ2EXP_CHECK_MEMORY"]  # its calls go to memory_checks.cpp


def library(*files: Path, sources: Path = SOURCES, defines: tuple[str, ...] = (), checked: bool = False) -> ctypes.CDLL:
    """The shared library of some .cpp and .cu files, compiled again only when a file, a header or a flag has changed.

    sources: folder of the headers. defines: NAME=value, of the preprocessor. checked: watches the kernels' memory, see
    tests/emulator/memory_checks.h.
    Skips the test without a C++ compiler; files that do not compile, or only with warnings, fail it.
    """
    compiler = (os.environ.get("CXX") or "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler ({compiler[0]})")
    flags = {file: CHECKED if checked else [] for file in files}
    if checked:
        flags[EMULATOR / "memory_checks.cpp"] = []
    common = [*compiler, *FLAGS, f"-I{sources}", *(f"-D{define}" for define in defines)]
    read = [*flags, *(p for folder in (EMULATOR, sources) for p in sorted(folder.rglob("*.*h")))]
    content = b"|".join([" ".join([*common, str(checked)]).encode(), *(p.read_bytes() for p in read)])
    output = CACHE / f"{files[0].stem}-{hashlib.sha256(content).hexdigest()[:20]}.so"
    if not output.exists():
        commands = [(*common, *more, "-c", str(file), "-o", f"{file.name}.o") for file, more in flags.items()]
        objects = [command[-1] for command in commands]
        error = _build(output, (*commands, (*compiler, "-shared", *objects, "-o", output.name)))
        assert error is None, error
    return ctypes.CDLL(str(output))


@functools.cache  # every test says why there is no library, but one compiles
def _build(output: Path, commands: tuple[tuple[str, ...], ...]) -> str | None:
    """Runs the commands in a folder of their own and keeps the output; the error of the first that fails."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        for command in commands:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if run.returncode:
                return f"{' '.join(command)}:\n{run.stderr}"
        Path(folder, output.name).replace(output)
    return None


def add_buffer(loaded: ctypes.CDLL, name: str, address: int, size: int) -> None:
    """Tells a checked library of memory that its kernels may use; forgotten with `loaded.checks_forget_buffers()`."""
    types = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
    ctypes.CFUNCTYPE(None, *types)(("checks_add_buffer", loaded))(name.encode(), address, size)


def _with_line(message: str, path: str) -> str:
    """Names the source line of a place in the machine code, where addr2line is at hand."""
    found = re.search(r"code (0x[0-9a-f]+)", message)
    if found is None or shutil.which("addr2line") is None:
        return message
    run = subprocess.run(["addr2line", "-ise", path, found[1]], capture_output=True, text=True)
    return message.replace(found[0], ", called at ".join(line.split()[0] for line in run.stdout.splitlines()))


def entry(loaded: ctypes.CDLL, name: str, *types: type) -> Callable[..., None]:
    """An extern "C" function that returns null or a message; as a Python function that raises RuntimeError with it."""
    function = getattr(loaded, name)
    function.restype, function.argtypes = ctypes.c_char_p, types

    def call(*arguments: object) -> None:
        if (message := function(*arguments)) is not None:
            raise RuntimeError(_with_line(message.decode(), loaded._name))

    return call
