"""What the tests that need a GPU share. With SEQ2EXP_REHEARSAL=1 they run the C++ backend on the CPU instead."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

from seq2exp.kernels import backends, set_backend

REHEARSAL = os.environ.get("SEQ2EXP_REHEARSAL") == "1"
DEVICE, BACKENDS = ("cpu", ("cpu",)) if REHEARSAL else ("cuda", ("triton", "cuda"))
MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not REHEARSAL and not torch.cuda.is_available(), reason="no CUDA device"),
]


@contextmanager
def forced(backend: str) -> Iterator[str]:
    """Skips the test where the backend cannot run."""
    if reason := backends()[backend]:
        pytest.skip(reason)
    with set_backend(backend):
        yield backend


def implementation(op: str, backend: str) -> ModuleType:
    """The module of an op's backend."""
    return importlib.import_module(f"seq2exp.kernels.{op}.{'native' if backend == 'cpu' else backend}")
