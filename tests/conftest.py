"""Where the test inputs that live beside the project are found."""

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
