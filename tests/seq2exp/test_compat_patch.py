"""`patch_caduceus`: the same numbers, the same parameters under the same names, and everything back again."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from published_modules import Backbone, BiMambaWrapper, CaduceusForMaskedLM
from safetensors.torch import load_file
from scan_problems import rms_error
from torch import nn

from seq2exp import UserError
from seq2exp.compat import patch_caduceus, unpatch_caduceus

KINDS = {
    "tied": {},
    "untied": {"tied": False},
    "multiply": {"strategy": "ew_multiply"},
    "untied multiply": {"tied": False, "strategy": "ew_multiply"},
    "no strategy": {"strategy": None},
    "strands": {"rcps": True},
    "narrow": {"d_conv": 2, "d_state": 3, "expand": 1},
}


def model(seed=0, **fields):
    torch.manual_seed(seed)
    return Backbone(**fields)


def hidden(rcps=False, length=70, **_):
    return torch.randn(2, length, 32 if rcps else 16, generator=torch.Generator().manual_seed(1))


def results(model, x):
    """Output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).mean().backward()
    return out.detach(), {"x": x.grad} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_same_outputs_and_gradients(kind):
    published = model(**KINDS[kind])
    theirs = results(published, hidden(**KINDS[kind]))
    assert patch_caduceus(published) == 2
    ours = results(published, hidden(**KINDS[kind]))
    assert rms_error(ours[0], theirs[0]) < 1e-5
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert rms_error(ours[1][name], gradient) < 1e-4, name


def test_golden_file(golden):
    """Logits and the gradient of every parameter of the published masked language model."""
    tensors = load_file(golden / "caduceus_ph.safetensors")
    published = CaduceusForMaskedLM(16, 32, 2, d_state=16)
    published.load_state_dict({key.removeprefix("w."): value for key, value in tensors.items() if key.startswith("w.")})
    assert patch_caduceus(published) == 2
    logits = published(tensors["in.input_ids"])
    assert rms_error(logits.detach(), tensors["out.logits"].double()) < 1e-5
    logits.square().mean().backward()
    for name, parameter in published.named_parameters():
        assert rms_error(parameter.grad, tensors[f"g.{name}"].double()) < 1e-4, name


def test_the_modules_of_compat():
    """Those that `python -m seq2exp.compat` gives published code as mamba-ssm's."""
    from seq2exp.compat.mamba_ssm import Mamba

    published = model()
    for layer in published.layers:
        layer.mixer.mamba_fwd, layer.mixer.mamba_rev = Mamba(16, d_state=4), Mamba(16, d_state=4)
    before = published(hidden())
    assert patch_caduceus(published) == 2
    torch.testing.assert_close(published(hidden()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"rcps": True}, {"tied": False}])
