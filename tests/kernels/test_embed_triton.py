"""embed_bases' Triton kernels without a GPU: in the interpreter, and compiled for sm_80 and sm_90."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from embed_problems import BFLOAT, HALF, moved, problem, results

triton = pytest.importorskip("triton", reason="triton is not installed")

from interpreted import failures, names  # noqa: E402
from static_triton import Device, Recorder, Started  # noqa: E402
from triton.runtime import driver  # noqa: E402

from seq2exp.kernels.embed import triton as module  # noqa: E402
from seq2exp.kernels.embed import triton_kernels as kernels  # noqa: E402

INTERPRETED = Path(__file__).with_name("interpreted_embed_triton.py")
COMPILED = [
    dict(d=128),
    dict(d=128, dtype=BFLOAT, signal_dtype=HALF, kept=0.5),
    dict(d=129, dtype=HALF, tracks=12, complement=True),
    dict(d=600, tracks=0, mask=False, positions=False),
]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, list[str]]:
    return failures(INTERPRETED, "not slow", tmp_path_factory.mktemp("interpreted") / "report.xml")


@pytest.mark.parametrize("name", names(INTERPRETED, slow=False))
def test_in_the_interpreter(interpreted, name):
    assert not interpreted[name], "\n\n".join(interpreted[name])


@pytest.fixture(params=[80, 90])
def started(request, monkeypatch) -> Iterator[list[Started]]:
    """Launches are compiled for an architecture and listed."""
    found: list[Started] = []
    driver.set_active(Device(request.param))
    for name in ("embed_fwd_kernel", "embed_bwd_kernel"):
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), found))
    yield found


@pytest.mark.parametrize("options", COMPILED, ids=str)
def test_compiles_without_spills_or_atomics(started, options):
    results(module, moved(problem((2, 3_000), **options), device="meta"))
    assert [x.name for x in started] == ["embed_fwd_kernel", "embed_bwd_kernel"]
    for x in started:
        assert x.kernel.local_accesses == 0
        assert not any(i.opcode.startswith(("ATOM", "RED")) for i in x.kernel.code)
        accesses = [i.name for i in x.kernel.code if i.opcode in ("LDG", "STG")]
        assert any(".128" in name for name in accesses) == (options["d"] % 8 == 0), accesses
