"""Seq2Exp, its baseline, the Caduceus language model and the loss."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp import Caduceus, Seq2Exp, Seq2ExpConfig, Seq2ExpOutput, seq2exp_loss
from seq2exp.baselines import GeneExpBiMamba, GeneExpBiMambaConfig

LENGTH, CENTER, FEATURES = 64, 8, 3
PRESETS = ("soft", "hard", "top_fraction", "discovery")
CENTRE = slice((LENGTH - CENTER) // 2, (LENGTH + CENTER) // 2)


def config(preset: str = "soft", **fields) -> Seq2ExpConfig:
    small = dict(
        length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=8, d_state=4, generator_layers=2,
        predictor_layers=2,
    )  # fmt: skip
    return getattr(Seq2ExpConfig, preset)(**small | fields)


def model(preset: str = "soft", seed: int = 0, **fields) -> Seq2Exp:
    """In evaluation mode, with mask logits wide enough to select some bases and reject others."""
    torch.manual_seed(seed)
    made = Seq2Exp(config(preset, **fields))
    with torch.no_grad():
        made.mask_head.weight *= 4
    return made.eval()


def batch(n: int = 3, seed: int = 1, tracks: int = 3, features: int = FEATURES) -> tuple[Tensor, Tensor, Tensor]:
    """Sequence codes with some N, signals, gene features."""
    g = torch.Generator().manual_seed(seed)
    sequence = torch.randint(0, 5, (n, LENGTH), generator=g, dtype=torch.uint8)
    signals = torch.rand(n, LENGTH, tracks, generator=g) * 1.8
    return sequence, signals, torch.randn(n, features, generator=g)


def one_hot(codes: Tensor) -> Tensor:
    return torch.cat([torch.eye(4), torch.zeros(1, 4)])[codes.long()]


def baseline(**fields):
    torch.manual_seed(0)
    small = dict(length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=8, d_state=4, layers=2)
    return GeneExpBiMamba(GeneExpBiMambaConfig(**small | fields)).eval()


def gradients(m, loss):
    m.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_and_dtypes(preset, training):
    out = model(preset).train(training)(*batch())
    assert out.expression.shape == (3,)
    assert all(x.shape == (3, LENGTH) for x in (out.mask, out.soft_mask, out.alpha, out.beta))
    assert all(x.shape == () for x in (out.kl, out.continuity, out.selected_fraction))
    assert all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in out)
    torch.testing.assert_close(out.selected_fraction, out.mask.mean())
    if preset in ("hard", "top_fraction"):
        assert set(out.mask.unique().tolist()) == {0.0, 1.0}
        assert bool((out.mask != out.mask[0]).any()), "every row has the same mask: the test shows nothing"


@pytest.mark.parametrize("preset", PRESETS)
def test_codes_equal_one_hot(preset):
    m = model(preset)
    sequence, *rest = batch()
    for ours, theirs in zip(m(sequence, *rest), m(one_hot(sequence), *rest), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_every_base_and_signal_counts():
    m, (sequence, signals, features) = model(), batch()
    before = m(sequence, signals, features).expression
    assert bool((m((sequence + 1) % 5, signals, features).expression != before).all())
    assert bool((m(sequence, signals + 1, features).expression != before).all())
    assert bool((m(sequence, signals, features + 1).expression != before).all())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_window_of_n_only_gives_no_nan(preset):
    m = model(preset).train()
    sequence = torch.full((2, LENGTH), 4, dtype=torch.uint8)
    out = m(sequence, torch.zeros(2, LENGTH, 3), torch.zeros(2, FEATURES), seed=1)
    assert all(bool(x.isfinite().all()) for x in out)
    found = gradients(m, seq2exp_loss(out, torch.ones(2)))
    assert found
    assert all(bool(g.isfinite().all()) for g in found.values())


@pytest.mark.parametrize("value,words", [(-1.0, "signals must be >= 0"), (float("nan"), "signals contain NaN or inf")])
def test_signals_that_cannot_be_are_refused(value, words):
    sequence, signals, features = batch()
    signals[1, 5, 2] = value
    with pytest.raises(ValueError, match=words):
        model()(sequence, signals, features)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("preset", ["hard", "top_fraction"])
def test_task_gradient_reaches_the_mask_head_or_exactly_not(preset, training):
    for wanted in (True, False):
        m = model(preset, task_gradient=wanted).train(training)
        out = m(*batch(), seed=3)
        found = gradients(m, F.smooth_l1_loss(out.expression, torch.ones(3)))
        total = sum(float(found[n].norm()) for n in ("mask_head.weight", "mask_head.bias") if n in found)
        assert (total > 0) == wanted
        assert float(found["head.layers.0.weight"].norm()) > 0
        out = m(*batch(), seed=3)
        assert float(gradients(m, out.kl)["mask_head.weight"].norm()) > 0  # the KL reaches it either way


@pytest.mark.parametrize("wanted", [True, False])
def test_the_task_gradient_is_that_of_the_packed_multiplier(monkeypatch, wanted):
    """d loss / d logit = (finite difference of the loss in the factor of a selected base, at 1) x dm / dlogit."""
    m, inputs = model("hard", task_gradient=wanted, select_bias=0.8).double(), batch()
    select, factor, logits = Seq2Exp._select, torch.ones(3, LENGTH, dtype=torch.float64), []
    monkeypatch.setattr(Seq2Exp, "_select", lambda self, mask: select(self, mask * factor))
    m.mask_head.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    inputs = (inputs[0], inputs[1].double(), inputs[2].double())

    def loss():
        out = m(*inputs)
        return F.mse_loss(out.expression, torch.ones(3, dtype=torch.float64)), out

    value, out = loss()
    found = torch.autograd.grad(value, logits[0], allow_unused=True)[0]
    found = torch.zeros(3, LENGTH, 2) if found is None else found
    dm_dalpha = out.beta / (out.alpha + out.beta) ** 2
    slope = dm_dalpha * torch.sigmoid(logits[0][..., 1])  # softplus; z_scale is 1
    selected = out.mask.bool()
    selected[:, CENTRE] = False
    bases = selected.nonzero()[:: max(1, int(selected.sum()) // 8)]
    assert len(bases) >= 4
    for b, j in bases.tolist():
        with torch.no_grad():
            factor[b, j] = 1 + 1e-5
            above = loss()[0]
            factor[b, j] = 1 - 1e-5
            below = loss()[0]
            factor[b, j] = 1
        expected = (above - below) / 2e-5 * slope[b, j] if wanted else torch.zeros(())
        assert abs(float(found[b, j, 1].detach() - expected)) <= 1e-5 * abs(float(expected))
    assert float(found[selected].abs().min()) > 0 or not wanted


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_hard_prediction_does_not_depend_on_the_neighbours(training):
    m, inputs = model("hard").train(training), batch()
    rows = torch.tensor([7, 0, 2**40])
    together = m(*inputs, seed=5, rows=rows)
    assert len(set(together.mask.sum(1).tolist())) > 1, "rows of equal length: the test shows nothing"
    for i in range(3):
        alone = m(*(x[i : i + 1] for x in inputs), seed=5, rows=rows[i : i + 1])
        torch.testing.assert_close(alone.expression[0], together.expression[i], rtol=1e-5, atol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_mask_is_a_function_of_seed_and_row(preset):
    m, inputs = model(preset).train(), batch(4)
    rows = torch.tensor([11, 3, 5, 2])

    def masks(parts, seed=9):
        outs = [m(*(x[p] for x in inputs), seed=seed, rows=rows[p]) for p in parts]
        return torch.cat([o.mask for o in outs]), torch.cat([o.soft_mask for o in outs])

    whole = masks([[0, 1, 2, 3]])
    for parts in ([[0, 1], [2, 3]], [[0], [1, 2, 3]], [[0], [1], [2], [3]]):
        for split, together in zip(masks(parts), whole, strict=True):
            assert torch.equal(split, together)
    assert torch.equal(masks([[3, 2, 1, 0]])[1].flip(0), whole[1])
    assert not torch.equal(masks([[0, 1, 2, 3]], seed=10)[1], whole[1])


def test_without_a_seed_the_mask_is_drawn_from_the_generator_of_torch():
    m, inputs = model().train(), batch()
    torch.manual_seed(1)
    first, second = m(*inputs).mask, m(*inputs).mask
    torch.manual_seed(1)
    assert torch.equal(m(*inputs).mask, first)
    assert not torch.equal(first, second)
    assert torch.equal(m.eval()(*inputs).mask, m(*inputs).mask)


def test_evaluation_takes_the_mean_of_the_beta():
    out = model()(*batch())
    torch.testing.assert_close(out.soft_mask, out.alpha / (out.alpha + out.beta))


@pytest.mark.parametrize("preset", ["soft", "hard"])
def test_mask_placement(preset):
    """In every layer differs from at the input, unless the mask selects everything."""
    inputs, everything = batch(), torch.ones(3, LENGTH, dtype=torch.bool)
    at_input, everywhere = (model(preset, mask_placement=p) for p in ("input", "every_layer"))
    everywhere.load_state_dict(at_input.state_dict())
    a, b = at_input(*inputs), everywhere(*inputs)
    torch.testing.assert_close(a.mask, b.mask)
    if preset == "soft":
        assert bool(((a.expression - b.expression).abs() > 1e-6).all())
    else:  # only selected bases are there, and their mask is 1
        torch.testing.assert_close(a.expression, b.expression)
    a, b = at_input(*inputs, include=everything), everywhere(*inputs, include=everything)
    torch.testing.assert_close(a.expression, b.expression)


@pytest.mark.parametrize("preset", PRESETS)
def test_exclude_include_and_centre(preset):
    m, inputs = model(preset), batch()
    exclude, include = (torch.zeros(3, LENGTH, dtype=torch.bool) for _ in range(2))
    exclude[:, 4:40], include[:, 10:14] = True, True
    out, free = m(*inputs, exclude=exclude, include=include), m(*inputs)
    forced = torch.zeros(LENGTH)
    forced[10:14] = 1
    forced[CENTRE] = 1
    torch.testing.assert_close(out.mask[:, 4:40], forced[4:40].expand(3, -1))
    outside = [*range(4), *range(40, LENGTH)]
    assert torch.equal(out.mask[:, outside], free.mask[:, outside])
    assert bool((free.mask[:, CENTRE] == 1).all())
    assert torch.equal(out.soft_mask, free.soft_mask)
    assert bool((out.expression != free.expression).all())


def test_top_fraction_selects_the_largest_means():
    out = model("top_fraction", top_fraction=0.25)(*batch())
    k = int(0.25 * LENGTH)
    lowest = out.soft_mask.topk(k, dim=1).values[:, -1:]
    expected = (out.soft_mask >= lowest).float()
    assert expected.sum(1).tolist() == [k] * 3
    expected[:, CENTRE] = 1
    assert torch.equal(out.mask, expected)


def test_packed_equals_dense_when_everything_is_selected():
    packed = model("hard", threshold=0.0)
    dense = Seq2Exp(packed.config.replace(packed=False)).eval()
    dense.load_state_dict(packed.state_dict())
    a, b = packed(*batch()), dense(*batch())
    assert bool((a.mask == 1).all())
    torch.testing.assert_close(a.expression, b.expression, rtol=1e-5, atol=1e-6)
    target = torch.ones(3)
    ours, theirs = (gradients(m, seq2exp_loss(out, target)) for m, out in ((packed, a), (dense, b)))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["hard", "discovery"])
def test_recompute_changes_nothing(preset):
    plain = model(preset).train()
    frugal = Seq2Exp(plain.config.replace(recompute="layer")).train()
    frugal.load_state_dict(plain.state_dict())
    outs = [m(*batch(), seed=4) for m in (plain, frugal)]
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)
    ours, theirs = (
        gradients(m, seq2exp_loss(out, torch.ones(3))) for m, out in zip((plain, frugal), outs, strict=True)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize("preset", ["soft", "hard"])
def test_bfloat16_autocast(preset, recompute):
    m = model(preset, recompute=recompute).train()
    full = m(*batch(), seed=4)
    with torch.autocast("cpu", torch.bfloat16):
        out = m(*batch(), seed=4)
        loss = seq2exp_loss(out, torch.ones(3))
    assert all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in out)
    torch.testing.assert_close(out.alpha, full.alpha, rtol=0.1, atol=0.1)
    found = gradients(m, loss)
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert found.keys() == {n for n, p in m.named_parameters() if p.requires_grad}


def without(*names):
    def change(sequence, signals, features):
        given = {"sequence": sequence, "signals": signals, "gene_features": features}
        return {k: v for k, v in given.items() if k not in names}

    return change


def changed(**fields):
    def change(sequence, signals, features):
        given = {"sequence": sequence, "signals": signals, "gene_features": features}
        return given | {k: f(given[k]) for k, f in fields.items()}

    return change


@pytest.mark.parametrize(
    "change,error,words",
    [
        (without("gene_features"), ValueError, r"gene_features must be \(3, 3\), got None"),
        (changed(gene_features=lambda x: x[:, :2]), ValueError, r"gene_features must be \(3, 3\), got \(3, 2\)"),
        (changed(gene_features=lambda x: x[:2]), ValueError, r"gene_features must be \(3, 3\), got \(2, 3\)"),
        (changed(gene_features=lambda x: x[:, None]), ValueError, r"gene_features must be \(3, 3\), got \(3, 1, 3\)"),
        (changed(gene_features=lambda x: x[0, 0]), ValueError, r"gene_features must be \(3, 3\), got \(\)"),
        (changed(sequence=lambda x: x[:, :-1]), ValueError, r"sequence must be codes \(batch, 64\)"),
        (changed(sequence=lambda x: x[0]), ValueError, r"sequence must be codes \(batch, 64\)"),
        (changed(sequence=lambda x: one_hot(x)[..., :3]), ValueError, "one-hot"),
        (changed(sequence=lambda x: x.float()), TypeError, "codes are uint8"),
        (changed(sequence=lambda x: one_hot(x).long()), TypeError, "one-hot is floating point"),
        (changed(signals=lambda x: x[..., :2]), ValueError, r"signals must be \(3, 64, 3\), got \(3, 64, 2\)"),
        (changed(signals=lambda x: x[:1]), ValueError, r"signals must be \(3, 64, 3\), got \(1, 64, 3\)"),
    ],
)
@pytest.mark.parametrize("make", [model, lambda: baseline(interact="signal")], ids=["Seq2Exp", "GeneExpBiMamba"])
def test_bad_input(make, change, error, words):
    with pytest.raises(error, match=words):
        make()(**change(*batch()))


def test_no_gene_features():
    m, (sequence, signals, _) = model(gene_features=0), batch()
    assert torch.equal(m(sequence, signals).expression, m(sequence, signals, torch.zeros(3, 0)).expression)
    with pytest.raises(ValueError, match=r"gene_features must be \(3, 0\), got \(3, 3\)"):
        m(*batch())


def test_other_numbers_of_tracks():
    m = model(tracks=2, signal_weights=(0.7, 0.3), signal_betas=(1.5, 1.0))
    out = m(*batch(tracks=2))
    assert bool(out.expression.isfinite().all())
    assert m.signal_embedding.weight.shape == (8, 2)


def test_hard_shares_one_backbone_and_the_select_bias_is_where_it_belongs():
    hard, soft = model("hard"), model("soft")
    assert hard.generator is hard.predictor
    assert hard.position_embedding.shape == (LENGTH, 8)
    assert soft.generator is not soft.predictor
    assert soft.position_embedding is None
    plain, biased = (model("discovery", select_bias=b).mask_head.bias for b in (0.0, 3.0))
    torch.testing.assert_close(biased - plain, torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize("interact", ["no_signal", "signal"])
def test_baseline(interact):
    m, (sequence, signals, features) = baseline(interact=interact), batch()
    out = m(sequence, signals, features)
    assert out.expression.shape == (3,)
    assert out.expression.dtype == torch.float32
    assert all(x is None for x in out[1:])
    torch.testing.assert_close(m(one_hot(sequence), signals, features).expression, out.expression)
    uses_signals = not torch.equal(m(sequence, signals + 1, features).expression, out.expression)
    assert uses_signals == (interact == "signal")
    found = gradients(m, seq2exp_loss(out, torch.ones(3)))
    assert found.keys() == {n for n, _ in m.named_parameters()}


def test_baseline_without_signals():
    sequence, signals, features = batch()
    m = baseline()
    assert torch.equal(m(sequence, None, features).expression, m(sequence, signals, features).expression)
    with pytest.raises(ValueError, match="GeneExpBiMamba needs signals"):
        baseline(interact="signal")(sequence, None, features)


@pytest.mark.parametrize("fields", [{}, {"tied": False, "strategy": "ew_multiply"}], ids=["tied", "untied"])
def test_caduceus(fields):
    torch.manual_seed(0)
    m = Caduceus(16, 8, 2, d_state=4, **fields)
    out = m(torch.randint(0, 16, (2, 50)))
    assert out.hidden.shape == (2, 50, 8)
    assert out.logits.shape == (2, 50, 16)
    found = gradients(m, out.logits.square().mean())
    assert found.keys() == {n for n, _ in m.named_parameters()}
    assert all(bool(g.isfinite().all()) for g in found.values())


def test_loss():
    expression, target = torch.tensor([0.0, 3.0]), torch.tensor([0.5, 1.0])
    smooth_l1 = (0.5 * 0.5**2 + (2 - 0.5)) / 2
    without_mask = seq2exp_loss(Seq2ExpOutput(expression), target, kl_weight=100.0)
    torch.testing.assert_close(without_mask, torch.tensor(smooth_l1))
    out = Seq2ExpOutput(expression, kl=torch.tensor(7.0))
    torch.testing.assert_close(seq2exp_loss(out, target), torch.tensor(smooth_l1 + 0.07))
    torch.testing.assert_close(seq2exp_loss(out, target, kl_weight=0.0), torch.tensor(smooth_l1))
    with pytest.raises(ValueError, match=r"target is \(2, 1\), expression \(2,\)"):
        seq2exp_loss(out, target[:, None])


def test_training_lowers_the_loss():
    m, inputs, target = Seq2Exp(config("discovery")).train(), batch(), torch.tensor([0.0, 1.0, 2.0])
    optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = seq2exp_loss(m(*inputs, seed=0), target)
        losses.append(float(loss.detach()))
        gradients(m, loss)
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
