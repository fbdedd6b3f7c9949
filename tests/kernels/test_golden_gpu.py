"""A published model on a GPU through each backend of the scan: outputs and gradients of its golden file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from on_gpu import BACKENDS, DEVICE, MARKS, forced
from scan_problems import rms_error

from seq2exp.backbone import Caduceus

GOLDEN = Path(__file__).resolve().parents[2] / "carry" / "golden" / "caduceus.pt"

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not GOLDEN.exists(), reason="carry/golden is not here: make carry"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_model(backend):
    golden = torch.load(GOLDEN, weights_only=True)
    model = Caduceus(**golden["model"])
    model.load_state_dict(golden["weights"])
    model.to(DEVICE)
    with forced(backend):
        out = model(golden["tokens"].to(DEVICE))
        out.logits.square().mean().backward()
    assert rms_error(out.hidden.detach(), golden["hidden"]) <= 1e-4
    assert rms_error(out.logits.detach(), golden["logits"]) <= 1e-4
    parameters = dict(model.named_parameters())
    assert golden["gradients"]
    for name, gradient in golden["gradients"].items():
        grad = parameters[name].grad
        assert grad is not None and rms_error(grad, gradient) <= 1e-3, name
