"""A published model on a GPU through each backend of the scan: outputs and gradients of its golden file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from scan_problems import rms_error

from seq2exp.backbone import Caduceus
from seq2exp.kernels import backends, set_backend

REHEARSAL = os.environ.get("SEQ2EXP_REHEARSAL") == "1"
DEVICE, BACKENDS = ("cpu", ("cpu",)) if REHEARSAL else ("cuda", ("triton", "cuda"))
GOLDEN = Path(__file__).resolve().parents[2] / "carry" / "golden" / "caduceus.pt"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not REHEARSAL and not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not GOLDEN.exists(), reason="carry/golden is not here: make carry"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_model(backend):
    if reason := backends()[backend]:
        pytest.skip(reason)
    golden = torch.load(GOLDEN, weights_only=True)
    model = Caduceus(**golden["model"])
    model.load_state_dict(golden["weights"])
    model.to(DEVICE)
    with set_backend(backend):
        out = model(golden["tokens"].to(DEVICE))
        out.logits.square().mean().backward()
    assert rms_error(out.hidden.detach(), golden["hidden"]) <= 1e-4
    assert rms_error(out.logits.detach(), golden["logits"]) <= 1e-4
    parameters = dict(model.named_parameters())
    assert golden["gradients"]
    for name, gradient in golden["gradients"].items():
        grad = parameters[name].grad
        assert grad is not None and rms_error(grad, gradient) <= 1e-3, name
