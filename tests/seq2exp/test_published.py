"""The composed published form: equal to `Seq2Exp` in evaluation; what the published code lacks."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from scan_problems import rms_error

from seq2exp import Seq2Exp, Seq2ExpConfig, UserError, seq2exp_loss
from seq2exp.baselines import PublishedForm, published_layer
from seq2exp.kernels import selective_scan

LENGTH, CENTER = 96, 16
SIZE = dict(
    length=LENGTH, center=CENTER, gene_features=2, d_model=16, d_state=4, generator_layers=2, predictor_layers=2
)
PRESETS = {"soft": {}, "hard": {"task_gradient": False}}
OUTPUTS = ("expression", "mask", "soft_mask", "alpha", "beta", "kl", "continuity", "selected_fraction")


def pair(preset: str, scan: str = "ours", **fields: object) -> tuple[Seq2Exp, PublishedForm]:
    torch.manual_seed(0)
    ours = Seq2Exp(getattr(Seq2ExpConfig, preset)(**SIZE | PRESETS[preset] | fields)).eval()
    return ours, PublishedForm(ours, scan)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 5, (size, LENGTH), generator=g).to(torch.uint8)
    return codes, 2 * torch.rand(size, LENGTH, 3, generator=g), torch.rand(size, 2, generator=g)


@pytest.mark.parametrize("scan", ["ours", "chunked", "reference"])
@pytest.mark.parametrize("preset,size", [("soft", 1), ("soft", 2), ("hard", 1)])
def test_equals_ours_in_evaluation(preset, size, scan):
    """Every output and the gradient of every parameter; in hard mode at batch 1, as rows are padded beyond."""
    ours, published = pair(preset, scan)
    assert not published.training
    exclude, include = torch.zeros(2, size, LENGTH, dtype=torch.bool).unbind(0)
    exclude[:, :9], include[:, 80:] = True, True
    target = torch.linspace(1, 2, size)
    found = [model(*batch(size), exclude=exclude, include=include) for model in (ours, published)]
    for name in OUTPUTS:
        want, got = (getattr(out, name) for out in found)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, msg=name)
    assert (found[1].mask[:, :9] == 0).all() and found[1].mask[:, 9:40].unique().numel() > 1
    for out in found:
        seq2exp_loss(out, target).backward()
    theirs = dict(published.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and theirs[name].grad is not None, name
        assert rms_error(theirs[name].grad, parameter.grad) < 1e-4, name


def test_one_hot_and_codes_are_the_same_input():
    _, published = pair("soft")
    codes, signals, features = batch(2)
    letters = torch.eye(5, 4)[codes.long()]
    out = [published(sequence, signals, features).expression for sequence in (codes, letters)]
    assert torch.equal(*out)


def test_training_draws_the_mask():
    _, published = pair("soft")
    published.train()
    first, second = (published(*batch(2)) for _ in range(2))
    assert not torch.equal(first.mask, second.mask)
    seq2exp_loss(first, torch.ones(2)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in published.parameters())


def test_hard_mode_has_the_published_weaknesses():
    """No task gradient to the mask, and a prediction that depends on the padding."""
    published = pair("hard", task_gradient=True, center=80)[1].double()
    whole = torch.tensor([True, False])[:, None].expand(2, LENGTH)  # of the second gene, the centre alone
    out = published(*batch(2), include=whole, exclude=~whole)
    (gradient,) = torch.autograd.grad(out.expression.sum(), published.mask_head.weight, allow_unused=True)
    assert gradient is None
    assert (out.mask != 0).sum(1).tolist() == [LENGTH, 80]
    genes = zip(*(x.split(1) for x in (*batch(2), ~whole, whole)), strict=True)
    difference = (torch.cat([published(*gene).expression for gene in genes]) - out.expression).abs()
    assert difference[0] < 1e-12 < 1e-8 < difference[1]


def test_fused_module_of_mamba_ssm(monkeypatch):
    """With a stand-in for its function, made of the same steps."""

    def mamba_inner_fn(
        xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias, A, B, C, D, delta_bias, delta_softplus
    ):
        x, z = xz.chunk(2, 1)
        c = published_layer.convolution(x, conv_weight, conv_bias)
        low, B, C = published_layer.x_projection(c, x_proj).split([dt_proj.shape[1], A.shape[1], A.shape[1]], 1)
        y = selective_scan(c, published_layer.dt_projection(low, dt_proj), A, B, C, D, z, delta_bias, delta_softplus)
        return published_layer.output_projection(y, out_proj)

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    module.mamba_inner_fn = mamba_inner_fn
    ours, published = pair("soft", "mamba_ssm")
    torch.testing.assert_close(published(*batch(2)).expression, ours(*batch(2)).expression, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields,reason",
    [
        ({"rc_equivariant": True}, "rc_equivariant=False only"),
        ({"mask_placement": "every_layer"}, "mask_placement='input' only"),
        ({"rule": "product"}, "rule='sum' only"),
        ({"top_fraction": 0.1}, "top_fraction=None only"),
        ({"hard": True}, "packed=True with hard=True only"),
    ],
)
def test_refuses_what_the_published_code_does_not_have(fields, reason):
    with pytest.raises(UserError, match=reason):
        PublishedForm(Seq2ExpConfig.soft(**SIZE | fields))


def test_refuses_unknown_and_missing_scans():
    config = Seq2ExpConfig.soft(**SIZE)
    with pytest.raises(UserError, match="scan 'fast' is unknown: one of ours, chunked, reference, mamba_ssm"):
        PublishedForm(config, "fast")
    with pytest.raises(UserError, match="the package mamba-ssm is not installed"):
        PublishedForm(config, "mamba_ssm")
