"""Every model of the registry: trained, resumed, evaluated and used by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from seq2exp.errors import UserError
from seq2exp.registry import MODELS
from seq2exp.training import TrainConfig, train

WINDOW = {"length": 512, "center": 16}
SMALL = {
    "seq2exp": {"d_model": 8, "generator_layers": 1, "predictor_layers": 1, "d_state": 2},
    "caduceus": {"d_model": 8, "layers": 1, "d_state": 2},
    "caduceus_signals": {"d_model": 8, "layers": 1, "d_state": 2},
    "mamba": {"d_model": 8, "layers": 1, "d_state": 2},
    "hyenadna": {"d_model": 8, "layers": 1, "d_inner": 8, "filter_width": 8},
    "enformer": {"dim": 24, "depth": 1, "heads": 2, "d_model": 8},
    "epinformer": {"element": 416, "elements": 4, "d_model": 32, "layers": 1, "heads": 2},
    "peaks": {"d_model": 8, "predictor_layers": 1, "d_state": 2},
    "abc": {"d_model": 8, "predictor_layers": 1, "d_state": 2, "width": 12},
    "retrain": {"fraction": 0.2},
    "ridge": {"bins": 16},
}
PAPER = {  # batch size, learning rate
    "seq2exp": (8, 5e-4),
    "caduceus": (16, 5e-4),
    "caduceus_signals": (16, 5e-4),
    "mamba": (16, 5e-4),
    "hyenadna": (8, 5e-4),
    "enformer": (4, 7e-6),
    "epinformer": (16, 5e-4),
    "peaks": (8, 5e-4),
    "abc": (8, 5e-4),
    "retrain": (8, 5e-4),
    "ridge": (8, 5e-4),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_name_brings_the_settings_of_the_paper(name):
    config = TrainConfig.model_validate({"data": {"store": "s.zarr"}, "model": {"name": name}})
    assert (config.data.batch_size, config.optimizer.lr) == PAPER[name]
    given = {"data": {"store": "s.zarr", "batch_size": 2}, "model": {"name": name}, "optimizer": {"lr": 1e-3}}
    config = TrainConfig.model_validate(given)
    assert (config.data.batch_size, config.optimizer.lr) == (2, 1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_trains_resumes_and_is_used(seq2exp, settings, peaks_store, tmp_path, name):
    if name == "enformer":
        pytest.importorskip("enformer_pytorch")
    settings["data"]["store"] = str(peaks_store)
    settings |= {"model": {"name": name} | WINDOW | SMALL[name], "steps": 4}
    if name == "retrain":
        settings["model"]["source"] = str(soft_run(settings, tmp_path / "soft"))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(TrainConfig.model_validate(settings), whole, quiet=True)
    halted(TrainConfig.model_validate(settings), resumed, at=2)
    assert config_of(resumed) == config_of(whole)
    train(None, resumed, resume=True, quiet=True)
    a, b = (load_file(run / "checkpoints" / "last.safetensors") for run in (whole, resumed))
    assert a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)
    assert json.loads((whole / "best" / "config.json").read_text())["model"] == MODELS[name].model.__name__
    for command in ("evaluate", "predict"):
        code, out, err = seq2exp(command, whole)
        assert code == 0 and out, err
    code, _, err = seq2exp("discover", whole)
    assert (code == 0) == MODELS[name].model.has_mask
    assert code == 0 or "has no mask" in err


def config_of(run: Path) -> str:
    return (run / "config.yaml").read_text()


def soft_run(settings: dict[str, Any], run: Path) -> Path:
    """A trained soft model, to retrain from."""
    model = {"preset": "soft"} | WINDOW | SMALL["seq2exp"]
    train(TrainConfig.model_validate(settings | {"model": model}), run, quiet=True)
    return run


def halted(config: TrainConfig, run: Path, at: int) -> None:
    """As if the run had been killed after its checkpoint of that step."""
    from seq2exp.training.trainer import Trainer

    class Killed(Exception):
        pass

    trainer = Trainer(config, run, quiet=True)
    save = trainer._save

    def save_and_die() -> None:
        save()
        if trainer.state.step >= at:
            raise Killed

    trainer._save = save_and_die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.fit()


def test_an_unknown_name_is_a_sentence(settings, tmp_path, trained):
    from seq2exp.training.config import model_config

    with pytest.raises(UserError, match="name 'graphreg' is unknown: one of seq2exp, caduceus"):
        model_config({"name": "graphreg"})
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model": "GraphReg"}')
    from seq2exp.inference.windows import load_model

    with pytest.raises(UserError, match="model 'GraphReg' is unknown: one of AbcMasked, EPInformer"):
        load_model(folder)
