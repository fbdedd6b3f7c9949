"""Seq2Exp from a pretrained Caduceus: in Python and as a section of the training file."""

import shutil

import pytest
import torch
from published_caduceus import CONFIG, MAP, PS, plain_weights, wrapped
from safetensors.torch import load_file, save_file

from seq2exp import Caduceus, Seq2Exp, Seq2ExpConfig, UserError, load_official, start_from_pretrained
from seq2exp.training import TrainConfig, train

TOKENS, LAYERS = 16, 2
FIELDS = dict(
    length=128, center=16, gene_features=0, d_model=8, d_state=2, generator_layers=LAYERS, predictor_layers=LAYERS
)


def pretrained(**fields):
    torch.manual_seed(3)
    own = dict(vocabulary=TOKENS, d_model=8, n_layers=LAYERS, d_state=2)
    model = Caduceus(**own | fields)
    with torch.no_grad():
        model.embedding.weight.normal_()
    return model.eval()


def new(**fields):
    torch.manual_seed(4)
    return Seq2Exp(Seq2ExpConfig.soft(**FIELDS | fields)).eval()


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("parts", [("generator",), ("predictor",), ("generator", "predictor")])
@pytest.mark.parametrize("freeze", [False, True])
def test_the_parts_named_are_taken_over_and_frozen(parts, freeze):
    source, model, before = pretrained(), new(), new()
    assert start_from_pretrained(model, source, parts=parts, freeze=freeze) is model
    for part in ("generator", "predictor"):
        origin = source.backbone if part in parts else getattr(before, part)
        assert equal(weights(getattr(model, part)), weights(origin)), part
        for parameter in getattr(model, part).parameters():
            assert parameter.requires_grad == (not freeze or part not in parts)
    assert model.sequence_embedding.weight.requires_grad
    assert equal(weights(model.head), weights(before.head))


@pytest.mark.parametrize("equivariant", [False, True])
def test_the_generator_reads_what_the_language_model_reads(equivariant):
    """Its hidden states of a sequence are those that the pretrained model has of its tokens."""
    strands = {"rc_equivariant": True, "complement_map": MAP.tolist()} if equivariant else {}
    source, model = pretrained(**strands), new(rc_equivariant=equivariant)
    start_from_pretrained(model, source)
    sequence = torch.randint(0, 5, (2, 128), dtype=torch.uint8)
    both = [model._embedding(False)(sequence, None, complement=c) for c in ((False, True) if equivariant else (False,))]
    hidden = model.generator(torch.stack(both) if equivariant else both[0])
    expected = source(sequence.long() + 7).hidden
    ours = torch.cat([hidden[0], hidden[1].flip(-1)], -1) if equivariant else hidden
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_shared_backbone_is_both_parts():
    model = Seq2Exp(Seq2ExpConfig.hard(**FIELDS))
    start_from_pretrained(model, pretrained(), parts=["generator"], freeze=True)
    assert equal(weights(model.predictor), weights(pretrained().backbone))
    assert not any(parameter.requires_grad for parameter in model.predictor.parameters())


def test_sources(tmp_path):
    source = pretrained()
    source.save_pretrained(tmp_path / "ours")
    for path in (tmp_path / "ours", str(tmp_path / "ours")):
        assert equal(weights(start_from_pretrained(new(), path).generator), weights(source.backbone))
    torch.save({"state_dict": plain_weights(LAYERS), "hyper_parameters": CONFIG}, tmp_path / "last.ckpt")
    model = new(d_model=6, d_state=4)
    start_from_pretrained(model, tmp_path / "last.ckpt")
    assert equal(weights(model.predictor), weights(load_official(plain_weights(LAYERS), CONFIG).backbone))
    save_file(wrapped(plain_weights(3), True), tmp_path / "ps.safetensors")
    start_from_pretrained(
        new(d_model=6, d_state=4, rc_equivariant=True, generator_layers=3),
        tmp_path / "ps.safetensors",
        parts=["generator"],
    )


