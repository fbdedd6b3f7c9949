"""Several ranks do what one does: two processes over gloo, in DistributedDataParallel and FSDP2."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from safetensors.torch import load_file

from seq2exp.errors import UserError
from seq2exp.training import TrainConfig
from seq2exp.training.ranks import Ranks
from seq2exp.training.trainer import LAST, Trainer

SUPPORT = Path(two_ranks.__file__)
PARALLEL = ("ddp", "fsdp")
KINDS: dict[str, dict[str, Any]] = {
    "soft": {"model": {"preset": "discovery", "generator_layers": 2}},
    "packed": {"model": {"preset": "hard", "generator_layers": 2, "predictor_layers": 2, "recompute": "layer"}},
    "bf16": {"precision": "bf16"},
}


def _environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun or srun set for one rank of two."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return os.environ | {name: str(value) for name, value in ranks.items()} | {"OMP_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _two(*arguments: object) -> list[tuple[int, str]]:
    """Exit code and stderr of each of two ranks of a Python command."""
    command, port = [sys.executable, *map(str, arguments)], _free_port()
    ranks = [
        subprocess.Popen(
            command, env=_environment(rank, port), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    return [(rank.returncode, err) for rank, err in zip(ranks, said, strict=True)]


def _settings(store: Path, **changes: Any) -> dict[str, Any]:
    fields = {
        "data": {"store": str(store), "batch_size": 4, "rc_augmentation": 0.5},
        "model": {"preset": "discovery", "length": 128, "center": 16, "d_model": 8, "generator_layers": 1,
                  "predictor_layers": 1, "d_state": 2},
        "optimizer": {"lr": 2e-3}, "schedule": {"warmup_fraction": 0.2, "start_lr": 1e-4, "end_lr": 2e-4},
        "precision": "fp32", "steps": 6, "seed": 7, "log_every": 1, "evaluate_every": 3, "checkpoint_every": 2,
    }  # fmt: skip
    data, model = changes.pop("data", {}), changes.pop("model", {})
    return fields | {"data": fields["data"] | data, "model": fields["model"] | model} | changes


@pytest.fixture(scope="module")
def runs(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs that the tests compare, by name; the two ranks do theirs in one go."""
    folder = tmp_path_factory.mktemp("runs")

    def job(name: str, **changes: Any) -> dict[str, Any]:
        do, resume = changes.pop("do", "fit"), changes.pop("resume", False)
        return {"config": _settings(tiny_store, **changes), "run": str(folder / name), "do": do, "resume": resume}

    alone = [job("whole"), job("halves", data={"accumulate": 2}), job("one then ddp", do="interrupt"),
             job("one then fsdp", do="interrupt")]  # fmt: skip
    together = [job(parallel, parallel=parallel) for parallel in PARALLEL]
    together += [job(f"{parallel} then one", parallel=parallel, do="interrupt") for parallel in PARALLEL]
    together += [job(f"one then {parallel}", parallel=parallel, resume=True) for parallel in PARALLEL]
    for name, kind in KINDS.items():
        alone.append(job(f"{name} alone", **kind, do="gradients"))
        for parallel in PARALLEL:
            # clipping at the paper's norm of 1 is part of what must agree
            together.append(job(f"{name} {parallel}", **kind, parallel=parallel, do="gradients"))
            half = {"data": {"accumulate": 2}, "parallel": parallel, "do": "gradients"}
            together.append(job(f"{name} {parallel} halves", **kind, **half))
    for one in alone:
        two_ranks.run_job(Ranks(), **one)
    (folder / "jobs.json").write_text(json.dumps(together))
    assert [(code, err) for code, err in _two(SUPPORT, folder / "jobs.json") if code] == []
    for parallel in PARALLEL:
        two_ranks.run_job(Ranks(), **job(f"{parallel} then one", resume=True))
    return folder


def _rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("how", [f"{p}{h}" for p in PARALLEL for h in ("", " halves")])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_masks_are_those_of_one_process(runs: Path, kind: str, how: str):
    want = torch.load(runs / f"{kind} alone" / "gradients.pt")
    got = torch.load(runs / f"{kind} {how}" / "gradients.pt")
    tolerance = 1e-2 if kind == "bf16" else 2e-6
    assert got.keys() == want.keys() and torch.equal(got.pop("masks"), want["masks"])
    for name, value in got.items():
        assert (value - want[name]).norm() <= tolerance * want[name].norm(), name
    assert want["gradient_norm"] > 0 and all(want[name].abs().max() > 0 for name in got)


@pytest.mark.parametrize("name", ["halves", *PARALLEL])
def test_metrics_and_weights_are_those_of_one_process(runs: Path, name: str):
    _assert_close(runs / name, runs / "whole")


@pytest.mark.parametrize("name", [f"{a} then {b}" for p in PARALLEL for a, b in ((p, "one"), ("one", p))])
def test_resumed_on_another_number_of_ranks(runs: Path, name: str):
    _assert_close(runs / name, runs / "whole")


