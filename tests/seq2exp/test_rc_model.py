"""Seq2Exp with rc_equivariant: the reverse complement of a window gets the reversed mask and the same expression."""

import json

import pytest
import torch
from equivariance import assert_near
from memory import memory
from torch.utils._python_dispatch import TorchDispatchMode

from seq2exp import Caduceus, CaduceusBackbone, Seq2Exp, Seq2ExpConfig, UserError, seq2exp_loss
from seq2exp.backbone import SHARING
from seq2exp.strands import complement, reverse_complement

FEATURES = 3
SETTINGS = {
    "soft": Seq2ExpConfig.soft,
    "hard": Seq2ExpConfig.hard,
    "hard, every layer": lambda **fields: Seq2ExpConfig.hard(mask_placement="every_layer", **fields),
    "top fraction": lambda **fields: Seq2ExpConfig.top_fraction(0.25, **fields),
    "top fraction, soft": lambda **fields: Seq2ExpConfig.top_fraction(0.25, hard=False, **fields),
    "discovery": Seq2ExpConfig.discovery,
}
settings = pytest.mark.parametrize("name", SETTINGS)
windows = pytest.mark.parametrize("length,center", [(64, 8), (65, 9)], ids=["even", "odd"])


def config(name="soft", length=64, center=8, **fields) -> Seq2ExpConfig:
    small = dict(gene_features=FEATURES, d_model=7, d_state=4, generator_layers=2, predictor_layers=2)
    return SETTINGS[name](length=length, center=center, **small | {"rc_equivariant": True} | fields)


def model(*args, **fields) -> Seq2Exp:
    """In evaluation mode, with mask logits wide enough to select some bases and reject others."""
    torch.manual_seed(0)
    made = Seq2Exp(config(*args, **fields))
    with torch.no_grad():
        made.mask_head.weight *= 8
    return made.eval()


def batch(length=64, n=3, dtype=torch.float32):
    """What GeneWindows gives: three tracks, the contacts last and smooth, and regions off the middle."""
    g = torch.Generator().manual_seed(1)
    exclude, include = (torch.zeros(n, length, dtype=torch.bool) for _ in range(2))
    exclude[:, 3:20], include[:, 10:14] = True, True
    include[0, 50:] = True
    tracks = torch.rand(n, length, 2, generator=g, dtype=dtype) * 1.8
    contacts = torch.exp(-torch.linspace(-1, 2, length, dtype=dtype).abs()).expand(n, length)
    return {
        "sequence": torch.randint(0, 5, (n, length), generator=g, dtype=torch.uint8),
        "signals": torch.cat([tracks, contacts[..., None]], -1),
        "gene_features": torch.randn(n, FEATURES, generator=g, dtype=dtype),
        "exclude": exclude,
        "include": include,
    }