@pytest.mark.parametrize(
    "source,fields,words",
    [
        ({"d_model": 16}, {}, "d_model is 16, d_model of the model is 8"),
        ({"d_state": 4}, {}, "d_state is 4, d_state of the model is 2"),
        ({"n_layers": 3}, {}, "layers is 3, generator_layers of the model is 2"),
        ({}, {"predictor_layers": 1}, "layers is 2, predictor_layers of the model is 1"),
        ({}, {"rc_equivariant": True}, "rc_equivariant is False, rc_equivariant of the model is True"),
        ({"tied": False}, {}, "tied=False, .* Seq2Exp has tied=True"),
        ({"strategy": "ew_multiply"}, {}, "strategy='ew_multiply'; Seq2Exp has"),
        ({"vocabulary": 5}, {}, "a vocabulary of 5 tokens; the published tokenizer has 12, padded 16"),
    ],
)
def test_a_mismatch_is_named_and_changes_nothing(source, fields, words):
    model = new(**fields)
    before = weights(model)
    with pytest.raises(UserError, match=words) as caught:
        start_from_pretrained(model, pretrained(**source), freeze=True)
    assert "\n" not in str(caught.value)
    assert equal(weights(model), before) and all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_no_pretrained_caduceus(tmp_path):
    new().save_pretrained(tmp_path / "seq2exp")
    with pytest.raises(UserError, match=r"holds a Seq2Exp; load it with Seq2Exp\.from_pretrained"):
        start_from_pretrained(new(), tmp_path / "seq2exp")
    with pytest.raises(UserError, match="absent: no such file"):
        start_from_pretrained(new(), tmp_path / "absent")
    for parts in ([], ["encoder"]):
        with pytest.raises(UserError, match="give generator, predictor or both"):
            start_from_pretrained(new(), pretrained(), parts=parts)
    weights_of_ps = wrapped(plain_weights(2), True)
    with pytest.raises(UserError, match="rc_equivariant is True, rc_equivariant of the model is False"):
        start_from_pretrained(new(d_model=6, d_state=4), load_official(weights_of_ps, PS))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(settings, tmp_path):
    """Settings of a short run whose generator starts from a pretrained backbone of one layer, and stays as it is."""
    pretrained(n_layers=1).save_pretrained(tmp_path / "caduceus")
    return settings | {"pretrained": {"path": str(tmp_path / "caduceus"), "parts": ["generator"], "freeze": True}}


def test_frozen_layers_do_not_move_and_resume_keeps_them(started, tmp_path):
    expected = weights(pretrained(n_layers=1).backbone)
    whole = train(TrainConfig.model_validate(started), tmp_path / "whole", quiet=True).run
    saved = load_file(whole / "checkpoints" / "last.safetensors")
    assert all(torch.equal(saved[f"model.generator.{name}"], value) for name, value in expected.items())
    assert not any(name.startswith("optimizer") and ".generator." in name for name in saved)
    moved = {name for name in saved if name.startswith("optimizer.exp_avg.")}
    assert any("predictor" in name for name in moved) and any("sequence_embedding" in name for name in moved)

    half = tmp_path / "half"
    stopped_at(TrainConfig.model_validate(started), half, 2)
    (tmp_path / "caduceus").rename(tmp_path / "moved")  # no longer needed
    train(None, half, resume=True, quiet=True)
    again = load_file(half / "checkpoints" / "last.safetensors")
    assert again.keys() == saved.keys() and all(torch.equal(again[name], saved[name]) for name in saved)


def stopped_at(config, run, step):
    """Train, and be stopped after a checkpoint."""
    from seq2exp.training.trainer import Trainer

    class Stopped(Exception):
        pass

    class Stopping(Trainer):
        def _save(self):
            super()._save()
            if self.state.step == step:
                raise Stopped

    with pytest.raises(Stopped):
        Stopping(config, run, quiet=True).fit()


def test_not_frozen_it_starts_there_and_moves(started, tmp_path):
    fields = started | {"pretrained": started["pretrained"] | {"freeze": False}, "steps": 1, "checkpoint_every": 1}
    run = train(TrainConfig.model_validate(fields), tmp_path / "run", quiet=True).run
    saved = load_file(run / "checkpoints" / "last.safetensors")
    for name, value in weights(pretrained(n_layers=1).backbone).items():
        now = saved[f"model.generator.{name}"]
        torch.testing.assert_close(now, value, rtol=0, atol=1e-2)  # a step of AdamW
        assert not torch.equal(now, value), name


