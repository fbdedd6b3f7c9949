"""Published checkpoints under their own names; that the numbers are those published is in test_golden.py."""

import pytest
import torch
from published_models import CADUCEUS, CASES, D_MODEL, LENGTH, SETTINGS, inputs, published, small

from seq2exp import Caduceus, Seq2Exp, UserError, load_official
from seq2exp.baselines import GeneExpBiMamba


@pytest.mark.parametrize("preset", CASES)
def test_bare_state_dict(preset):
    model = small(preset)
    loaded = load_official(published(model), CASES[preset])
    assert type(loaded) is type(model)
    assert not loaded.training
    expected = model.config if preset == "baseline" else model.config.replace(task_gradient=False)
    assert loaded.config == expected
    x = inputs()
    for ours, theirs in zip(loaded(*x), model(*x), strict=True):
        assert (ours is theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("fields", [{}, {"tied": False, "strategy": "ew_multiply"}], ids=["tied", "untied"])
def test_caduceus(fields):
    torch.manual_seed(0)
    model = Caduceus(12, D_MODEL, 2, d_state=4, **fields)
    weights = published(model)
    if fields:
        for key in list(weights):
            if ".mamba_fwd.rev_" in key:
                weights[key.replace(".mamba_fwd.rev_", ".mamba_rev.")] = weights.pop(key)
            elif ".mamba_rev.rev_" in key:
                del weights[key]
    settings = {"bidirectional_weight_tie": False, "bidirectional_strategy": "ew_multiply"} if fields else {}
    loaded = load_official(weights, CADUCEUS | settings)
    tokens = torch.randint(0, 12, (2, 20))
    out = loaded(tokens)
    assert isinstance(loaded, Caduceus)
    assert (out.hidden.shape, out.logits.shape) == ((2, 20, D_MODEL), (2, 20, 12))
    assert torch.equal(out.logits, model(tokens).logits)


def test_the_class_is_told_from_the_keys():
    without_class = {k: v for k, v in SETTINGS.items() if k != "_class"}
    assert isinstance(load_official(published(small("soft")), without_class), Seq2Exp)
    assert isinstance(load_official(published(small("baseline")), without_class), GeneExpBiMamba)
    assert isinstance(
        load_official(published(Caduceus(12, D_MODEL, 1, d_state=4)), {"ssm_cfg": {"d_state": 4}}), Caduceus
    )


def test_priors_stored_in_the_state_dict_win():
    weights = published(small("soft")) | {
        "prior_weights": torch.log(torch.tensor([0.5, 0.25, 0.25])),
        "signal_betas": torch.tensor([1.0, 2.0, 3.0]),
    }
    config = load_official(weights, SETTINGS).config
    assert config.signal_weights == pytest.approx((0.5, 0.25, 0.25))
    assert config.signal_betas == (1.0, 2.0, 3.0)


def dropped(*names):
    return lambda weights: {k: v for k, v in weights.items() if k not in names}


@pytest.mark.parametrize(
    "preset,change,settings,words",
    [
        ("soft", dropped("mask_output.bias"), {}, "lacks mask_output.bias"),
        ("soft", dropped("mask_output.weight"), {}, "lacks mask_output.weight"),
        ("soft", dropped("signal_input_layer.weight"), {}, "signal_input_layer.weight"),
        ("soft", dropped("pToExpr.2.weight"), {}, "pToExpr.2.weight"),
        ("soft", lambda w: w | {"extra.weight": torch.ones(1)}, {}, "unexpected extra.weight"),
        ("soft", lambda w: {}, {}, "lacks"),
        (
            "soft",
            lambda w: w,
            {"ssm_cfg": {"d_state": 5}},
            r"x_proj.weight is \(9, 16\) .*, the settings make it \(11, 16\); is ssm_cfg.d_state that",
        ),
        ("soft", lambda w: w, {"_class": "GeneExpBiMamba"}, "input_layer.weight"),
        ("soft", lambda w: w, {"_class": "CaduceusForMaskedLM"}, "word_embeddings.weight"),
        ("soft", lambda w: w, {"_class": "Enformer"}, "class 'Enformer' is unknown"),
        ("soft", lambda w: w, {"center_len": LENGTH + 1}, "center is 33, longer than length"),
        ("soft", lambda w: w, {"marginal_mean": 1.5}, "prior_mean"),
        ("soft", lambda w: w, {"prior_weight": "two,two,one"}, "prior_weight"),
        (
            "soft",
            lambda w: w,
            {"post_sample": False},
            r"post_sample=False of the published model is not supported \(supported: True",
        ),
        ("soft", lambda w: w, {"rcps": True}, "rcps=True"),
        ("hard", lambda w: w, {"seq_range": 64}, r"pos_emb is \(32, 8\) in the state dict, .*seq_range"),
        ("baseline", dropped("input_layer.weight"), {}, "input_layer.weight"),
        (
            "baseline",
            lambda w: {k.replace("caduceus.", "pre_model."): v for k, v in w.items()},
            {"fused_add_norm": False},
            "fused_add_norm=False with pretrained_model",
        ),
    ],
)
def test_refused_in_a_sentence_that_names_the_key(preset, change, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        load_official(change(published(small(preset))), CASES[preset] | settings)
    assert "\n" not in str(caught.value)


def test_missing_priors_are_asked_for():
    settings = {k: v for k, v in SETTINGS.items() if k != "prior_beta"}
    with pytest.raises(UserError, match="signal_betas is neither in the state dict nor, as prior_beta, in the config"):
        load_official(published(small("soft")), settings)
