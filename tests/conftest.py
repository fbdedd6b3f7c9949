"""Where the test inputs that live beside the project are found, and what no test may do to the others."""

from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"../shared/{name} is not here")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs, weights, outputs and gradients of the published models."""
    return _folder("golden")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Real hg38 sequence, signals, contacts and genes."""
    return _folder("realdata")


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_is_returned() -> Iterator[None]:
    """A benchmark would make the process keep what it frees, and later tests look at the resident set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seq2exp.allocator.keep_freed_memory", lambda: None)
        yield
