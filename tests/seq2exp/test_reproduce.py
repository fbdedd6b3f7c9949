"""The tables of the paper: what would be run, that it is run once and goes on, and what is said beside the results."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from seq2exp.data_tools import GeneWindows, build_store, open_store, simulate
from seq2exp.errors import UserError
from seq2exp.files import write_json
from seq2exp.registry import MODELS
from seq2exp.reproduce import EXTRA, ROWS, TABLES, run_list
from seq2exp.reproduce.job import Job, slots
from seq2exp.reproduce.one import perform
from seq2exp.reproduce.plan import changed_settings
from seq2exp.reproduce.published import PUBLISHED
from seq2exp.reproduce.store import check_store, unlike_the_paper
from seq2exp.runlist import alone, keep_plan
from seq2exp.runlist.child import RESULT

TINY: dict[str, Any] = {
    "data": {"batch_size": 2},
    "model": {
        "length": 512, "center": 32, "d_model": 32, "d_state": 2, "layers": 1, "generator_layers": 1,
        "predictor_layers": 1, "d_inner": 16, "dim": 96, "depth": 1, "element": 416, "fraction": 0.2, "width": 20,
    },
    "precision": "fp32",
    "steps": 4,
    "evaluate_every": 2,
    "checkpoint_every": 2,
}  # fmt: skip


def build(folder: Path, **more: Any) -> Path:
    simulated = folder / "simulated"
    build_store(
        fasta=simulated / "genome.fa",
        track={name: simulated / f"{name}.bw" for name in ("H3K27ac", "DNase")},
        contacts=str(simulated / "contacts.tsv"),
        genes=simulated / "genes.csv",
        target="target",
        split="split",
        **more,
    )
    return more["out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with peaks, one without, and the settings of tiny runs."""
    folder = tmp_path_factory.mktemp("reproduce")
    simulate(folder / "simulated", seed=5, genes=30, length=512, center=32, valid_fraction=0.2, test_fraction=0.2)
    build(folder, out=folder / "peaks.zarr", peaks=folder / "simulated" / "elements.bed")
    build(folder, out=folder / "bare.zarr")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def command(folder: Path, out: Path, table: str = "table2", *more: object, store: str = "peaks.zarr") -> list[object]:
    fixed = ["--store", folder / store, "--out", out, "--settings", folder / "tiny.yaml", "--devices", "cpu"]
    return ["reproduce", table, *fixed, *(() if table in ("table4", "table5") else ("--cell-type", "K562")), *more]


def pretend(out: Path, folder: str, **values: float | None) -> None:
    """A result of a run that was not done."""
    result = {"mse": 0.2, "mae": 0.3, "pearson": 0.8, "mask_ratio": None, "seconds": 1.0}
    write_json(out / folder / RESULT, result | values)


def test_the_paper_is_complete():
    assert {row for table in TABLES.values() for row in table.rows} | set(EXTRA) == set(ROWS)
    for values in PUBLISHED.values():
        assert set(values) == set(ROWS) - set(EXTRA)
    assert PUBLISHED["K562"]["Seq2Exp-soft"].mse == (0.1856, 0.0032)
    assert PUBLISHED["GM12878"]["Seq2Exp-retrain"].pearson == (0.8941, None)


def test_the_settings_are_those_of_the_paper():
    runs = {run.row: run for run in run_list(Path("store.zarr"), "K562") if run.seed == 22222}
    batches = {name: run.training["data"]["batch_size"] for name, run in runs.items()}
    of_sixteen = ("Mamba", "Caduceus", "Caduceus w/ signals", "EPInformer")
    assert batches == dict.fromkeys(ROWS, 8) | dict.fromkeys(of_sixteen, 16) | {"Enformer": 4}
    for name, run in runs.items():
        config, given = run.training, MODELS[run.training["model"].get("name", "seq2exp")].training
        assert config["steps"] == given.get("steps", 50_000) and config["precision"] == given.get("precision", "bf16")
        if "schedule" not in given:
            assert config["schedule"]["warmup_steps"] == 5_000
            assert config["optimizer"] == {"lr": 5e-4, "weight_decay": 1e-6, "betas": [0.9, 0.95], "clip": 1.0}
        assert config["kl"]["weight"] == 0.01 and changed_settings(name, config) == []
    assert runs["Enformer"].training["optimizer"]["lr"] == 7e-6
    assert runs["Seq2Exp-retrain"].source == "runs/seq2exp-soft_22222"


