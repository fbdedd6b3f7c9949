"""Predictors under a given mask: peaks, the ABC score, a frozen Seq2Exp."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from seq2exp import Seq2Exp, Seq2ExpConfig, seq2exp_loss
from seq2exp.baselines import AbcMasked, AbcMaskedConfig, MaskedConfig, PeakMasked, Retrained, RetrainedConfig

L, CENTER = 60, 6
SIZES = dict(length=L, center=CENTER, d_model=8, d_state=2, gene_features=0, predictor_layers=1)
CENTRE = slice(27, 33)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def batch(n=3):
    sequence = torch.randint(0, 4, (n, L), dtype=torch.uint8)
    return sequence, torch.rand(n, L, 3)


def where(*ranges, n=3):
    found = torch.zeros(n, L, dtype=torch.bool)
    for start, end in ranges:
        found[:, start:end] = True
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_peaks_are_the_mask_and_nothing_else_is_read(packed):
    model = PeakMasked(MaskedConfig(**SIZES, packed=packed)).eval()
    sequence, signals = batch()
    peaks, exclude, include = where((15, 26), (40, 45)), where((10, 20)), where((50, 52))
    out = model(sequence, signals, exclude=exclude, include=include, peaks=peaks)
    expected = where((20, 26), (40, 45), (50, 52)).float()
    expected[:, CENTRE] = 1
    assert out.mask.equal(expected) and out.soft_mask.equal(peaks.float()) and out.kl is None
    assert out.selected_fraction == pytest.approx(19 / 60)
    unread, read = sequence.clone(), sequence.clone()
    unread[expected == 0] = 4
    read[:, 25] = (read[:, 25] + 1) % 4
    torch.testing.assert_close(
        model(unread, signals * expected[..., None], None, exclude, include, peaks=peaks).expression, out.expression
    )
    assert (model(read, signals, None, exclude, include, peaks=peaks).expression != out.expression).all()


def test_packed_knows_no_distances_and_dense_does():
    sequence, signals = batch(1)
    near, far = where((20, 24), n=1), where((5, 9), n=1)
    moved = sequence.clone()
    moved[:, 5:9] = sequence[:, 20:24]
    signals[:, 5:9] = signals[:, 20:24]
    for packed in (True, False):
        torch.manual_seed(1)
        model = PeakMasked(MaskedConfig(**SIZES, packed=packed)).eval()
        a, b = (model(x, signals, peaks=p).expression for x, p in ((sequence, near), (moved, far)))
        assert torch.equal(a, b) == packed


def test_peaks_that_are_not_given():
    with pytest.raises(ValueError, match="needs peaks"):
        PeakMasked(MaskedConfig(**SIZES))(*batch())


def test_abc_mask_is_activity_times_contact():
    names = ("DNase", "contacts", "H3K27ac")
    model = AbcMasked(AbcMaskedConfig(**SIZES, fraction=0.25, width=4, signal_names=names)).eval()
    sequence, signals = batch(2)
    out = model(sequence, signals)
    for row in range(2):
        dnase, contact, h3k27ac = signals[row].double().numpy().T

        def around(track):
            return np.array([track[max(0, i - 2) : i + 3].mean() for i in range(L)])

        score = np.sqrt(around(dnase) * around(h3k27ac)) * (10**contact - 1)
        np.testing.assert_allclose(out.soft_mask[row], score / score.max(), rtol=1e-5)
        chosen = set(np.argsort(-score)[:15]) | set(range(27, 33))
        assert set(out.mask[row].nonzero()[:, 0].tolist()) == chosen


def test_abc_without_signals_scores_nothing():
    out = AbcMasked(AbcMaskedConfig(**SIZES)).eval()(batch()[0], torch.zeros(3, L, 3))
    assert out.soft_mask.eq(0).all() and out.expression.isfinite().all()


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(5)
    config = Seq2ExpConfig.soft(
        **{**SIZES, "gene_features": 2}, generator_layers=1, signal_scale=1.0, rc_equivariant=True
    )
    Seq2Exp(config).save_pretrained(tmp_path / "soft")
    return tmp_path / "soft"


def test_retrain_takes_the_sizes_and_the_mask_of_its_source(source):
    model = Retrained(RetrainedConfig(source=str(source), fraction=0.2, predictor_layers=2))
    c = model.config
    assert (c.d_model, c.length, c.d_state, c.gene_features, c.predictor_layers) == (8, L, 2, 2, 2)
    theirs = Seq2Exp.from_pretrained(source)
    sequence, signals = batch()
    exclude = where((0, 10))
    features = torch.randn(3, 2)
    mean = theirs(sequence, signals, features).soft_mask
    expected = torch.zeros(3, L).scatter_(1, mean.topk(12, 1).indices, 1.0)
    expected[:, :10], expected[:, CENTRE] = 0, 1
    for training in (True, False):
        out = model.train(training)(sequence, signals, features, exclude=exclude, seed=3)
        assert out.mask.equal(expected)
        torch.testing.assert_close(out.soft_mask, mean)


def test_retrain_trains_the_predictor_and_leaves_the_frozen_model(source):
    model = Retrained(RetrainedConfig(source=str(source))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    sequence, signals = batch()
    out = model(sequence, signals, torch.randn(3, 2))
    seq2exp_loss(out, torch.rand(3)).backward()
    optimizer.step()
    theirs = Seq2Exp.from_pretrained(source).state_dict()
    assert all(tensor.equal(theirs[name]) for name, tensor in model.frozen.state_dict().items())
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("frozen.")}


def test_retrained_is_one_model(source, tmp_path):
    model = Retrained(RetrainedConfig(source=str(source), fraction=0.3)).eval()
    model.save_pretrained(tmp_path / "retrained")
    shutil.rmtree(source)
    again = Retrained.from_pretrained(tmp_path / "retrained")
    sequence, signals = batch()
    for a, b in zip(*(m(sequence, signals, torch.ones(3, 2)) for m in (model, again)), strict=True):
        assert (a is None and b is None) or a.equal(b)


def test_retrain_from_something_else(source, tmp_path):
    with pytest.raises(ValueError, match="neither a run folder nor a saved model"):
        RetrainedConfig(source=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="length is 80, the frozen model has 60"):
        RetrainedConfig(source=str(source), length=80)
    PeakMasked(MaskedConfig(**SIZES)).save_pretrained(tmp_path / "peaks")
    with pytest.raises(ValueError, match="holds a PeakMasked"):
        RetrainedConfig(source=str(tmp_path / "peaks"))
