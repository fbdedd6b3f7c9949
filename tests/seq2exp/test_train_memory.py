"""When the memory is not enough: one sentence that says what would fit, and a run that goes on with that."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seq2exp.errors import UserError
from seq2exp.training import TrainConfig, memory, train, trainer

CPU = torch.device("cpu")


def _losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 3 on more than 2 windows at a time are too many."""
    real = trainer.Trainer._loss

    def loss(self: trainer.Trainer, model: Any, batch: dict[str, Any]) -> Any:
        if self.state.step >= 3 and len(batch["row"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, model, batch)

    monkeypatch.setattr(trainer.Trainer, "_loss", loss)


def test_one_sentence_and_then_on_in_smaller_parts(seq2exp, settings, write_yaml, tmp_path, exhausted, monkeypatch):
    """What is advised is done, and the run is the one that would have been."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    monkeypatch.setattr(trainer, "windows_that_fit", lambda step, device: step(2) or 3)
    code, _, err = seq2exp("train", write_yaml(settings), "--out", run, "--device", "cpu")
    said = (
        f"seq2exp: {run}/config.yaml: out of memory at step 3 with 4 windows at a time, at most 3 would fit: "
        f"set data.accumulate: 2 (2 at a time) or model.recompute: layer and continue with --resume {run}"
    )
    assert code == 2 and err.splitlines()[-1] == said
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["accumulate"], config["model"]["recompute"] = 2, "layer"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    train(None, run, resume=True, device="cpu", quiet=True)
    train(TrainConfig.model_validate(settings | {"data": config["data"]}), whole, device="cpu", quiet=True)
    assert len(_losses(whole)) == 6 and _losses(run) == pytest.approx(_losses(whole), rel=1e-6)


def test_other_errors_are_not_hidden(settings, tmp_path, monkeypatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainer.Trainer, "_loss", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(TrainConfig.model_validate(settings), tmp_path / "run", device="cpu", quiet=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((8, 1, 5, False), "at most 5 would fit: set data.accumulate: 2 (4 at a time) or model.recompute: layer"),
        ((6, 2, 5, True), "at most 5 would fit: set data.accumulate: 3 (4 at a time)"),
        ((8, 1, 9, True), "at most 7 would fit: set data.accumulate: 2 (4 at a time)"),
        ((8, 1, None, False), "set data.accumulate: 2 (4 at a time) or model.recompute: layer"),
        ((8, 1, 0, False), "at most 0 would fit: set model.recompute: layer"),
        ((1, 8, 0, True), "at most 0 would fit: set a smaller model.length or model.d_model"),
    ],
)
def test_advice(arguments: tuple[Any, ...], said: str):
    windows, accumulate, fits, recomputes = arguments
    assert memory.advice(windows, accumulate, fits, recomputes=recomputes) == said


FITTING = """
import torch
from seq2exp.training import memory

CPU, MiB = torch.device("cpu"), 2**20

def step(windows):
    torch.ones((96 + 64 * windows) * MiB, dtype=torch.uint8)

assert memory.free_bytes(CPU) > 400 * MiB
memory.free_bytes = lambda device: 400 * MiB
print(memory.windows_that_fit(step, CPU))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_fits_is_measured():
    """A step holds 64 MiB a window and 96 MiB beside them: 400 MiB are enough for 4. Alone in its process, where no
    other test frees memory meanwhile."""
    assert subprocess.check_output([sys.executable, "-c", FITTING], text=True) == "4\n"


@pytest.mark.parametrize("fits", [0, 1])
def test_not_even_two_windows_fit(fits: int):
    def step(windows: int) -> None:
        if windows > fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    assert memory.windows_that_fit(step, CPU) == fits


def test_nothing_is_said_of_memory_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "absent")
    assert memory.windows_that_fit(lambda windows: None, CPU) is None


def test_unequal_parts_are_refused(settings, tmp_path):
    config = TrainConfig.model_validate(settings | {"data": settings["data"] | {"accumulate": 3}})
    with pytest.raises(UserError, match=r"data.batch_size is 4, which 1 rank with data.accumulate 3 .* multiple of 3"):
        train(config, tmp_path / "run", device="cpu", quiet=True)
