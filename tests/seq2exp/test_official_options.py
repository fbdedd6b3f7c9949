"""Published options that change the forward pass, held against the published equations in float64."""

import pytest
import torch
from plain_caduceus import both_ways, count, rms_norm
from published_models import CENTER, D_MODEL, FEATURES, LENGTH, SETTINGS, published
from torch.distributions import Beta, kl_divergence
from torch.nn import functional as F

from seq2exp import Seq2Exp, Seq2ExpConfig, UserError, load_official

PRIOR = (2.0, 2.0, 1.0), (1.5, 0.2, 1.0)


def backbone(x, w, at):
    residual = None
    for i in range(count(w, at)):
        residual = x if residual is None else residual + x
        x = both_ways(rms_norm(residual, w[f"{at}layers.{i}.norm.weight"]), w, f"{at}layers.{i}.mixer.")
    return rms_norm(residual + x, w[f"{at}norm_f.weight"])


def linear(x, w, name):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def widest(x, width):
    return F.max_pool1d(x[:, None], width, stride=1, padding=width // 2)[:, 0]


def forward(w, c, seqs, signals, include, exclude, features):
    """Expression, mask and KL of GeneBiMambaMIRNP in evaluation, without position encoding."""
    e, s = linear(seqs, w, "seq_input_layer"), linear(signals, w, "signal_input_layer")
    hidden = backbone(e + s if c["gen_signal"] or c["enc_prd_ps"] else e, w, "generator.backbone.")
    logits = linear(hidden, w, "mask_output")
    alpha, beta = (F.softplus(logits[..., i]) + c["beta_min"] + 1e-8 for i in (1, 0))
    chosen = {"h3k27ac": [0], "DHS": [1], "hic": [2], "all": range(signals.shape[2])}[c["prior_signal"]]
    shares = [share / sum(PRIOR[0]) for share in PRIOR[0]]
    for i, track in enumerate(chosen):
        alpha = alpha + shares[i] * ((signals[..., track] + c["beta_min"]) * c["prior_scale_factor"] + 1e-8)
        beta = beta + shares[i] * (PRIOR[1][i] + c["beta_min"]) * c["prior_scale_factor"]
    z = Beta(alpha * c["z_scale"], beta * c["z_scale"])
    mask = z.mean
    if c["test_top"]:
        top = mask.topk(int(LENGTH * c["test_top_percent"]), -1).indices
        mask = torch.zeros_like(mask).scatter(1, top, mask.gather(1, top) if c["test_top_soft"] else 1.0)
    elif c["test_hard"]:
        mask = (widest(mask, c["pool_mask"] or 1) >= c["sample_threshold"]).double()
    mask[exclude] = 0.0
    if c["use_include_list"]:
        mask[include] = 1.0
    start = (LENGTH - CENTER) // 2
    mask[:, start : start + CENTER] = 1.0
    scale = c["marginal_scale"]
    kl = kl_divergence(
        z, Beta(torch.tensor(scale), torch.tensor(scale * (1 - c["marginal_mean"]) / c["marginal_mean"]))
    )
    at = "generator.backbone." if c["enc_prd_ps"] else "encoder.backbone."
    x = backbone((e + s) * mask[..., None], w, at)[:, start : start + CENTER].mean(1)
    x = torch.cat([x, features], -1)
    for i in (0, 2):
        x = linear(x, w, f"pToExpr.{i}").relu()
    return linear(x, w, "pToExpr.4")[:, 0], mask, kl.mean()


PLAIN = {
    "gen_signal": False, "enc_prd_ps": False, "beta_min": 1.0, "prior_scale_factor": 2.0, "z_scale": 1.0,
    "prior_signal": "all", "test_soft": False, "test_top": False, "test_hard": False, "test_top_soft": False,
    "test_top_percent": 0.25, "pool_mask": 0, "sample_threshold": 0.52, "use_include_list": False,
    "marginal_scale": 3.0, "marginal_mean": 0.2, "mask_region_hard": True,
}  # fmt: skip
OPTIONS = {
    "soft": {"test_soft": True},
    "scaled": {"test_soft": True, "z_scale": 0.7, "beta_min": 0.3},
    "signals into the generator": {"test_soft": True, "gen_signal": True},
    "shared": {"test_soft": True, "enc_prd_ps": True},
    "h3k27ac": {"test_soft": True, "prior_signal": "h3k27ac"},
    "dhs": {"test_soft": True, "prior_signal": "DHS"},
    "hic": {"test_soft": True, "prior_signal": "hic"},
    "two tracks": {"test_soft": True, "signal_size": 2},
    "hard, dense": {"test_hard": True},
    "hard, pooled": {"test_hard": True, "pool_mask": 5},
    "pooled in training alone": {"test_soft": True, "pool_mask": 5, "max_pool_size": 7},
    "top": {"test_top": True},
    "top, soft": {"test_top": True, "test_top_soft": True},
    "include list": {"test_hard": True, "use_include_list": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_published_equations(name):
    c = PLAIN | OPTIONS[name]
    tracks = c.get("signal_size", 3)
    torch.manual_seed(len(name))
    own = Seq2Exp(
        Seq2ExpConfig.soft(
            length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=D_MODEL, d_state=4, generator_layers=2,
            predictor_layers=2, tracks=tracks, signal_weights=(0.5,) * tracks, signal_betas=(1.0,) * tracks,
            share_backbone=c["enc_prd_ps"],
        )
    )  # fmt: skip
    with torch.no_grad():
        own.mask_head.weight.mul_(8)
    weights = published(own)
    model = load_official(weights, SETTINGS | c).double()
    codes, signals = torch.randint(0, 5, (3, LENGTH), dtype=torch.uint8), torch.rand(3, LENGTH, tracks).double()
    include, exclude = torch.rand(2, 3, LENGTH) < 0.15
    exclude &= ~include
    features = torch.rand(3, FEATURES).double()
    double = {key: value.double() for key, value in weights.items()}
    expected, mask, kl = forward(double, c, torch.eye(5, 4).double()[codes.long()], signals, include, exclude, features)
    regions = {"exclude": exclude} | ({"include": include} if c["use_include_list"] else {})
    out = model(codes, signals, features, **regions)
    assert 0 < mask.mean() < 1
    torch.testing.assert_close(out.mask, mask, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(out.expression, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(out.kl, kl, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"pool_mask": 4, "test_hard": True}, "smooth is 4: .* must be odd"),
        ({"test_hard": True, "test_top": True}, "test_top and test_hard of the published model are both True"),
        ({"use_include_list": True, "mask_region_hard": False}, r"supported: mask_region_hard=True"),
        ({"decouple_x": False}, r"decouple_x=False .*\(supported: True\)"),
        ({"prior_signal": "ctcf"}, r"prior_signal='ctcf' .*\(supported: 'all', 'h3k27ac', 'DHS', 'hic'\)"),
        ({"post_dist": "kuma"}, r"post_dist='kuma' .*\(supported: 'beta'\)"),
        ({"use_peak_mask": True}, "use_peak_mask=True"),
        ({"interact": "no_signal"}, r"interact='no_signal' .*\(supported: 'concat'\)"),
        ({"bidirectional_strategy": "ew_multiply"}, "bidirectional_strategy='ew_multiply'"),
        ({"d_model": 64}, "the head of the state dict is 8 wide, d_model is 64: the config is that of another model"),
        ({"gen_n_layer": 3}, "has 2 layers under 'generator.backbone.', gen_n_layer is 3"),
        ({"enc_prd_ps": True}, "differs from .* is the model one with enc_prd_ps=False"),
    ],
)
def test_refused_with_what_is_supported(options, words):
    torch.manual_seed(0)
    own = Seq2Exp(
        Seq2ExpConfig.soft(
            length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=D_MODEL, d_state=4, generator_layers=2,
            predictor_layers=2,
        )
    )  # fmt: skip
    with pytest.raises(UserError, match=words) as caught:
        load_official(published(own), SETTINGS | options)
    assert "\n" not in str(caught.value)
