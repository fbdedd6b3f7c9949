"""Compiles CUDA kernels for the CPU with tests/emulator/cuda_emulator.h and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "emulator"
CACHE = ROOT / "build" / "emulator"
FLAGS = (
    "-O2 -std=c++17 -shared -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -DSEQ2EXP_EMULATOR "
    f"-I{EMULATOR} -I{ROOT / 'csrc'}"
).split()


def library(source: Path, *flags: str) -> ctypes.CDLL:
    """The shared library of one C++ file, compiled again only when it, a header or a flag has changed.

    Skips the test without a C++ compiler; a file that does not compile, or not without warnings, fails it.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"no C++ compiler ({compiler})")
    command = [*compiler.split(), *FLAGS, *flags, str(source)]
    files = [source, *(p for folder in (EMULATOR, ROOT / "csrc") for p in sorted(folder.rglob("*.[ch]*")))]
    contents = [" ".join(command).encode(), *(p.read_bytes() for p in files)]
    output = CACHE / f"{source.stem}-{hashlib.sha256(b'|'.join(contents)).hexdigest()[:20]}.so"
    if not output.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = output.with_suffix(f".{os.getpid()}")
        run = subprocess.run([*command, "-o", str(fresh)], capture_output=True, text=True)
        assert run.returncode == 0, f"{source.name} does not compile:\n{run.stderr}"
        fresh.replace(output)
    return ctypes.CDLL(str(output))


def entry(loaded: ctypes.CDLL, name: str, *types: type) -> Callable[..., None]:
    """An extern "C" function that returns null or a message; as a Python function that raises RuntimeError with it."""
    function = getattr(loaded, name)
    function.restype, function.argtypes = ctypes.c_char_p, types

    def call(*arguments: object) -> None:
        if (message := function(*arguments)) is not None:
            raise RuntimeError(message.decode())

    return call
