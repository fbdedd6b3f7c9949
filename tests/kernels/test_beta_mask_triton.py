"""The mask's Triton kernels without a GPU: in the interpreter, and compiled for sm_80 and sm_90."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mask_problems import INPUTS, problem

triton = pytest.importorskip("triton", reason="triton is not installed")

from interpreted import failures, names  # noqa: E402
from static_triton import Device, Recorder, Started  # noqa: E402
from triton.runtime import driver  # noqa: E402

from seq2exp.kernels.beta_mask import triton as module  # noqa: E402
from seq2exp.kernels.beta_mask import triton_kernels as kernels  # noqa: E402

INTERPRETED = Path(__file__).with_name("interpreted_beta_mask_triton.py")
KERNELS = ["beta_mask_fwd_kernel", "beta_mask_finish_kernel", "beta_mask_bwd_kernel"]


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
    for name in KERNELS:
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), found))
    yield found


def test_compiles_without_spills_or_atomics(started):
    p = problem(length=1000, dtype=torch.bfloat16)
    inputs = {name: None if x is None else x.to("meta") for name, x in p.inputs.items()}
    _, saved, _ = module.forward(**inputs, s=p.settings)
    grads = p.grads._make(g.to("meta") for g in p.grads)
    module.backward(grads, *(inputs[name] for name in INPUTS), saved, p.settings, True, True)
    assert [x.name for x in started] == KERNELS
    for x in started:
        assert x.kernel.local_accesses == 0
        assert not any(i.opcode.startswith(("ATOM", "RED")) and "REDUX" not in i.opcode for i in x.kernel.code)