def decided(name, soft):
    """bool (batch, L): not within 1e-5 of the value where a threshold or a top fraction cuts. Nearly all bases."""
    if name in ("soft", "discovery"):
        return torch.ones_like(soft, dtype=torch.bool)
    ranked = soft.sort(1, descending=True).values
    cut = ranked[:, [soft.shape[1] // 4 - 1]] if name.startswith("top") else 0.5
    far = (soft - cut).abs() >= 1e-5
    assert far.float().mean() > 0.95
    return far


@windows
@settings
def test_mask_and_expression(name, length, center):
    m, x = model(name, length, center), batch(length)
    out, other = m(**x), m(**reverse_complement(x))
    torch.testing.assert_close(other.soft_mask.flip(1), out.soft_mask, rtol=0, atol=1e-5)
    sure = decided(name, out.soft_mask)
    torch.testing.assert_close(other.mask.flip(1)[sure], out.mask[sure], rtol=0, atol=1e-5)
    torch.testing.assert_close(other.expression, out.expression, rtol=0, atol=1e-5)
    for a, b in ((out.kl, other.kl), (out.continuity, other.continuity)):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=0)
    assert (out.mask - out.mask.flip(1)).abs().max() > 0.1, "the mask is its own mirror image: the test shows nothing"


@windows
@settings
def test_expression_and_gradients_in_float64(name, length, center):
    m, x = model(name, length, center).double(), batch(length, dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    outs = [m(**x), m(**reverse_complement(x))]
    assert_near(outs[1].expression, outs[0].expression, 1e-10)
    assert_near(outs[1].mask.flip(1), outs[0].mask, 1e-10)
    parameters = dict(m.named_parameters())
    grads, others = (torch.autograd.grad(seq2exp_loss(out, target), list(parameters.values())) for out in outs)
    for parameter, ours, theirs in zip(parameters, grads, others, strict=True):
        assert float(ours.abs().max()) > 0, parameter
        assert_near(theirs, ours, 1e-9, parameter)


@settings
def test_training_draws_from_the_mirrored_beta(name):
    """The draws belong to positions, so that masks in training agree in distribution only: that of the mirrored
    window is the mirrored Beta."""
    m, x = model(name).double().train(), batch(dtype=torch.float64)
    out, other = m(**x, seed=1), m(**reverse_complement(x), seed=1)
    assert_near(other.alpha.flip(1), out.alpha, 1e-11)
    assert_near(other.beta.flip(1), out.beta, 1e-11)
    assert not torch.allclose(other.soft_mask.flip(1), out.soft_mask)


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_one_hot_equals_codes(name):
    m, x = model(name), batch()
    hot = x | {"sequence": torch.eye(5, 4)[x["sequence"].long()]}
    for a, b in zip(m(**x), m(**hot), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m(**reverse_complement(hot)).expression, m(**x).expression, rtol=0, atol=1e-5)


@settings
def test_the_plain_model_is_not_equivariant(name):
    m, x = model(name, rc_equivariant=False), batch()
    out, other = m(**x), m(**reverse_complement(x))
    assert (other.soft_mask.flip(1) - out.soft_mask).abs().max() > 1e-3
    assert ((other.expression - out.expression).abs() > 1e-5).all()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_hard_prediction_does_not_depend_on_the_neighbours(training):
    m, x, rows = model("hard").train(training), batch(), torch.tensor([7, 0, 2**40])
    together = m(**x, seed=5, rows=rows)
    assert len(set(together.mask.sum(1).tolist())) > 1, "rows of equal length: the test shows nothing"
    for i in range(3):
        alone = m(**{k: v[i : i + 1] for k, v in x.items()}, seed=5, rows=rows[i : i + 1])
        torch.testing.assert_close(alone.expression[0], together.expression[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["hard", "discovery"])
def test_recompute_changes_nothing(name):
    plain, frugal = model(name).train(), model(name, recompute="layer").train()
    results = []
    for m in (plain, frugal):
        out = m(**batch(), seed=4)
        results.append([out.expression, *torch.autograd.grad(seq2exp_loss(out, torch.ones(3)), list(m.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_bfloat16_autocast(name):
    m = model(name)
    full = m(**batch())
    with torch.autocast("cpu", torch.bfloat16):
        out = m(**batch())
        loss = seq2exp_loss(out, torch.ones(3))
    assert all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in out)
    torch.testing.assert_close(out.alpha, full.alpha, rtol=0.1, atol=0.1)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(loss, list(m.parameters())))


class NoWideFlip(TorchDispatchMode):
    """Refuses to reverse anything as large as a strand's hidden states."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "flip" in func.name() and args[0].numel() >= self.size:
            raise AssertionError(f"{func.name()} of {tuple(args[0].shape)}")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["soft", "discovery", "hard"])
def test_nothing_wide_is_flipped(name):
    m, x = model(name).train(), batch()
    with NoWideFlip(3 * 64 * 7), pytest.raises(AssertionError, match=r"flip of \(3, 64, 7\)"):
        torch.zeros(3, 64, 7).flip(1)
    with NoWideFlip(3 * 64 * 7):
        seq2exp_loss(m(**x, seed=1), torch.ones(3)).backward()


@pytest.mark.parametrize("recompute", ["none", "layer"])
def test_memory_of_a_layer(recompute):
    """At most 2.1 times that of the plain layer."""
    length, d_model = 4096, 16

    def step(rc_equivariant):
        backbone = CaduceusBackbone(d_model, 1, d_state=4, recompute=recompute, rc_equivariant=rc_equivariant)
        x = torch.randn(*([2] if rc_equivariant else []), 1, length, d_model, requires_grad=True)
        g = torch.randn_like(x)
        return lambda: torch.autograd.grad(backbone(x), [x, *backbone.parameters()], g)

    plain, both = (memory(step(rc)).peak for rc in (False, True))
    assert plain > 10 * 4 * length * d_model
    assert both <= 2.1 * plain


@pytest.mark.parametrize("name", ["soft", "hard"])
@pytest.mark.parametrize("mode", ["train", "predict"])
def test_memory_of_a_model(name, mode):
    def step(rc_equivariant):
        m = model(name, 2048, 64, d_model=16, rc_equivariant=rc_equivariant).train(mode == "train")
        x = batch(2048, n=1)

        def run():
            with torch.set_grad_enabled(mode == "train"):
                out = m(**x, seed=1)
            if mode == "train":
                torch.autograd.grad(seq2exp_loss(out, torch.ones(1)), list(m.parameters()))

        return run

    plain, both = (memory(step(rc)).peak for rc in (False, True))
    assert both <= 2.1 * plain


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_saved_and_loaded(name, tmp_path):
    m = model(name)
    m.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rc_equivariant"] is True
    loaded = Seq2Exp.from_pretrained(tmp_path)
    assert loaded.config == m.config
    assert torch.equal(loaded(**batch()).expression, m(**batch()).expression)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("name", ["soft", "hard"])
def test_weights_of_the_other_sharing_are_refused(name, saved, tmp_path):
    words = f"the state dict is of a model with rc_equivariant={saved}, this one has rc_equivariant={not saved}"
    ours, other = model(name, rc_equivariant=saved), model(name, rc_equivariant=not saved)
    with pytest.raises(UserError, match=words):
        other.load_state_dict(ours.state_dict())
    ours.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"rc_equivariant": not saved}))
    with pytest.raises(UserError, match=rf"model.safetensors: does not fit .*config.json: {words}") as caught:
        Seq2Exp.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_language_models_of_the_other_sharing_are_refused():
    plain, both = Caduceus(4, 8, 1), Caduceus(4, 8, 1, rc_equivariant=True, complement_map=[3, 2, 1, 0])
    for model, weights in ((plain, both.state_dict()), (both, plain.state_dict())):
        with pytest.raises(UserError, match="the same weights would compute something else"):
            model.load_state_dict(weights)
    assert set(both.state_dict()) - set(plain.state_dict()) == {f"backbone.{SHARING}"}
    head = {"lm_head.weight": torch.ones(4, 8)}  # no backbone in it: nothing to disagree about
    assert both.load_state_dict(head, strict=False).missing_keys
    assert torch.equal(both.lm_head.weight, head["lm_head.weight"])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_centre_off_the_middle_is_refused(name):
    with pytest.raises(ValueError, match="rc_equivariant needs length - center to be even, got 65 - 8"):
        config(name, 65, 8)
    assert not config(name, 65, 8, rc_equivariant=False).rc_equivariant


def test_complement():
    codes = torch.tensor([[0, 1, 2, 3, 4]], dtype=torch.uint8)
    assert complement(codes).tolist() == [[3, 2, 1, 0, 4]]
    assert complement(codes).dtype == torch.uint8
    hot = torch.eye(5, 4)
    assert torch.equal(complement(hot[codes.long()]), hot[complement(codes).long()])


def test_reverse_complement_of_a_batch():
    x = batch() | {"row": torch.arange(3), "gene_id": ["a", "b", "c"]}
    other = reverse_complement(x)
    assert (
        other["sequence"][0, :5].tolist()
        == [{0: 3, 1: 2, 2: 1, 3: 0, 4: 4}[c] for c in x["sequence"][0, -5:].tolist()][::-1]
    )
    for name in ("signals", "exclude", "include"):
        assert torch.equal(other[name], x[name].flip(1))
    assert all(other[name] is x[name] for name in ("row", "gene_id", "gene_features"))
    back = reverse_complement(other)
    assert all(torch.equal(back[name], x[name]) for name in x if name != "gene_id")
