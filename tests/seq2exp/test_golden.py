"""Equal to the published models on every golden file: outputs, and the gradient of every parameter."""

import pytest
import torch
from golden_models import SEQ2EXP, check_gradients, check_seq2exp, close, load
from torch.nn import functional as F

from seq2exp import seq2exp_loss
from seq2exp.baselines import PublishedForm


@pytest.mark.parametrize("as_codes", [True, False], ids=["codes", "one-hot"])
@pytest.mark.parametrize("name", SEQ2EXP)
def test_seq2exp(golden, name, as_codes):
    check_seq2exp(*load(golden, name), as_codes)


@pytest.mark.parametrize("name", ["official_soft", "official_hard"])
def test_composed_form(golden, name):
    model, *rest = load(golden, name)
    check_seq2exp(PublishedForm(model), *rest, as_codes=True)


def test_gene_exp_bimamba(golden):
    model, x, y, grads, kl_weight = load(golden, "official_caduceus_signals")
    out = model(x["tokens"], x["signals"], x["rna_feat"])
    close(out.expression, y["prediction"][:, 0], 1e-4)
    loss = seq2exp_loss(out, x["target"][:, 0], kl_weight)
    close(loss, y["loss"][0], 1e-4)
    close(model(x["seqs"], x["signals"], x["rna_feat"]).expression, out.expression, 1e-6)
    loss.backward()
    check_gradients(model, grads)


def test_caduceus(golden):
    model, x, y, grads, _ = load(golden, "caduceus_ph")
    out = model(x["input_ids"])
    close(out.hidden, y["hidden"], 1e-4)
    close(out.logits, y["logits"], 1e-4)
    F.mse_loss(out.logits, torch.zeros_like(out.logits)).backward()
    check_gradients(model, grads)