def _assert_close(run: Path, whole: Path) -> None:
    rows, expected = _rows(run), _rows(whole)
    assert len(rows) == len(expected) == 6
    for row, want in zip(rows, expected, strict=True):
        # of predictions that hardly differ yet
        assert row.pop("valid_pearson", 0.0) == pytest.approx(want.pop("valid_pearson", 0.0), abs=1e-5)
        assert row == pytest.approx(want, rel=2e-6)
    for name in (LAST, Path("best") / "model.safetensors"):
        left, right = load_file(run / name), load_file(whole / name)
        assert left.keys() == right.keys()
        for key, value in left.items():
            torch.testing.assert_close(value, right[key], rtol=1e-3, atol=1e-6)
    assert (run / "best" / "config.json").read_text() == (whole / "best" / "config.json").read_text()


def test_the_first_rank_says_why_another_failed(tiny_store: Path, tmp_path: Path):
    """Rank 0 waits in a collective; under torchrun, as the README has it."""
    (tmp_path / "train.yaml").write_text(json.dumps(_settings(tiny_store)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _free_port()]
    arguments = [SUPPORT, "exhaust", "train", tmp_path / "train.yaml", "--out", tmp_path / "run", "--device", "cpu"]
    done = subprocess.run(
        list(map(str, torchrun + arguments)), capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("seq2exp: ")]
    assert done.returncode != 0 and len(said) == 1, done.stderr
    assert "rank 1: " in said[0] and "out of memory at step 1 with 2 windows at a time" in said[0]
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("seq2exp: ")[0]
    assert done.stderr.count("exitcode  : 2") >= 1


def test_a_mistake_is_said_once(tiny_store: Path, tmp_path: Path):
    (tmp_path / "train.yaml").write_text(json.dumps(_settings(tiny_store, data={"batch_size": 3})))
    ended = _two("-m", "seq2exp", "train", tmp_path / "train.yaml", "--out", tmp_path / "run", "--device", "cpu")
    assert [code for code, _ in ended] == [2, 2]
    said = "".join(err for _, err in ended)
    assert said.count("seq2exp: ") == 1 and "data.batch_size is 3, which 2 ranks" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_shares_are_equal_and_in_order():
    parts = [part for rank in range(2) for part in Ranks(rank, 2).parts(12, 3)]
    assert [list(range(12))[part] for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert Ranks().parts(5, 1) == [slice(0, 5)]
    for batch_size, accumulate in ((6, 4), (2, 4), (9, 2)):
        with pytest.raises(UserError, match=f"data.batch_size is {batch_size}.* make it a multiple of"):
            Ranks(1, 2).parts(batch_size, accumulate)


@pytest.mark.parametrize("items", [1, 4, 5, 6])
def test_every_rank_evaluates_equally_many(items: int):
    shares = [Ranks(rank, 3).spread(items) for rank in range(3)]
    assert {len(share) for share in shares} == {-(-items // 3)}
    assert {item for share in shares for item in share} == set(range(items))


@pytest.mark.slow
def test_no_compiler_is_said(tiny_store: Path, tmp_path: Path):
    (tmp_path / "train.yaml").write_text(json.dumps(_settings(tiny_store, compile=True)))
    command = [sys.executable, "-m", "seq2exp", "train", tmp_path / "train.yaml", "--out", tmp_path / "run"]
    done = subprocess.run(
        [*command, "--device", "cpu"],
        capture_output=True, text=True, env=os.environ | {"CXX": "/nonexistent/g++"},
    )  # fmt: skip
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and said.startswith("seq2exp: compile: true does not work here, set it to false: ")
    assert "compiler" in said and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "packed"])
def test_compiled_is_the_same_run(tiny_store: Path, tmp_path: Path, kind: str):
    """Of 12 steps none after the third compiles anything: seeds and numbers of selected bases are dynamic."""
    from torch._dynamo.utils import counters

    settings = _settings(tiny_store, steps=12, **KINDS[kind])
    Trainer(TrainConfig.model_validate(settings), tmp_path / "plain", quiet=True).fit()
    torch._dynamo.reset()
    trainer = Trainer(TrainConfig.model_validate(settings | {"compile": True}), tmp_path / "compiled", quiet=True)
    graphs = []
    step = trainer._step

    def counted(batches: Any) -> None:
        step(batches)
        graphs.append(counters["stats"]["unique_graphs"])

    trainer._step = counted  # type: ignore[method-assign]
    trainer.fit()
    assert graphs[-1] == graphs[2] > 0
    _assert_compiled_alike(tmp_path / "compiled", tmp_path / "plain")


@pytest.mark.slow
def test_compiled_on_two_ranks_is_the_same_run(tiny_store: Path, tmp_path: Path):
    def job(name: str, **changes: Any) -> dict[str, Any]:
        settings = _settings(tiny_store, data={"accumulate": 2}, **KINDS["packed"], **changes)
        return {"config": settings, "run": str(tmp_path / name)}

    two_ranks.run_job(Ranks(), **job("plain"))
    (tmp_path / "jobs.json").write_text(json.dumps([job(p, parallel=p, compile=True) for p in PARALLEL]))
    assert [(code, err) for code, err in _two(SUPPORT, tmp_path / "jobs.json") if code] == []
    for parallel in PARALLEL:
        _assert_compiled_alike(tmp_path / parallel, tmp_path / "plain")


def _assert_compiled_alike(compiled: Path, plain: Path) -> None:
    for row, want in zip(_rows(compiled), _rows(plain), strict=True):
        assert row == pytest.approx(want, rel=1e-4, abs=1e-5)
