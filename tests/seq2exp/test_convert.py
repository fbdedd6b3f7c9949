"""`seq2exp convert`: golden values through every route, and every parameter back bit for bit."""

import json

import pytest
import torch
from golden_models import SEQ2EXP, check_seq2exp, load
from published_caduceus import CONFIG, PS, TOKENS, plain_weights, wrapped
from published_models import (
    CASES,
    FEATURES,
    LENGTH,
    SETTINGS,
    lightning,
    published,
    published_mamba,
    run_settings,
    small,
    small_mamba,
)
from safetensors.torch import load_file, save_file

from seq2exp import Caduceus, Seq2Exp, UserError, load_official
from seq2exp.baselines import GeneExpBiMamba, GeneExpMamba
from seq2exp.official.convert import convert, export

PRIORS = {"prior_weights": torch.tensor([2.0, 2.0, 1.0]).div(5).log(), "signal_betas": torch.tensor([1.5, 0.2, 1.0])}
UNUSUAL = {"prior_weights": torch.tensor([0.3, -0.1, -torch.inf]), "signal_betas": torch.tensor([1.1, 0.3, 1.0])}


def golden_checkpoint(golden, name, path, with_settings=True):
    """A golden file as Lightning would have saved that model."""
    from safetensors import safe_open

    with safe_open(golden / f"{name}.safetensors", "pt") as file:
        weights = {key[2:]: file.get_tensor(key) for key in file.keys() if key.startswith("w.")}  # noqa: SIM118
        metadata = file.metadata()
    settings = json.loads(metadata["config"]) | {"_class": metadata["model"]}
    torch.save(lightning(weights, run_settings(settings) if with_settings else {}), path)
    return weights, settings


@pytest.mark.parametrize("route", ["checkpoint", "converted", "exported"])
@pytest.mark.parametrize("name", SEQ2EXP)
def test_golden_seq2exp(golden, name, route, tmp_path):
    golden_checkpoint(golden, name, tmp_path / "last.ckpt")
    model = load_official(tmp_path / "last.ckpt")
    if route != "checkpoint":
        convert(tmp_path / "last.ckpt", tmp_path / "ours")
        model = Seq2Exp.from_pretrained(tmp_path / "ours")
    if route == "exported":
        export(tmp_path / "ours", tmp_path / "official")
        model = load_official(tmp_path / "official")
    check_seq2exp(model, *load(golden, name)[1:], as_codes=True)


@pytest.mark.parametrize("name,kind", [("official_caduceus_signals", GeneExpBiMamba), ("caduceus_ph", Caduceus)])
def test_golden_others(golden, name, kind, tmp_path):
    golden_checkpoint(golden, name, tmp_path / "last.ckpt")
    convert(tmp_path / "last.ckpt", tmp_path / "ours")
    _, x, y, *_ = load(golden, name)
    for found in (load_official(tmp_path / "last.ckpt"), kind.from_pretrained(tmp_path / "ours")):
        if kind is Caduceus:
            out, expected = found(x["input_ids"]).logits, y["logits"]
        else:
            out, expected = found(x["tokens"], x["signals"], x["rna_feat"]).expression, y["prediction"][:, 0]
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_golden_settings_from_a_file(golden, tmp_path, seq2exp):
    """A checkpoint without settings, and the published YAML beside it."""
    _, settings = golden_checkpoint(golden, "official_hard", tmp_path / "last.ckpt", with_settings=False)
    (tmp_path / "model.yaml").write_text(json.dumps({"_name_": "BiMambaMIRNP", "config": settings}))
    code, out, err = seq2exp("convert", tmp_path / "last.ckpt", tmp_path / "ours", "--config", tmp_path / "model.yaml")
    assert code == 0, err
    check_seq2exp(Seq2Exp.from_pretrained(tmp_path / "ours"), *load(golden, "official_hard")[1:], as_codes=True)
    assert "GeneBiMambaMIRNP" in out and "as Seq2Exp" in out and "marginal_mean: 0.45" in out
    assert f"next: seq2exp evaluate {tmp_path / 'ours'} --store STORE" in out


BACK = {
    **{case: (lambda case=case: published(small(case)) | PRIORS, CASES[case]) for case in CASES if case != "baseline"},
    "baseline": (lambda: published(small("baseline")), CASES["baseline"]),
    "mamba": (lambda: published_mamba(small_mamba()), {"seq_range": LENGTH, "center_len": 4, "_class": "GeneExpMamba"}),
    "pretrained": (lambda: pre_model(published(small("baseline"))), CASES["baseline"] | {"pretrained_model": True}),
    "ph": (lambda: plain_weights(2), CONFIG),
    "untied": (lambda: plain_weights(3, tied=False), CONFIG | {"bidirectional_weight_tie": False}),
    **{
        f"ps {layers} {'fused' if fused else 'unfused'}": (
            lambda layers=layers, fused=fused: wrapped(plain_weights(layers), fused), PS | {"fused_add_norm": fused},
        )
        for layers in (2, 3) for fused in (True, False)
    },
}  # fmt: skip


def pre_model(weights):
    return {key.replace("caduceus.", "pre_model.", 1): value for key, value in weights.items()}