def test_given_settings_are_put_over_those_of_every_row_that_has_them():
    runs = {run.row: run for run in run_list(Path("store.zarr"), "K562", TINY)}
    assert runs["Enformer"].training["model"]["dim"] == 96 and "dim" not in runs["Caduceus"].training["model"]
    assert [runs[name].config(Path("out")).warmup_steps for name in ("Enformer", "EPInformer", "MACS3")] == [1, 0, 0]
    lines = changed_settings("Seq2Exp-hard", runs["Seq2Exp-hard"].training)
    assert "steps is 4, in the paper 50000" in lines and "model.length is 512, in the paper 200000" in lines
    assert not any("every" in line or "warmup" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stepz": 3}, "settings: stepz: unknown field, did you mean steps?"),
        ({"model": {"lenght": 3}}, "settings: model.lenght: unknown field, did you mean length?"),
        ({"model": {"preset": "soft"}}, "model.preset makes a row what it is"),
        ({"model": 3}, "settings: model: expected fields, found 3"),
        ({"data": {"store": "x"}}, "the store is given by --store"),
        ({"data": {"batch_size": 0}}, "settings of Enformer: data.batch_size: input should be greater"),
        ({"model": {"length": 600}}, "settings of Enformer: model.center is 2000, longer than length"),
    ],
)
def test_bad_settings(given, said):
    with pytest.raises(UserError, match="settings") as refused:
        run_list(Path("store.zarr"), "K562", given)
    assert said in str(refused.value)


def test_a_row_that_the_settings_do_not_fit_is_in_nobodys_way():
    given = {"model": {"d_model": 8}}
    with pytest.raises(UserError, match=r"settings of EPInformer: model\.d_model is 8"):
        run_list(Path("store.zarr"), "K562", given)
    runs = run_list(Path("store.zarr"), "K562", given, ("Seq2Exp-soft",))
    assert {run.row for run in runs} == set(ROWS) - {"EPInformer"}


def test_two_rows_two_seeds(seq2exp, folder, tmp_path):
    """The whole of it: trained, printed, not repeated; other settings refused. Some of the runs are done here, which
    saves processes."""
    out = tmp_path / "out"
    runs = run_list(folder / "peaks.zarr", "K562", TINY)
    keep_plan(out, runs)
    for run in runs:
        if (run.row, run.seed) in (("Ridge", 2), ("Ridge", 22), ("Seq2Exp-hard", 2), ("ABC", 2)):
            write_json(out / run.folder / RESULT, perform(run, out, "cpu"))
    rows = ("--seeds", "2,22", "--rows", "seq2exp-hard,abc,Ridge")
    code, printed, err = seq2exp(*command(folder, out, "table1", *rows))
    assert code == 0, err
    assert "Table 1, K562: 2 of 6 runs to do, 1 at a time" in printed
    assert "[1/2] Seq2Exp-hard, K562, seed 22: mse " in err and "[2/2] ABC, K562, seed 22: mse " in err
    text = (out / "table.md").read_text()
    assert text.strip() in printed
    for part in (
        "| Seq2Exp-hard | 2 of 2 | ",
        " | 0.1863 ± 0.0051 | ",
        " | 6.88 % |",
        "| Ridge        | 2 of 2 | ",
        "| ABC          | 2 of 2 | ",
    ):
        assert part in text, part
    for part in (
        "the genes of test are on",
        "0 gene features, in the paper 9",
        "- steps is 4, in the paper 50000 (Seq2Exp-hard, ABC)",
        "- **ABC**: Not in the paper. The mask is the 10 % of highest ABC score.",
    ):
        assert part in text, part
    lines = {line["row"]: line for line in csv.DictReader((out / "table.csv").open())}
    hard = [json.loads((out / f"runs/seq2exp-hard_{seed}" / RESULT).read_text()) for seed in (2, 22)]
    assert hard[0]["mse"] != hard[1]["mse"] and 0 < hard[0]["mask_ratio"] <= 1
    mean = (hard[0]["mse"] + hard[1]["mse"]) / 2
    assert float(lines["Seq2Exp-hard"]["mse"]) == pytest.approx(mean, rel=1e-5)
    assert float(lines["Seq2Exp-hard"]["mse_sd"]) == pytest.approx(abs(hard[0]["mse"] - mean) * 2**0.5, rel=1e-4)
    assert lines["Seq2Exp-hard"]["mask_ratio_published"] == "0.0688" and lines["Ridge"]["mse_published"] == ""
    assert float(lines["Ridge"]["mse_sd"]) == 0
    for seed in (2, 22):
        ratio = json.loads((out / f"runs/abc_{seed}" / RESULT).read_text())["mask_ratio"]
        assert ratio == pytest.approx(abc_ratio(folder / "peaks.zarr"), abs=1e-3)

    written = (out / "runs/seq2exp-hard_2" / RESULT).stat().st_mtime_ns
    code, printed, _ = seq2exp(*command(folder, out, "table2", "--seeds", "2", "--rows", "Seq2Exp-hard"))
    assert code == 0 and "0 of 1 runs to do" in printed and "| Seq2Exp-hard | 1 of 1 | " in printed
    assert (out / "runs/seq2exp-hard_2" / RESULT).stat().st_mtime_ns == written

    changed = folder / "changed.yaml"
    changed.write_text(yaml.safe_dump(TINY | {"optimizer": {"lr": 1e-3}}))
    code, _, err = seq2exp(*command(folder, out, "table2", "--settings", changed))
    assert code == 2 and "the run list was changed" in err and "training.optimizer.lr was 0.0005, is 0.001" in err
    code, _, err = seq2exp(*command(folder, out, "table5"))
    assert code == 2 and "cell_type was K562, is GM12878" in err


