"""Caduceus checkpoints in the Hugging Face layout, held against the published equations in float64."""

import json

import pytest
import torch
from plain_caduceus import equivariant, reverse_complement
from published_caduceus import CONFIG, LENGTH, MAP, PS, TOKENS, D, plain_weights, wrapped
from safetensors.torch import save_file

from seq2exp import Caduceus, UserError, load_official


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_equivariant_equals_the_published_equations(layers, fused, tied):
    weights = wrapped(plain_weights(layers, tied), fused)
    settings = PS | {"n_layer": layers, "fused_add_norm": fused, "bidirectional_weight_tie": tied}
    tokens = torch.randint(0, TOKENS, (2, LENGTH))
    double = {k: v.double() if v.is_floating_point() else v for k, v in weights.items()}
    hidden, logits = equivariant(tokens, double, MAP, fused=fused)
    model = load_official(weights, settings).double()
    out = model(tokens)
    torch.testing.assert_close(out.hidden, hidden, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.logits, logits, rtol=1e-10, atol=1e-12)
    other = model(MAP[tokens.flip(1)])
    torch.testing.assert_close(other.hidden, reverse_complement(out.hidden), rtol=1e-10, atol=1e-12)


def test_the_two_paths_differ():
    """Else the test above shows nothing of the exchange."""
    weights, tokens = plain_weights(2), torch.randint(0, TOKENS, (1, LENGTH))
    one = equivariant(tokens, wrapped(weights, True), MAP, fused=True)[1]
    two = equivariant(tokens, wrapped(weights, False), MAP, fused=False)[1]
    assert (one - two).abs().max() > 0.01


def test_the_keys_tell_the_path_and_the_config_goes_before_them():
    weights, tokens = plain_weights(2), torch.randint(0, TOKENS, (1, LENGTH))
    for fused in (True, False):
        _, logits = equivariant(tokens, wrapped(weights, fused), MAP, fused=fused)
        torch.testing.assert_close(load_official(wrapped(weights, fused))(tokens).logits, logits, rtol=1e-4, atol=1e-5)
    _, logits = equivariant(tokens, wrapped(weights, False), MAP, fused=False)
    found = load_official(wrapped(weights, True), {"fused_add_norm": False})
    torch.testing.assert_close(found(tokens).logits, logits, rtol=1e-4, atol=1e-5)


def test_folders_whose_tied_parameters_are_there_once(tmp_path):
    weights = wrapped(plain_weights(2), True)
    expected = load_official(weights, PS)(tokens := torch.randint(0, TOKENS, (1, LENGTH)))
    once = {k: v for k, v in weights.items() if k != "lm_head.lm_head.weight" and ".mamba_rev.in_proj" not in k}
    save_file(once, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(PS | {"n_layer": 2, "fused_add_norm": True}))
    assert torch.equal(load_official(tmp_path)(tokens).logits, expected.logits)
    plain = plain_weights(2)
    logits = load_official(plain, CONFIG | {"rcps": False})(tokens).logits
    tied = plain | {"lm_head.weight": plain["caduceus.backbone.embeddings.word_embeddings.weight"]}
    del plain["lm_head.weight"]
    assert torch.equal(load_official(plain, CONFIG)(tokens).logits, load_official(tied, CONFIG)(tokens).logits)
    assert not torch.equal(load_official(plain, CONFIG)(tokens).logits, logits)


def test_saves_and_loads(tmp_path):
    model = load_official(wrapped(plain_weights(3), True), PS)
    model.save_pretrained(tmp_path)
    loaded = Caduceus.from_pretrained(tmp_path)
    tokens = torch.randint(0, TOKENS, (1, LENGTH))
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens).hidden, model(tokens).hidden)


def edited(**fields):
    return lambda weights: {k: fields.get(k.rpartition(".")[2], v) for k, v in weights.items()}


@pytest.mark.parametrize(
    "change,settings,words",
    [
        (lambda w: w, {"vocab_size": 20}, "the embedding has 16 tokens, vocab_size is 20, padded 24"),
        (lambda w: w, {"n_layer": 5}, "has 2 layers under 'caduceus.backbone.', n_layer is 5"),
        (lambda w: w, {"complement_map": {"7": 8, "8": 7}}, "is not that of the state dict: another vocabulary"),
        (edited(complement_map=torch.arange(15)), {"complement_map": None}, "complement_map must map each of"),
        (edited(complement_map=torch.arange(16).roll(1)), {"complement_map": None}, "not an involution"),
        (lambda w: {k: v for k, v in w.items() if "complement" not in k}, {"complement_map": None}, "is neither in"),
        (lambda w: w, {"rms_norm": False}, "rms_norm=False .* not supported"),
        (lambda w: w, {"bidirectional_strategy": "concat"}, r"\(supported: 'add', 'ew_multiply'\)"),
        (lambda w: w | {"score.weight": torch.ones(2, D)}, {}, "CaduceusForSequenceClassification"),
        (lambda w: w | {"caduceus.backbone.norm_f.bias": torch.ones(D)}, {}, "rms_norm=False"),
        (lambda w: w, {"ssm_cfg": {"bias": True}}, "ssm_cfg.bias=True"),
        (lambda w: w, {"ssm_cfg": {"dt_rank": 3}}, "ssm_cfg.dt_rank=3 .* 'auto', which is 1 here"),
        (lambda w: w, {"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg.layer='Mamba2'"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(change, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        load_official(change(wrapped(plain_weights(2), True)), PS | settings)
    assert "\n" not in str(caught.value)
