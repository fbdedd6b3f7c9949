"""A tiny simulated store, settings of a tiny model, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]

MODEL = {
    "preset": "discovery", "length": 128, "center": 16, "d_model": 8, "generator_layers": 1, "predictor_layers": 1,
    "d_state": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a simulated genome: 60 genes, windows of 128."""
    from seq2exp.data_tools import simulate

    return simulate(
        tmp_path_factory.mktemp("simulated"), seed=5, genes=60, length=128, center=16, element_width=12, motif_copies=1,
        chromosomes=3, valid_fraction=0.2, test_fraction=0.2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_store(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of that genome, two of whose test genes have no target."""
    return _store(simulated, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def peaks_store(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all elements as peaks."""
    return _store(simulated, tmp_path_factory.mktemp("store"), peaks=simulated / "elements.bed")


def _store(simulated: Path, folder: Path, **more: Any) -> Path:
    import pandas as pd

    from seq2exp.data_tools import build_store

    genes = pd.read_csv(simulated / "genes.csv")
    genes.loc[genes.index[genes["split"] == "test"][:2], "target"] = None
    genes.to_csv(folder / "genes.csv", index=False)
    build_store(
        fasta=simulated / "genome.fa",
        track={name: simulated / f"{name}.bw" for name in ("H3K27ac", "DNase")},
        contacts=str(simulated / "contacts.tsv"),
        genes=folder / "genes.csv",
        target="target",
        split="split",
        out=folder / "store.zarr",
        **more,
    )
    return folder / "store.zarr"


@pytest.fixture
def settings(tiny_store: Path) -> dict[str, Any]:
    """Settings of a short run on the tiny store."""
    return {
        "data": {"store": str(tiny_store), "batch_size": 4, "rc_augmentation": 0.5},
        "model": dict(MODEL),
        "optimizer": {"lr": 2e-3},
        "schedule": {"warmup_fraction": 0.2, "start_lr": 1e-4, "end_lr": 2e-4},
        "kl": {"weight": 0.01, "start_fraction": 0.3, "ramp_fraction": 0.3},
        "precision": "fp32",
        "steps": 6,
        "seed": 7,
        "log_every": 1,
        "evaluate_every": 3,
        "checkpoint_every": 2,
    }


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes settings into a file of the test's folder."""

    def write(fields: dict[str, Any]) -> Path:
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(fields))
        return path

    return write


@pytest.fixture(scope="session")
def trained(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished short training."""
    from seq2exp.training import TrainConfig, train

    run = tmp_path_factory.mktemp("trained") / "run"
    config = TrainConfig.model_validate(
        {
            "data": {"store": tiny_store, "batch_size": 4},
            "model": MODEL,
            "schedule": {"warmup_fraction": 0.0},
            "precision": "fp32",
            "steps": 3,
            "evaluate_every": 3,
        }
    )
    train(config, run, quiet=True)
    return run


@pytest.fixture
def seq2exp(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process: (exit code, stdout, stderr)."""
    from seq2exp.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run