def abc_ratio(store: Path) -> float:
    """Share of a test window that the ABC row selects: the 102 of 512 bases of highest score, and the centre of 32."""
    windows, shares = GeneWindows(store, 512, "test"), []
    for i in range(len(windows)):
        first, second, contact = windows[i]["signals"].double().numpy().T
        mean = [np.array([track[max(0, j - 10) : j + 11].mean() for j in range(512)]) for track in (first, second)]
        score = np.sqrt(mean[0] * mean[1]) * (10**contact - 1)
        shares.append(len({*np.argsort(-score, kind="stable")[:102], *range(240, 272)}) / 512)
    return float(np.mean(shares))


def test_the_mask_of_the_macs3_row_is_the_peaks(folder, tmp_path):
    run = next(run for run in run_list(folder / "peaks.zarr", "K562", TINY) if run.row == "MACS3")
    windows = GeneWindows(folder / "peaks.zarr", 512, "test", peaks=True)
    peaks = np.stack([windows[i]["peaks"].numpy() for i in range(len(windows))])
    peaks[:, 240:272] = True
    assert perform(run, tmp_path, "cpu")["mask_ratio"] == pytest.approx(peaks.mean())


def test_a_folder_in_use_is_refused(seq2exp, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is started
    out = tmp_path / "out"
    with alone(out):
        code, _, err = seq2exp(*command(folder, out, "table2", "--seeds", "2"))
    assert code == 2 and "another process is carrying out its runs" in err and err.strip().count("\n") == 0
    assert not (out / "runs.json").exists()


def test_how_it_is_computed_may_change(folder, tmp_path):
    runs = run_list(folder / "peaks.zarr", "K562", TINY)
    keep_plan(tmp_path, runs)
    other = run_list(folder / "peaks.zarr", "K562", TINY | {"data": {"batch_size": 2, "accumulate": 2}})
    keep_plan(tmp_path, other)
    assert Job.found(tmp_path).runs[0].training["data"]["accumulate"] == 2
    with pytest.raises(UserError, match=r"data\.batch_size was 2, is 1"):
        keep_plan(tmp_path, run_list(folder / "peaks.zarr", "K562", TINY | {"data": {"batch_size": 1}}))


def test_a_killed_run_goes_on_and_gives_the_same(folder, tmp_path):
    runs = run_list(folder / "peaks.zarr", "K562", TINY | {"steps": 60, "evaluate_every": 60})
    run = next(run for run in runs if run.row == "Seq2Exp-soft")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        keep_plan(out, runs)
    started = [sys.executable, "-m", "seq2exp.reproduce.one", str(killed), run.folder, "cpu"]
    process = subprocess.Popen(started, env=os.environ | {"OMP_NUM_THREADS": "1"})
    last, until = killed / run.folder / "checkpoints" / "last.safetensors", time.monotonic() + 120
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.exists() and not (killed / run.folder / RESULT).exists()
    results = [perform(run, out, "cpu") for out in (whole, killed)]
    assert results[0].pop("seconds") != results[1].pop("seconds")
    assert results[0] == results[1] and results[0]["best_step"] == 60

    again = next(other for other in runs if other.row == "Seq2Exp-retrain")
    retrained = perform(again, whole, "cpu")
    assert retrained["mask_ratio"] == pytest.approx(102 / 512) and retrained["mse"] > 0


def test_a_run_waits_for_the_one_that_it_needs(folder, tmp_path):
    job = Job.begin(tmp_path, run_list(folder / "peaks.zarr", "K562", TINY))
    asked = job.chosen(("Seq2Exp-retrain", "MACS3"), (2,))
    assert [run.folder for run in asked] == ["runs/seq2exp-soft_2", "runs/seq2exp-retrain_2", "runs/macs3_2"]
    retrain = asked[1]
    assert not job.ready(retrain) and job.obstacle(retrain) is None
    job.failed["runs/seq2exp-soft_2"] = "diverged"
    assert job.obstacle(retrain) == "it needs runs/seq2exp-soft_2, which failed"
    pretend(tmp_path, "runs/seq2exp-soft_2")
    assert Job.found(tmp_path).ready(retrain)


def test_what_is_lacking_is_recorded_and_the_rest_goes_on(seq2exp, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "enformer_pytorch", None)
    out = tmp_path / "out"
    code, printed, _ = seq2exp(*command(folder, out, "table4", "--dry-run", store="bare.zarr"))
    assert code == 0 and not out.exists()
    assert "cannot run: the Enformer baseline needs the package enformer-pytorch" in printed
    assert "pip install 'seq2exp[enformer]'" in printed
    assert "cannot run: MACS3 needs peaks" in printed and "pip install macs3" in printed
    rows = {line[:20].strip(): line for line in printed.splitlines()}
    assert "2 22 222 2222 22222" in rows["Caduceus w/ signals"] and "cannot" not in rows["Caduceus w/ signals"]
    pretend(out, "runs/mamba_2")
    asked = ("--rows", "Enformer,MACS3,Mamba", "--seeds", "2")
    code, printed, err = seq2exp(*command(folder, out, "table4", *asked, store="bare.zarr"))
    assert code == 1 and "[2/2] MACS3, K562, seed 2: FAILED, MACS3 needs peaks" in err
    assert "| Mamba    | 1 of 1 | 0.2000 | 0.2241 ± 0.0027 |" in printed and "| Enformer | 0 of 1 | -  " in printed
    assert "- Enformer, K562, seed 2: the Enformer baseline needs" in printed
    assert (out / "runs/macs3_2/failed.txt").read_text().startswith("MACS3 needs peaks")


def test_every_model_of_the_tables_can_be_made(folder, monkeypatch):
    pytest.importorskip("enformer_pytorch")
    job = Job(folder, run_list(folder / "peaks.zarr", "K562", TINY))
    for run in job.runs:
        assert job.trial(run).lack is None and (job.trial(run).parameters > 1_000 or run.row == "Ridge"), run.row


def test_a_store_that_is_not_the_papers(seq2exp, folder, tmp_path):
    store = open_store(folder / "peaks.zarr")
    notes = unlike_the_paper(store)
    assert notes[0] == "the genes of valid are on chr4, in the paper on chr21, chr3" and len(notes) == 4
    with pytest.raises(UserError, match="contacts cover windows"):
        check_store(store, "K562", [200_000])
    store.info["target"] = "GM12878_CAGE_128*3_sum"
    with pytest.raises(UserError, match=r"GM12878_CAGE_128\*3_sum, is of GM12878, not of K562"):
        check_store(store, "K562", [512])
    tracks = {"H3K27ac": folder / "simulated" / "H3K27ac.bw"}
    simulated = folder / "simulated"
    build_store(
        fasta=simulated / "genome.fa", track=tracks, genes=simulated / "genes.csv", target="target", split="split",
        out=tmp_path / "one.zarr",
    )  # fmt: skip
    shutil.copy(folder / "tiny.yaml", tmp_path)
    code, _, err = seq2exp(*command(tmp_path, tmp_path / "out", store="one.zarr"))
    assert code == 2 and "of the signals H3K27ac, DNase, contacts, in this order; it holds H3K27ac" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("table3",), "table 'table3' is unknown: one of table1, table2, table4, table5"),
        (("table4", "--cell-type", "GM12878"), "table4 is of K562, not of GM12878"),
        (("table1", "--rows", "Seq2Exp"), "row 'Seq2Exp' is unknown: one of Enformer, "),
        (("table1", "--seeds", "3"), "seed '3' is none of the paper's: 2, 22, 222, 2222, 22222"),
        (("table1", "--devices", "17"), "--devices: there is no GPU '17'"),
        (("table1", "--settings", "nowhere.yaml"), "nowhere.yaml: No such file"),
    ],
)
def test_mistakes(seq2exp, folder, tmp_path, more, said):
    code, _, err = seq2exp(*command(folder, tmp_path / "out", *more))
    assert code == 2 and said in err and not (tmp_path / "out").exists()


def test_a_table_of_several_cell_types_needs_one(seq2exp, folder, tmp_path):
    code, _, err = seq2exp("reproduce", "table1", "--store", folder / "peaks.zarr", "--out", tmp_path / "out")
    assert code == 2 and "give --cell-type K562 or --cell-type GM12878" in err


def test_a_run_on_each_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert [slot.variables for slot in slots("0,2")] == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    assert [slot.device for slot in slots(None)] == ["cuda"] * 3
    assert slots("cpu") == [("cpu", {})]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert slots(None) == [("cpu", {})]
