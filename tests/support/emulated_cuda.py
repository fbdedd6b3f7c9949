"""Compiles CUDA kernels for the CPU with tests/emulator/cuda_emulator.h and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import os
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
    "-x c++ -O2 -std=c++17 -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-sign-compare -DSEQ2EXP_EMULATOR "
    f"-I{EMULATOR} -I{SOURCES}"
).split()


def library(*sources: Path) -> ctypes.CDLL:
    """The shared library of some .cpp and .cu files, compiled again only when a source, a header or a flag has changed.

    Skips the test without a C++ compiler; sources that do not compile, or only with warnings, fail it.
    """
    compiler = (os.environ.get("CXX") or "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler ({compiler[0]})")
    files = [*sources, *(p for folder in (EMULATOR, SOURCES) for p in sorted(folder.rglob("*.*h")))]
    content = b"|".join([" ".join([*compiler, *FLAGS]).encode(), *(p.read_bytes() for p in files)])
    output = CACHE / f"{sources[0].stem}-{hashlib.sha256(content).hexdigest()[:20]}.so"
    if not output.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            objects = [f"{folder}/{source.name}.o" for source in sources]
            for source, target in zip(sources, objects, strict=True):
                _run([*compiler, *FLAGS, "-c", str(source), "-o", target])
            _run([*compiler, "-shared", *objects, "-o", f"{folder}/library.so"])
            Path(folder, "library.so").replace(output)
    return ctypes.CDLL(str(output))


def _run(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, f"{' '.join(command)}:\n{run.stderr}"


def entry(loaded: ctypes.CDLL, name: str, *types: type) -> Callable[..., None]:
    """An extern "C" function that returns null or a message; as a Python function that raises RuntimeError with it."""
    function = getattr(loaded, name)
    function.restype, function.argtypes = ctypes.c_char_p, types

    def call(*arguments: object) -> None:
        if (message := function(*arguments)) is not None:
            raise RuntimeError(message.decode())

    return call