@pytest.mark.parametrize("case", BACK)
def test_every_parameter_comes_back_bit_for_bit(case, tmp_path):
    make, settings = BACK[case]
    weights = make()
    torch.save({"state_dict": weights, "hyper_parameters": settings}, tmp_path / "last.ckpt")
    found = convert(tmp_path / "last.ckpt", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "official")
    back = load_file(tmp_path / "official" / "model.safetensors")
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == value.dtype and torch.equal(back[key], value), key
    config = json.loads((tmp_path / "official" / "config.json").read_text())
    assert config["architectures"] == [found.kind]
    convert(tmp_path / "official", tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_record_is_complete(tmp_path):
    """Values that are no float of their own survive."""
    torch.save(published(small("soft")) | UNUSUAL, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "ours", SETTINGS)
    export(tmp_path / "ours", tmp_path / "official")
    back = load_file(tmp_path / "official" / "model.safetensors")
    for key, value in UNUSUAL.items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("case", ["soft", "hard", "top_fraction", "baseline", "mamba", "caduceus", "equivariant"])
def test_models_that_were_never_published_export_too(case, tmp_path):
    if case == "mamba":
        model = small_mamba()
    elif case in ("caduceus", "equivariant"):
        torch.manual_seed(0)
        strands = {"rc_equivariant": True, "complement_map": [3, 2, 1, 0, 4]} if case == "equivariant" else {}
        model = Caduceus(5, 8, 2, d_state=4, **strands).eval()
    else:
        model = small(case)
    model.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "official")
    loaded = load_official(tmp_path / "official")
    assert type(loaded) is type(model)
    own = dict(loaded.named_parameters())
    for name, value in model.named_parameters():
        assert torch.equal(own[name], value), name
    if isinstance(model, Caduceus):
        tokens = torch.randint(0, 5, (2, 20))
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    else:
        x = torch.randint(0, 5, (2, LENGTH), dtype=torch.uint8), torch.rand(2, LENGTH, 3), torch.rand(2, FEATURES)
        torch.testing.assert_close(loaded(*x).expression, model(*x).expression, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields,words",
    [
        (
            {"mask_placement": "every_layer"},
            "mask_placement='every_layer' is not a setting of the published",
        ),
        ({"rule": "product"}, "rule='product'"),
        ({"rc_equivariant": True}, "rc_equivariant=True"),
        ({"keep_threshold": 0.1}, "keep_threshold=0.1"),
    ],
)
def test_what_the_published_classes_do_not_have_is_named(fields, words, tmp_path):
    model = Seq2Exp(small("soft").config.replace(**fields))
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match=words):
        export(tmp_path / "ours", tmp_path / "official")
    assert not (tmp_path / "official").exists()


# --- the command ------------------------------------------------------------------------------------------------------


def test_there_and_back_on_the_command_line(seq2exp, tmp_path):
    weights = wrapped(plain_weights(3), True)
    (tmp_path / "hub").mkdir()
    save_file(weights, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text(json.dumps(PS | {"n_layer": 3}))
    code, out, err = seq2exp("convert", tmp_path / "hub", tmp_path / "ours")
    assert code == 0, err
    assert (
        f"CaduceusForMaskedLM, {sum(p.numel() for p in Caduceus.from_pretrained(tmp_path / 'ours').parameters()):,}"
        in out
    )
    assert f"pretrained: {{path: {tmp_path / 'ours'}}}" in out
    code, out, err = seq2exp("convert", tmp_path / "ours", tmp_path / "back", "--to", "official")
    assert code == 0, err
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[key], weights[key]) for key in back) and back.keys() == weights.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hub", "ours"]
    tokens = torch.randint(0, TOKENS, (1, 9))
    assert torch.equal(load_official(tmp_path / "back")(tokens).logits, load_official(weights, PS)(tokens).logits)


def test_converted_models_are_used_and_trained_ones_exported(seq2exp, trained, tiny_store, tmp_path):
    """As far as they fit: the store has no gene features, and the trained mask reads every layer."""
    torch.save(published(small("soft")), tmp_path / "x.pt")
    settings = {"seq_range": LENGTH, "center_len": 4, "prior_weight": "2,2,1", "prior_beta": "1,1,1"}
    (tmp_path / "x.json").write_text(json.dumps(settings))
    assert seq2exp("convert", tmp_path / "x.pt", tmp_path / "ours", "--config", tmp_path / "x.json")[0] == 0
    code, _, err = seq2exp("evaluate", tmp_path / "ours", "--store", tiny_store)
    assert code == 2 and "takes 2 gene features" in err
    code, _, err = seq2exp("convert", trained, tmp_path / "back", "--to", "official")
    assert code == 2 and "mask_placement='every_layer'" in err


def test_mistakes(seq2exp, tmp_path):
    torch.save(published(small("soft")), tmp_path / "x.pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "bad.yaml").write_text("- 1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model": "HyenaDNA"}')
    for arguments, words in (
        (("absent.ckpt", "out"), "absent.ckpt: no such file"),
        (("x.pt", "out"), "x.pt: prior_weights is neither in the state dict nor, as prior_weight, in the config"),
        (("x.pt", "out", "--config", "bad.yaml"), "bad.yaml: expected settings"),
        (("full", "out", "--to", "official"), "neither a run folder nor a saved model"),
        (("other", "out", "--to", "official"), "a HyenaDNA has no published counterpart"),
        (("full", "out"), "no checkpoint in it"),
        (("x.pt", "out", "--to", "official", "--config", "bad.yaml"), "--config is for published checkpoints"),
        (("x.pt", "out", "--to", "theirs"), "theirs"),
    ):
        paths = [tmp_path / x if "." in x or x in ("out", "full", "other") else x for x in arguments]
        code, _, err = seq2exp("convert", *paths)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
        assert not (tmp_path / "out").exists()
    golden = tmp_path / "x.json"
    golden.write_text(json.dumps({k: v for k, v in SETTINGS.items() if k != "_class"}))
    code, _, err = seq2exp("convert", tmp_path / "x.pt", tmp_path / "full", "--config", golden)
    assert code == 2 and "full: exists already; choose another folder" in err
    assert GeneExpMamba.__name__ in seq2exp("convert", tmp_path / "other", tmp_path / "out", "--to", "official")[2]