@pytest.mark.parametrize(
    "change,words",
    [
        ({"parts": ["encoder"]}, "pretrained.parts"),
        ({"parts": []}, "pretrained.parts: give generator, predictor or both"),
        ({"freeze": "perhaps"}, "pretrained.freeze"),
        ({"froze": True}, "pretrained.froze: unknown field, did you mean freeze?"),
        ({"path": "/nowhere"}, "/nowhere: no such file"),
        ({"parts": ["generator", "predictor"]}, None),
    ],
)
def test_the_section_is_checked(seq2exp, started, write_yaml, tmp_path, change, words):
    started = started | {"pretrained": started["pretrained"] | change, "steps": 1, "evaluate_every": 1}
    code, _, err = seq2exp("train", write_yaml(started), "--out", tmp_path / "run")
    assert (code == 0) == (words is None)
    assert words is None or (words in err and len(err.splitlines()) == 1), err


def test_other_models_do_not_take_it(seq2exp, started, write_yaml, tmp_path):
    model = {"name": "mamba", "length": 128, "center": 16, "d_model": 8, "layers": 1}
    code, _, err = seq2exp("train", write_yaml(started | {"model": model}), "--out", tmp_path / "run")
    assert code == 2 and "pretrained is for seq2exp, model.name is mamba" in err


# --- from a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(settings, tmp_path):
    """A run of two steps."""
    short = settings | {"steps": 2, "evaluate_every": 2}
    return train(TrainConfig.model_validate(short), tmp_path / "earlier", quiet=True).run


def test_a_run_starts_from_the_weights_of_another(settings, earlier, tmp_path):
    first = load_file(earlier / "best" / "model.safetensors")
    still = settings | {"start_from": earlier, "optimizer": {"lr": 1e-30}, "steps": 1, "evaluate_every": 1}
    still["schedule"] = {"warmup_steps": 0, "start_lr": 0.0, "end_lr": 0.0}
    longer = still | {"model": settings["model"] | {"length": 192}}
    for name, fields in (("same", still), ("longer", longer)):
        run = train(TrainConfig.model_validate(fields), tmp_path / name, quiet=True).run
        now = load_file(run / "best" / "model.safetensors")
        assert now.keys() == first.keys()
        assert all(torch.allclose(now[key], first[key], rtol=1e-5, atol=1e-7) for key in first), name


def test_resumed_it_does_not_look_at_the_other_run_again(settings, earlier, tmp_path):
    shutil.copytree(earlier, tmp_path / "other")
    fields = settings | {"start_from": tmp_path / "other"}
    whole = train(TrainConfig.model_validate(fields), tmp_path / "whole", quiet=True).run
    stopped_at(TrainConfig.model_validate(fields), tmp_path / "half", 2)
    shutil.rmtree(tmp_path / "other")
    train(None, tmp_path / "half", resume=True, quiet=True)
    saved, again = (load_file(run / "checkpoints" / "last.safetensors") for run in (whole, tmp_path / "half"))
    assert all(torch.equal(again[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"start_from": "/nowhere"}, "/nowhere: neither a run folder nor a saved model"),
        ({"model": {"d_model": 16}}, "its weights do not fit: "),
        ({"model": {"generator_layers": 2}}, "is absent there, (8,) here"),
        ({"model": {"name": "mamba", "layers": 1}}, "holds a Seq2Exp"),
        ({"pretrained": {"path": "caduceus"}}, "pretrained and start_from"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(seq2exp, settings, earlier, write_yaml, tmp_path, change, words):
    model = settings["model"] | change.get("model", {})
    if "name" in model:
        model = {"length": 128, "center": 16, "d_model": 8, **change["model"]}
    fields = settings | {"start_from": str(earlier)} | change | {"model": model}
    code, _, err = seq2exp("train", write_yaml(fields), "--out", tmp_path / "run")
    assert code == 2 and words in err and len(err.splitlines()) == 1, err