def test_the_published_forward_is_not_called_until_it_is_back(fields, monkeypatch):
    published = model(**fields)
    x, modules = hidden(**fields), list(published.modules())
    before = published(x)
    assert patch_caduceus(published) == 2
    monkeypatch.setattr(BiMambaWrapper, "forward", lambda *_, **__: pytest.fail("the published layer ran"))
    torch.testing.assert_close(published(x), before, rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    assert unpatch_caduceus(published) == 2
    assert torch.equal(published(x), before)
    assert [*map(id, published.modules())] == [*map(id, modules)]
    assert all("forward" not in vars(module) for module in modules)
    assert unpatch_caduceus(published) == 0


def test_parameters_names_and_hooks_stay():
    published = model()
    parameters = dict(published.named_parameters(remove_duplicate=False))
    keys = list(published.state_dict())
    heard = []
    published.layers[0].mixer.register_forward_hook(lambda *_: heard.append(1))
    patch_caduceus(published)
    after = dict(published.named_parameters(remove_duplicate=False))
    assert after.keys() == parameters.keys() and all(after[name] is p for name, p in parameters.items())
    assert list(published.state_dict()) == keys
    published(hidden())
    assert heard == [1]


def test_an_optimizer_goes_on():
    """Adam with its moments: three steps, the layers replaced in between, as three published steps."""
    runs = []
    for patched in (False, True):
        published = model()
        optimizer = torch.optim.Adam(published.parameters(), lr=1e-2)
        for step in range(3):
            if patched and step == 1:
                patch_caduceus(published)
            optimizer.zero_grad()
            published(hidden()).square().mul(torch.linspace(0, 1, 16)).mean().backward()
            optimizer.step()
        runs.append(published.state_dict())
    for name, theirs in runs[0].items():
        assert rms_error(runs[1][name], theirs) < 1e-4, name


def test_patching_twice_replaces_nothing_more():
    published = model()
    assert (patch_caduceus(published), patch_caduceus(published), unpatch_caduceus(published)) == (2, 0, 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("fields", [{}, {"rcps": True}])
def test_copies_are_patched_and_independent(copied, fields):
    published = model(**fields)
    x = hidden(**fields)
    patch_caduceus(published)
    other = copied(published)
    before = other(x)
    assert torch.equal(before, published(x))
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.mul_(0.5)
    assert torch.equal(other(x), before) and not torch.equal(published(x), before)
    assert unpatch_caduceus(other) == 2
    assert patch_caduceus(published) == 0


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_of_another_model(assign):
    published, other = model(), model(seed=1, tied=False)
    patch_caduceus(published)
    if assign:  # new parameters, whose projections are no longer tied
        published.load_state_dict(other.state_dict(), assign=True)
    else:
        other = model(seed=1)
        published.load_state_dict(other.state_dict())
    torch.testing.assert_close(published(hidden()), other(hidden()), rtol=1e-4, atol=1e-5)


def test_bfloat16_and_autocast():
    published = model()
    patch_caduceus(published)
    expected = published(hidden())
    with torch.autocast("cpu", torch.bfloat16):
        assert rms_error(published(hidden()), expected) < 2e-2
    out = published.bfloat16()(hidden().bfloat16())
    assert out.dtype == torch.bfloat16 and rms_error(out, expected) < 3e-2


def changed(change):
    published = model()
    change(published.layers[1].mixer)
    return published


def narrower(mixer):
    mixer.mamba_rev.D = nn.Parameter(torch.ones(3))


def without_convolution_bias(mixer):
    mixer.mamba_fwd.conv1d.bias = None


def concatenating(mixer):
    mixer.bidirectional_strategy = "concat"


@pytest.mark.parametrize(
    "broken,words",
    [
        (nn.Linear(2, 2), "Linear has no bidirectional layers"),
        (changed(narrower), r"layers.1.mixer does not fit our kernels: .*rev.D must be \(32,\), got \(3,\)"),
        (changed(without_convolution_bias), "layers.1.mixer.mamba_fwd lacks conv1d.bias"),
        (changed(concatenating), "layers.1.mixer .* strategy 'concat' is none of add, ew_multiply"),
        (model(bias=True), "layers.0.mixer.mamba_fwd has in_proj.bias too"),
        (model(d_conv=5), "layers.0.mixer .* 5 wide; widths of 2 to 4 are supported"),
    ],
)
def test_refused_in_a_sentence_and_left_alone(broken, words):
    with pytest.raises(UserError, match=words) as caught:
        patch_caduceus(broken)
    assert "\n" not in str(caught.value)
    assert all("forward" not in vars(module) for module in broken.modules())


def test_step_by_step_inference_is_not_ours():
    published = model()
    patch_caduceus(published)
    with pytest.raises(UserError, match="inference_params"):
        published.layers[0].mixer(hidden(), inference_params=object())


def test_one_direction_is_no_bidirectional_layer():
    published = model()
    for layer in published.layers:
        layer.mixer.mamba_rev = None
    with pytest.raises(UserError, match="no bidirectional layers"):
        patch_caduceus(published)
