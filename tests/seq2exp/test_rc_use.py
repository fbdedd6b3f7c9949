"""Strands in training and in use: an equivariant run, and the mean over both strands of any other model."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from seq2exp import Seq2Exp, Seq2ExpConfig, UserError
from seq2exp.baselines import GeneExpBiMamba, GeneExpBiMambaConfig
from seq2exp.data_tools import GeneWindows, collate
from seq2exp.inference.windows import call_model, load_model, predict_genes, run_windows
from seq2exp.strands import reverse_complement
from seq2exp.training import TrainConfig, train
from seq2exp.training.trainer import LAST

CPU = torch.device("cpu")
SMALL = {"length": 128, "center": 16, "gene_features": 0, "d_model": 8, "d_state": 2}


def seq2exp_model(**fields):
    torch.manual_seed(3)
    layers = {"generator_layers": 1, "predictor_layers": 1}
    return Seq2Exp(Seq2ExpConfig.discovery(**SMALL | layers | fields)).eval()


def windows_of(store, model):
    return GeneWindows(store, model.config.length, "test", require_target=False)


def test_mean_over_both_strands(tiny_store):
    model = seq2exp_model()
    windows = windows_of(tiny_store, model)
    whole = collate([windows[i] for i in range(len(windows))])
    one, two = (call_model(model, batch, CPU) for batch in (whole, reverse_complement(whole)))
    ((batch, out),) = run_windows(model, windows, batch_size=len(windows), rc_average=True)
    assert batch["gene_id"] == whole["gene_id"]
    torch.testing.assert_close(out.expression, (one.expression + two.expression) / 2)
    for name in ("mask", "soft_mask", "alpha", "beta"):
        mean = (getattr(one, name) + getattr(two, name).flip(1)) / 2
        torch.testing.assert_close(getattr(out, name), mean)
        assert not torch.allclose(mean, getattr(one, name)), "both strands give the same: the test shows nothing"
    torch.testing.assert_close(out.selected_fraction, out.mask.mean())
    genes = predict_genes(model, windows, batch_size=5, rc_average=True)
    assert genes["prediction"].to_numpy() == pytest.approx(out.expression.numpy(), rel=1e-5)


def test_the_mean_over_strands_of_an_equivariant_model_is_its_output(tiny_store):
    model = seq2exp_model(rc_equivariant=True)
    windows = windows_of(tiny_store, model)
    (_, plain), (_, mean) = (
        next(run_windows(model, windows, batch_size=6, rc_average=average)) for average in (False, True)
    )
    for name in ("expression", "mask", "soft_mask"):
        torch.testing.assert_close(getattr(mean, name), getattr(plain, name), rtol=0, atol=1e-5)


def test_the_mean_over_strands_of_a_model_without_a_mask(tiny_store):
    torch.manual_seed(3)
    model = GeneExpBiMamba(GeneExpBiMambaConfig(**SMALL, layers=1)).eval()
    windows = windows_of(tiny_store, model)
    whole = collate([windows[i] for i in range(3)])
    outs = [call_model(model, batch, CPU).expression for batch in (whole, reverse_complement(whole))]
    _, out = next(run_windows(model, windows, batch_size=3, rc_average=True))
    torch.testing.assert_close(out.expression, sum(outs) / 2)
    assert out.mask is None


def test_the_mean_needs_a_centre_in_the_middle(tiny_store):
    model = seq2exp_model(length=127)
    with pytest.raises(UserError, match="rc_average needs a model whose length - center is even, got 127 - 16"):
        next(run_windows(model, windows_of(tiny_store, model), rc_average=True))


def test_option_of_the_program(seq2exp, trained, tmp_path):
    predicted = {}
    for name, options in {"one.csv": [], "two.csv": ["--rc-average"]}.items():
        assert seq2exp("predict", trained, "--out", tmp_path / name, *options)[0] == 0
        predicted[name] = pd.read_csv(tmp_path / name)["prediction"]
    model, _, run = load_model(trained)
    expected = predict_genes(
        model, GeneWindows(run["data"]["store"], 128, require_target=False), batch_size=4, rc_average=True
    )
    assert predicted["two.csv"].to_numpy() == pytest.approx(expected["prediction"].to_numpy(), rel=1e-4)
    assert (predicted["one.csv"] != predicted["two.csv"]).all()
    assert seq2exp("evaluate", trained, "--rc-average", "--out", tmp_path / "evaluation")[0] == 0
    assert seq2exp("discover", trained, "--rc-average", "--split", "test", "--out", tmp_path / "discovery")[0] == 0
    for command in ("evaluate", "predict", "discover"):
        assert "--rc-average" in seq2exp(command, "--help")[1]
    assert "rc_equivariant" in seq2exp("train", "--help")[1]


def test_an_equivariant_run(settings, tmp_path):
    """Trained, resumed, used; and not continued as a run of the other sharing."""
    run = tmp_path / "run"
    config = TrainConfig.model_validate(settings | {"model": settings["model"] | {"rc_equivariant": True}})
    train(config, run, quiet=True)
    before = (run / LAST).read_bytes()
    train(None, run, resume=True, quiet=True)
    assert (run / LAST).read_bytes() == before
    model, _, _ = load_model(run)
    windows = windows_of(settings["data"]["store"], model)
    plain, mean = (predict_genes(model, windows, rc_average=average)["prediction"] for average in (False, True))
    assert plain.to_numpy() == pytest.approx(mean.to_numpy(), abs=1e-5)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("rc_equivariant: true", "rc_equivariant: false"))
    with pytest.raises(UserError, match=r"last.safetensors: .*rc_equivariant_sharing is not used"):
        train(None, run, resume=True, quiet=True)


def test_a_run_whose_centre_is_off_the_middle_is_refused(settings):
    model = settings["model"] | {"rc_equivariant": True, "length": 127}
    with pytest.raises(ValueError, match="rc_equivariant needs length - center to be even, got 127 - 16"):
        TrainConfig.model_validate(settings | {"model": model, "data": {"store": "x"}})
