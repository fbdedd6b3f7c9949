"""A published model that was retrained on the mask of a frozen one."""

import pytest
import torch
from published_models import CENTER, D_MODEL, FEATURES, LENGTH, SETTINGS, inputs, lightning, published, run_settings
from safetensors.torch import load_file

from seq2exp import Seq2Exp, Seq2ExpConfig, UserError, load_official
from seq2exp.baselines import Retrained
from seq2exp.compat.official import GeneBiMambaMIRNP
from seq2exp.official.convert import convert, export
from seq2exp.strands import one_hot

RETRAINED = SETTINGS | {
    "use_mask_model": True, "mask_model": "", "top_mask_percent": 0.3, "test_soft": True, "gen_n_layer": 2,
    "enc_n_layer": 1, "rna_feat_dim": FEATURES, "d_model": D_MODEL,
}  # fmt: skip
PRIORS = {"prior_weights": torch.tensor([2.0, 2.0, 1.0]).div(5).log(), "signal_betas": torch.tensor([1.5, 0.2, 1.0])}


def model_of(seed, **fields):
    torch.manual_seed(seed)
    own = dict(length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=D_MODEL, d_state=4, select_bias=0.5)
    return Seq2Exp(Seq2ExpConfig.soft(**own | fields))


def state_dict():
    """The predictor of one model, the mask of another."""
    mask = published(model_of(1, generator_layers=2, predictor_layers=1)) | PRIORS
    own = published(model_of(2, generator_layers=1, predictor_layers=1))
    frozen = {f"mask_model.{k}": v for k, v in mask.items() if not k.startswith(("encoder.", "pToExpr."))}
    return frozen | {k: v for k, v in own.items() if not k.startswith(("generator.", "mask_output."))}


@pytest.mark.parametrize("route", ["checkpoint", "converted", "exported"])
def test_equals_the_published_forward(route, tmp_path):
    weights = state_dict()
    torch.save(lightning(weights, run_settings(RETRAINED)), tmp_path / "last.ckpt")
    model = load_official(tmp_path / "last.ckpt")
    if route != "checkpoint":
        convert(tmp_path / "last.ckpt", tmp_path / "ours")
        model = Retrained.from_pretrained(tmp_path / "ours")
    if route == "exported":
        export(tmp_path / "ours", tmp_path / "official")
        back = load_file(tmp_path / "official" / "model.safetensors")
        assert back.keys() == weights.keys() and all(torch.equal(back[key], weights[key]) for key in back)
        model = load_official(tmp_path / "official")
    assert isinstance(model, Retrained)
    reference = GeneBiMambaMIRNP({k: v for k, v in RETRAINED.items() if k != "_class"}).eval()
    reference.load_state_dict(weights, strict=False)
    sequence, signals, features = inputs()
    regions = torch.rand(2, LENGTH, 2) < 0.2
    expected, _, mask = reference(one_hot(sequence, torch.float32), signals, regions, rna_feat=features)
    out = model(sequence, signals, features, exclude=regions[..., 1])
    assert torch.equal(out.mask, mask) and int(mask.sum(1)[0]) == int(0.3 * LENGTH)
    torch.testing.assert_close(out.expression, expected[:, 0], rtol=1e-5, atol=1e-6)


def test_the_frozen_model_stays_frozen():
    model = load_official(state_dict(), RETRAINED).train()
    model(*inputs()).expression.sum().backward()
    assert all(p.grad is None for p in model.frozen.parameters())
    assert all(p.grad is not None for p in model.predictor.parameters())


@pytest.mark.parametrize(
    "change,settings,words",
    [
        (lambda w: w, {"test_soft": False}, "test_soft=False with use_mask_model .* not supported"),
        (lambda w: w, {"pos_enc": True}, "pos_enc=True with use_mask_model"),
        (lambda w: w, {"top_mask_percent": 0.01}, "less than the centre, which counts in it"),
        (lambda w: {k: v for k, v in w.items() if "mask_model" not in k}, {}, "no layers under 'mask_model.generator"),
        (
            lambda w: {k: v for k, v in w.items() if k != "mask_model.mask_output.bias"}, {},
            "lacks mask_model.mask_output.bias",
        ),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(change, settings, words):
    with pytest.raises(UserError, match=words):
        load_official(change(state_dict()), RETRAINED | settings)


def test_one_of_ours_is_not_exported(tmp_path):
    load_official(state_dict(), RETRAINED).save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match="can only go back to the published layout that has come from there"):
        export(tmp_path / "ours", tmp_path / "official")
