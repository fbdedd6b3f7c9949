"""The Mamba baseline: the published backbone and head, tokens as published."""

import pytest
import torch
from plain_caduceus import mixer_model
from published_models import CENTER, FEATURES, LENGTH, published_mamba, small_mamba
from torch.nn import functional as F

from seq2exp import UserError, load_official
from seq2exp.baselines import GeneExpMamba, GeneExpMambaConfig


def published_form(weights, sequence, features):
    """Expression, from the published state dict in its own dtype."""
    hidden = mixer_model(sequence.long() + 7, weights)
    start = (LENGTH - CENTER) // 2
    x = torch.cat([hidden[:, start : start + CENTER].mean(1), features.to(hidden.dtype)], -1)
    for i in (0, 2, 4):
        x = F.linear(x, weights[f"pToExpr.{i}.weight"], weights[f"pToExpr.{i}.bias"])
        x = x.relu() if i < 4 else x
    return x[:, 0]


@pytest.mark.parametrize("recompute", ["none", "layer"])
def test_equals_the_published_form_forward_and_backward(recompute):
    model = small_mamba(recompute=recompute).double()
    weights = {k: v.double().requires_grad_() for k, v in published_mamba(model).items()}
    sequence, features = torch.randint(0, 5, (2, LENGTH), dtype=torch.uint8), torch.rand(2, FEATURES).double()
    expected = published_form(weights, sequence, features)
    expression = model(sequence, None, features).expression
    torch.testing.assert_close(expression, expected, rtol=1e-9, atol=1e-12)
    one_hot = torch.eye(5, 4).double()[sequence.long()]
    torch.testing.assert_close(model(one_hot, None, features).expression, expected, rtol=1e-9, atol=1e-12)
    expected.square().sum().backward()
    expression.square().sum().backward()
    ours = published_mamba(model, gradients=True)
    for key, value in weights.items():
        torch.testing.assert_close(ours[key], value.grad, rtol=1e-7, atol=1e-12, msg=key)


def test_bfloat16_autocast_is_near():
    model = small_mamba()
    inputs = torch.randint(0, 5, (2, LENGTH), dtype=torch.uint8), None, torch.rand(2, FEATURES)
    exact = model(*inputs).expression
    with torch.autocast("cpu", torch.bfloat16):
        near = model(*inputs).expression
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0, atol=0.02)


def test_the_gene_to_the_right_does_not_reach_back():
    model = small_mamba(center=1)
    sequence = torch.randint(0, 5, (1, LENGTH), dtype=torch.uint8)
    other = sequence.clone()
    other[:, LENGTH // 2 + 1 :] = (other[:, LENGTH // 2 + 1 :] + 1) % 5
    features = torch.rand(1, FEATURES)
    assert torch.equal(model(sequence, None, features).expression, model(other, None, features).expression)


def test_saves_and_loads(tmp_path):
    model = small_mamba()
    model.save_pretrained(tmp_path)
    loaded = GeneExpMamba.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_loads_from_the_published_state_dict():
    model = small_mamba()
    settings = {"seq_range": LENGTH, "center_len": CENTER, "vocab_size": 12}
    loaded = load_official(published_mamba(model), settings)
    assert isinstance(loaded, GeneExpMamba) and loaded.config == model.config
    inputs = torch.randint(0, 5, (2, LENGTH), dtype=torch.uint8), None, torch.rand(2, FEATURES)
    assert torch.equal(loaded(*inputs).expression, model(*inputs).expression)
    whole = load_official(published_mamba(model), settings | {"center_len": 0})
    assert whole.config.center == LENGTH
    wrapped = {f"model.{key}": value for key, value in published_mamba(model).items()}
    assert load_official(wrapped, settings).config == model.config


def test_another_vocabulary_is_refused():
    weights = published_mamba(small_mamba(vocabulary=20))
    with pytest.raises(UserError, match="20 tokens, the published tokenizer has 12, padded to 16"):
        load_official(weights, {"seq_range": LENGTH, "center_len": CENTER})
    with pytest.raises(ValueError, match="is no token"):
        GeneExpMambaConfig(vocabulary=11)
