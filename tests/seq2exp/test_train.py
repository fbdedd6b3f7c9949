"""The loop: what a run leaves behind, and that stopping and resuming it changes nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from seq2exp.errors import UserError
from seq2exp.training import TrainConfig, train
from seq2exp.training.trainer import LAST, Trainer


def _config(settings: dict[str, Any], **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(settings | changes)


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _assert_same_run(a: Path, b: Path) -> None:
    assert (a / "metrics.csv").read_bytes() == (b / "metrics.csv").read_bytes()
    for name in (LAST, Path("best") / "model.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    assert _state(a) == _state(b)


def _state(run: Path) -> dict[str, Any]:
    with safe_open(run / LAST, framework="pt") as file:
        return json.loads(file.metadata()["state"])


def test_run_folder(settings, tmp_path):
    run = tmp_path / "run"
    result = train(_config(settings), run, quiet=True)
    rows = _rows(run)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["valid_mse"]] == ["3", "6"]
    valid = {int(row["step"]): float(row["valid_mse"]) for row in rows if row["valid_mse"]}
    assert result.best_step == 6 and result.best_mse == valid[6]  # at step 3 the KL weight was not full
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["d_model"] == 8
    assert list((run / "tensorboard").glob("events.*"))
    assert json.loads((run / "best" / "inputs.json").read_text())["signals"] == ["H3K27ac", "DNase", "contacts"]
    assert _state(run)["step"] == 6
    assert not list(run.rglob("*partial*")) and not list(run.rglob("*.pt"))


def test_best_is_the_model_with_the_lowest_validation_error(settings, tmp_path):
    """A rate that spoils the model after the first evaluation: best stays behind, last goes on."""
    from seq2exp.inference.evaluate import scores
    from seq2exp.inference.windows import load_model, predict_genes

    schedule = {"warmup_steps": 6, "start_lr": 1e-5, "end_lr": 1.0}
    config = _config(settings, evaluate_every=1, optimizer={"lr": 1.0, "clip": 1e6}, schedule=schedule, kl={})
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    result = trainer.fit()
    valid = {int(row["step"]): float(row["valid_mse"]) for row in _rows(tmp_path / "run")}
    assert result.best_step < 6 and result.best_mse == min(valid.values()) == valid[result.best_step]
    model, _, _ = load_model(tmp_path / "run")
    assert scores(predict_genes(model, trainer.valid_set, batch_size=4))["mse"] == pytest.approx(result.best_mse)


def test_a_run_is_a_function_of_its_seed(settings, tmp_path):
    for name, changes in {"a": {}, "b": {}, "c": {"seed": 8}}.items():
        train(_config(settings, **changes), tmp_path / name, quiet=True)
    _assert_same_run(tmp_path / "a", tmp_path / "b")
    assert _rows(tmp_path / "a") != _rows(tmp_path / "c")


def test_shift_augmentation_moves_training_windows_anew_in_every_epoch(settings, tmp_path):
    trainer = Trainer(_config(settings, data=settings["data"] | {"max_shift": 5}), tmp_path / "run", quiet=True)
    starts = [
        {trainer.train_set[i, epoch]["start"] - trainer.train_set[i]["start"] for i in range(9)} for epoch in (1, 2)
    ]
    assert len(starts[0]) > 2 and starts[0] != starts[1]
    tss = trainer.valid_set.genes["tss"].to_numpy() - 64
    assert [trainer.valid_set[i]["start"] for i in range(len(tss))] == tss.tolist()
    seen = [batch["start"].tolist() for batch, _ in zip(trainer._batches(), range(4), strict=False)]
    usual = set((trainer.train_set.genes["tss"] - 64).tolist())
    assert any(start not in usual for batch in seen for start in batch)


def test_reader_processes_change_nothing(settings, tmp_path):
    train(_config(settings), tmp_path / "a", quiet=True)
    config = _config(settings, data=settings["data"] | {"workers": 1})
    train(config, tmp_path / "b", quiet=True)
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


def test_killed_and_resumed_equals_uninterrupted(settings, write_yaml, tmp_path):
    """SIGKILL past a checkpoint, between two rows of the log; what follows is the same to the last bit."""
    settings |= {"steps": 60, "checkpoint_every": 7, "evaluate_every": 5, "log_every": 3}
    path, whole, killed = write_yaml(settings), tmp_path / "whole", tmp_path / "killed"
    program = [sys.executable, "-m", "seq2exp.cli", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    victim = subprocess.Popen([*program, str(path), "--out", str(killed)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / LAST).exists() or len(_rows(killed)) < 8:
        assert victim.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    at = _state(killed)["step"]
    assert 7 <= at < 60 and at % 7 == 0
    with (killed / "metrics.csv").open("a") as file:
        file.write("59,0.1")  # a row cut off by the kill
    for arguments in (["--resume", str(killed)], [str(path), "--out", str(whole)]):
        subprocess.run([*program, *arguments], check=True, env=environment, capture_output=True)
    _assert_same_run(whole, killed)


def test_resume_before_the_first_checkpoint_starts_over(settings, tmp_path):
    Trainer(_config(settings), tmp_path / "run", quiet=True)  # as if killed before any step
    train(None, tmp_path / "run", resume=True, quiet=True)
    train(_config(settings), tmp_path / "whole", quiet=True)
    _assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_resume_of_a_finished_run_changes_nothing(settings, tmp_path):
    first = train(_config(settings), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / LAST).read_bytes(), (tmp_path / "run" / "metrics.csv").read_bytes()
    again = train(None, tmp_path / "run", resume=True, quiet=True)
    assert (again.best_mse, again.best_step) == (first.best_mse, first.best_step)
    assert before == ((tmp_path / "run" / LAST).read_bytes(), (tmp_path / "run" / "metrics.csv").read_bytes())


def test_baseline_trains(settings, tmp_path):
    model = {key: settings["model"][key] for key in ("length", "center", "d_model")} | {"name": "caduceus_signals"}
    result = train(_config(settings, model=model, steps=2), tmp_path / "run", quiet=True)
    assert result.best_step == 2


def test_bf16(settings, tmp_path):
    train(_config(settings, precision="bf16", steps=2), tmp_path / "a", quiet=True)
    train(_config(settings, steps=2), tmp_path / "b", quiet=True)
    a, b = (float(_rows(tmp_path / name)[-1]["loss"]) for name in "ab")
    assert a != b and a == pytest.approx(b, rel=0.1)


def test_existing_run_is_not_overwritten(settings, tmp_path):
    train(_config(settings, steps=2), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match="holds a run already"):
        train(_config(settings), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_changed_settings_are_not_resumed(settings, tmp_path):
    run = tmp_path / "run"
    train(_config(settings), run, quiet=True)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    with pytest.raises(UserError, match=r"config.yaml: seed was changed since the checkpoint: it was 7, now 8"):
        train(None, run, resume=True, quiet=True)
    (run / "config.yaml").write_text(text.replace("d_model: 8", "d_model: 16"))
    other = r"last.safetensors: a checkpoint of another shape: \S+ is \(16, 2\), the model has \(32, 2\)"
    with pytest.raises(UserError, match=other):
        train(None, run, resume=True, quiet=True)


def test_damaged_checkpoint(settings, tmp_path):
    run = tmp_path / "run"
    train(_config(settings, steps=2), run, quiet=True)
    (run / LAST).write_bytes((run / LAST).read_bytes()[:100])
    with pytest.raises(UserError, match=r"last.safetensors: not a checkpoint"):
        train(None, run, resume=True, quiet=True)


def test_divergence_is_said(settings, tmp_path):
    config = _config(settings, optimizer={"lr": 1.0, "clip": 1e30}, schedule={"warmup_steps": 0, "end_lr": 1.0})
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    with torch.no_grad():
        trainer.model.head.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="training diverged at step 0"):
        trainer.fit()


def test_model_that_does_not_fit_the_store(settings, tmp_path):
    run = tmp_path / "run"
    model = settings["model"] | {"tracks": 2, "signal_weights": [1, 1], "signal_betas": [1, 1]}
    with pytest.raises(UserError, match=r"model.tracks is 2, but .*holds 3: H3K27ac, DNase, contacts"):
        train(_config(settings, model=model), run, quiet=True)
    with pytest.raises(UserError, match=r"model.gene_features is 1, but .*holds 0: none"):
        train(_config(settings, model=settings["model"] | {"gene_features": 1}), run, quiet=True)
    assert not run.exists()
