"""The Triton kernels of pack_selected without a GPU: in the interpreter, and compiled for sm_80 and sm_90."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import interpreted
import pytest
import torch
from gather_problems import BFLOAT, HALF, moved, problem

triton = pytest.importorskip("triton", reason="triton is not installed")

from static_triton import Device, Recorder, Started  # noqa: E402
from triton.runtime import driver  # noqa: E402

from seq2exp.kernels.gather import triton as module  # noqa: E402
from seq2exp.kernels.gather import triton_kernels as kernels  # noqa: E402

INTERPRETED = Path(__file__).with_name("interpreted_gather_triton.py")
KERNELS = [name for name in vars(kernels) if name.endswith("_kernel")]
ROWS = [
    dict(channels=128),
    dict(channels=128, dtype=BFLOAT),
    dict(channels=1),
    dict(channels=1100, dtype=HALF, mask_dtype=BFLOAT),
]


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, list[str]]:
    return interpreted.failures(INTERPRETED, "not slow", tmp_path_factory.mktemp("interpreted") / "report.xml")


@pytest.mark.parametrize("name", interpreted.names(INTERPRETED, slow=False))
def test_in_the_interpreter(failures, name):
    assert not failures[name], "\n\n".join(failures[name])


@pytest.fixture(params=[80, 90])
def started(request, monkeypatch) -> Iterator[list[Started]]:
    """Launches are compiled for an architecture and listed."""
    found: list[Started] = []
    driver.set_active(Device(request.param))
    for name in KERNELS:
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), found))
    yield found


def check(started: list[Started], *names: str) -> None:
    """What ran, all of it without spills or atomics."""
    assert [x.name for x in started] == [f"{name}_kernel" for name in names]
    for x in started:
        assert x.kernel.local_accesses == 0, x.name
        assert not any(i.opcode.startswith(("ATOM", "RED")) for i in x.kernel.code)


def test_selection_compiles(started):
    module.select(moved(problem(), device="meta").mask, 160)
    check(started, "select_count", "select_scan", "select_place")


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_packing_compiles(started, options):
    p = moved(problem(**options), device="meta")
    indices = torch.empty(160, dtype=torch.int64, device="meta")
    values = module.pack_forward(p.x, p.mask, indices)
    module.pack_backward(values, p.x, p.mask, indices)
    check(started, "pack_fwd", "unpack_fwd")
    if p.x.shape[2] == 128:
        for x in started:
            assert any(i.opcode == "STG" and ".128" in i.name for i in x.kernel.code), x.name


def test_unpacking_compiles(started):
    values = torch.empty(160, 128, dtype=BFLOAT, device="meta")
    indices = torch.empty(160, dtype=torch.int64, device="meta")
    module.unpack_backward(module.unpack_forward(values, indices, (2, 130)), indices)
    check(started, "unpack_fwd", "pack_fwd")
