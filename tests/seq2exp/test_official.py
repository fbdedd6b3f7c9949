"""Published checkpoints under their own names; that the numbers are those published is in test_golden.py."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from seq2exp import Caduceus, Seq2Exp, Seq2ExpConfig, UserError, load_official
from seq2exp.baselines import GeneExpBiMamba, GeneExpBiMambaConfig

LENGTH, CENTER, FEATURES, D_MODEL = 32, 4, 2, 8
SETTINGS = {
    "seq_range": LENGTH, "center_len": CENTER, "prior_beta": "1.5,0.2,1.0", "prior_weight": "2,2,1",
    "ssm_cfg": {"d_state": 4}, "_class": "GeneBiMambaMIRNP",
}  # fmt: skip
HARD = SETTINGS | {
    "post_hard_dist": True, "enc_prd_ps": True, "pos_enc": True, "prior_scale_factor": 1.0, "beta_min": 0,
    "marginal_mean": 0.45, "marginal_scale": 0.1,
}  # fmt: skip
BASELINE = SETTINGS | {"_class": "GeneExpBiMamba"}
CADUCEUS = {"_class": "CaduceusForMaskedLM", "ssm_cfg": {"d_state": 4}}

MODULES = {
    "sequence_embedding.": "seq_input_layer.", "signal_embedding.": "signal_input_layer.", "mask_head.": "mask_output.",
    "head.layers.": "pToExpr.", "predictor.": "encoder.backbone.", "generator.": "generator.backbone.",
    "embedding.": "caduceus.backbone.embeddings.word_embeddings.", "backbone.": "caduceus.backbone.",
}  # fmt: skip
WEIGHTS = {
    "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "x_proj": "x_proj.weight", "dt_proj": "dt_proj.weight",
    "dt_bias": "dt_proj.bias",
}  # fmt: skip


def published(model):
    """The state dict of a model of ours under the published names, tied projections twice as published."""
    found = {}
    for name, value in model.state_dict().items():
        value = value.clone()
        if name == "position_embedding":
            found["pos_emb"] = value[None]
            continue
        for ours, theirs in MODULES.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        head, _, last = name.rpartition(".")
        if head.endswith(".mixer"):
            for direction in ("fwd", "rev"):
                found[f"{head}.mamba_{direction}.{last}.weight"] = value.clone()
        elif head.endswith((".mixer.fwd", ".mixer.rev")):
            stem, direction = head[:-3], head[-3:]
            found[f"{stem}mamba_{direction}.{WEIGHTS.get(last, last)}"] = value
        else:
            found[name.replace("backbone.norm.", "backbone.norm_f.")] = value
    return found


def small(preset):
    torch.manual_seed(0)
    fields = dict(length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=D_MODEL, d_state=4)
    if preset == "baseline":
        return GeneExpBiMamba(GeneExpBiMambaConfig(**fields, layers=2, interact="signal")).eval()
    return Seq2Exp(getattr(Seq2ExpConfig, preset)(**fields, generator_layers=2, predictor_layers=2)).eval()


CASES = {
    "soft": SETTINGS,
    "hard": HARD,
    "top_fraction": SETTINGS | {"test_top": True, "test_top_percent": 0.1},
    "baseline": BASELINE,
}


def inputs():
    return torch.randint(0, 5, (2, LENGTH), dtype=torch.uint8), torch.rand(2, LENGTH, 3), torch.rand(2, FEATURES)


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


def test_paths(tmp_path):
    model = small("soft")
    save_file(published(model), tmp_path / "model.safetensors")
    torch.save(published(model), tmp_path / "model.pt")
    x = inputs()
    for path in (tmp_path / "model.safetensors", str(tmp_path / "model.pt")):
        assert torch.equal(load_official(path, SETTINGS)(*x).expression, model(*x).expression)


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_pickle_with_code_is_not_run(tmp_path, suffix):
    path, nest = tmp_path / f"model{suffix}", tmp_path / "nest"
    pickle.loads(pickle.dumps(Canary(nest)))
    assert nest.is_dir(), "the canary does not sing: the test shows nothing"
    nest.rmdir()
    torch.save(published(small("soft")) | {"canary": Canary(nest)}, path)
    with pytest.raises(UserError, match="not a bare state dict"):
        load_official(path, SETTINGS)
    path.write_bytes(pickle.dumps(Canary(nest), protocol=2))
    with pytest.raises(UserError, match="not a bare state dict"):
        load_official(path, SETTINGS)
    assert not nest.exists()


def test_files_that_are_no_state_dict(tmp_path):
    with pytest.raises(UserError, match=r"absent.pt: no such file"):
        load_official(tmp_path / "absent.pt", SETTINGS)
    for name, content in {"a.pt": b"", "b.pt": b"text", "c.safetensors": b"text", "d.safetensors": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            load_official(tmp_path / name, SETTINGS)
        assert "\n" not in str(caught.value)
    torch.save({"state_dict": published(small("soft"))}, tmp_path / "nested.pt")
    with pytest.raises(UserError, match=r"nested.pt: not a bare state dict"):
        load_official(tmp_path / "nested.pt", SETTINGS)


def dropped(*names):
    return lambda weights: {k: v for k, v in weights.items() if k not in names}


@pytest.mark.parametrize(
    "preset,change,settings,words",
    [
        ("soft", dropped("mask_output.bias"), {}, "lacks mask_head.bias"),
        ("soft", dropped("mask_output.weight"), {}, "lacks mask_head.weight"),
        ("soft", dropped("signal_input_layer.weight"), {}, "signal_input_layer.weight"),
        ("soft", dropped("pToExpr.2.weight"), {}, "pToExpr.2.weight"),
        ("soft", lambda w: w | {"extra.weight": torch.ones(1)}, {}, "unexpected extra.weight"),
        ("soft", lambda w: {}, {}, "lacks"),
        ("soft", lambda w: w, {"ssm_cfg": {"d_state": 5}}, r"x_proj is \(9, 16\) in the state dict, .* \(11, 16\)"),
        ("soft", lambda w: w, {"_class": "GeneExpBiMamba"}, "input_layer.weight"),
        ("soft", lambda w: w, {"_class": "CaduceusForMaskedLM"}, "word_embeddings.weight"),
        ("soft", lambda w: w, {"_class": "Enformer"}, "class 'Enformer' is unknown"),
        ("soft", lambda w: w, {"center_len": LENGTH + 1}, "center is 33, longer than length"),
        ("soft", lambda w: w, {"marginal_mean": 1.5}, "prior_mean"),
        ("soft", lambda w: w, {"prior_weight": "two,two,one"}, "prior_weight"),
        ("soft", lambda w: w, {"use_gumbel": True}, "use_gumbel=True of the published model is not supported"),
        ("soft", lambda w: w, {"rcps": True}, "rcps=True"),
        ("hard", lambda w: w, {"seq_range": 64}, r"position_embedding is \(32, 8\) in the state dict"),
        ("baseline", dropped("input_layer.weight"), {}, "input_layer.weight"),
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
