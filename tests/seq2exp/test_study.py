"""The study: its run list, that it goes on where it was stopped, and what it says about its numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seq2exp.errors import UserError
from seq2exp.runlist import keep_plan, progress_bar
from seq2exp.runlist.child import RESULT
from seq2exp.study import PRESETS, Study
from seq2exp.study.conditions import (
    BARE,
    CONDITIONS,
    DISCOVERY,
    DISCOVERY_GROWN,
    DISCOVERY_LONG,
    LONGEST,
    MODELS,
    NO_MASK,
    NO_MASK_DEEP,
    NO_MASK_LONG,
    USUAL,
    VARIANTS,
    make_run,
)
from seq2exp.study.one import perform
from seq2exp.study.plan import Run
from seq2exp.study.report import table_of, write_report
from seq2exp.study.words import conclusions, on_other_genes, targets
from seq2exp.training import TrainConfig

MODEL = {"d_model": 8, "d_state": 2, "generator_layers": 1, "predictor_layers": 1}
SMALL: dict[str, Any] = {"genes": 60, "model": MODEL, "steps": 4, "evaluate_every": 2, "checkpoint_every": 2}


def _runs() -> list[Run]:
    """One that works, one without a mask, and one whose elements do not fit into its windows."""
    small = [make_run(variant, USUAL, 101, **SMALL) for variant in (DISCOVERY, NO_MASK)]
    impossible = replace(small[0], condition="impossible", simulation={"genes": 60, "length": 128, "center": 16})
    return [*small, impossible]


def test_every_run_of_the_presets_can_be_trained():
    for name, preset in PRESETS.items():
        runs = preset()
        assert len({run.folder for run in runs}) == len(runs), name
        for run in runs:
            training = run.training | {"data": run.training["data"] | {"store": "s"}}
            if training["model"].get("name") == "retrain":
                training["model"] = training["model"] | {"frozen": {"length": 512, "center": 32}}
            config = TrainConfig.model_validate(training)
            assert config.model["length"] == run.simulation["length"]
            assert run.source is None or run.source in {other.folder for other in runs}
    variants = {run.variant for run in PRESETS["committed"]()}
    assert variants == {*VARIANTS, *BARE} - {NO_MASK, DISCOVERY_GROWN}
    assert {run.variant for run in PRESETS["long"]()} == {*VARIANTS, *MODELS} - {NO_MASK}
    assert {run.condition for run in PRESETS["gpu"]()} == set(CONDITIONS)
    assert {run.variant for run in PRESETS["gpu"]() if run.condition == LONGEST} >= {DISCOVERY, NO_MASK_DEEP}


def test_a_variant_differs_from_discovery_in_what_it_says_only():
    base = make_run(DISCOVERY, USUAL, 101).training
    for name, variant in VARIANTS.items():
        training = make_run(name, USUAL, 101).training
        for section, fields in training.items():
            changes = variant.changes.get(section, {})
            expected = base[section] | changes if isinstance(fields, dict) else changes or base[section]
            assert fields == expected, (name, section)
    assert make_run(NO_MASK, USUAL, 101).training["model"] == {
        "name": "caduceus_signals", "layers": 2, "d_model": 32, "d_state": 4, "length": 512, "center": 32
    }  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Carried out: interrupted once after its first run."""
    study = Study.begin(tmp_path_factory.mktemp("study"), _runs())

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress_bar(quiet=True) as progress:
        study.carry_out(1, "cpu", interrupt, progress)
    assert set(study.results) == {study.runs[0].folder}
    first = study.out / study.runs[0].folder / RESULT
    written = first.stat().st_mtime_ns

    again = Study.begin(study.out, _runs())
    assert [run.variant for run in again.to_do] == [NO_MASK, DISCOVERY]
    said = []
    with progress_bar(quiet=True) as progress:
        again.carry_out(2, "cpu", lambda: said.append(len(again.results) + len(again.failed)), progress)
    assert said[-1] == 3 and first.stat().st_mtime_ns == written
    return again


def test_what_was_measured(study):
    table = table_of(study).set_index("variant")
    assert list(table.index) == [DISCOVERY, NO_MASK] and list(study.failed) == [study.runs[2].folder]
    assert "do not fit" in study.failed[study.runs[2].folder]
    ours, bare = table.loc[DISCOVERY], table.loc[NO_MASK]
    assert 0 < ours["mask_bases"] <= 1 and ours["ratio"] == pytest.approx(ours["mask_bases"] / ours["best_rival"])
    assert bare[["mask_bases", "learned", "selected"]].isna().all() and np.isfinite(bare["r2"])
    assert ours["ridge_r2"] == bare["ridge_r2"] and ours["H3K27ac_bases"] == bare["H3K27ac_bases"]
    assert ours["best_step"] == 4 and ours["seconds"] > 0
    genes = json.loads((study.out / study.runs[0].dataset / "simulated" / "params.json").read_text())["genes"]
    assert genes == 60 and not list(study.out.glob("data/*partial*"))


def test_report_of_the_study(study, seq2exp, tmp_path):
    code, out, err = seq2exp("study", study.out, "--report", "--results", tmp_path)
    assert code == 1 and "2 of 3 runs done" in out and "failed: runs/discovery_impossible_101" in err
    text = (tmp_path / "simulated.md").read_text()
    for part in (
        "2 of 3 runs done, 1 failed",
        "| discovery | 0 of 1 |",
        "| no mask | ",
        "| ridge | ",
        "simulated_curves.png",
    ):
        assert part in text, part
    assert len(pd.read_csv(tmp_path / "simulated.csv")) == 2
    for name in ("variants", "conditions", "profile", "curves"):
        assert (tmp_path / f"simulated_{name}.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "simulated_notes.md").write_text("## By hand\n\nNoted.\n")
    write_report(study, tmp_path)
    assert "## By hand\n\nNoted.\n" in (tmp_path / "simulated.md").read_text()


def test_a_killed_run_goes_on_and_gives_the_same(study, tmp_path):
    run = make_run(DISCOVERY, USUAL, 101, **SMALL | {"steps": 40, "evaluate_every": 40})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        keep_plan(out, [run])
        shutil.copytree(study.out / run.dataset, out / run.dataset)
    command = [sys.executable, "-m", "seq2exp.study.one", str(killed), run.folder, "cpu"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    last, until = killed / run.folder / "checkpoints" / "last.safetensors", time.monotonic() + 120
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.exists() and not (killed / run.folder / RESULT).exists()
    results = [perform(run, out, "cpu") for out in (whole, killed)]
    for timed in ("seconds", "seconds_per_step"):
        assert results[0].pop(timed) != results[1].pop(timed)
    assert results[0] == results[1]


def test_a_changed_run_list_is_refused_with_the_difference(tmp_path):
    runs = _runs()
    keep_plan(tmp_path, runs)
    keep_plan(tmp_path, runs)
    more = [*runs, make_run("top fraction", USUAL, 101, **SMALL)]
    for changed, said in (
        (more, "runs/top-fraction_512-bases_101 is new"),
        (runs[1:], "runs/discovery_512-bases_101 is gone"),
        ([make_run(DISCOVERY, USUAL, 101, **SMALL | {"steps": 5}), *runs[1:]], "training.steps was 4, is 5"),
        (
            [replace(runs[0], simulation=runs[0].simulation | {"genes": 70}), *runs[1:]],
            "simulation.genes was 60, is 70",
        ),
    ):
        with pytest.raises(UserError, match=r"runs.json: the run list was changed") as refused:
            keep_plan(tmp_path, changed)
        assert said in str(refused.value)


def test_mistakes(seq2exp, tmp_path, study):
    code, _, err = seq2exp("study", tmp_path / "new", "--preset", "huge")
    assert code == 2 and "preset 'huge' is unknown: one of quick, committed, long, gpu" in err
    code, _, err = seq2exp("study", tmp_path / "new", "--report")
    assert code == 2 and "no runs have begun" in err and not (tmp_path / "new").exists()
    code, _, err = seq2exp("study", study.out, "--preset", "quick")
    assert code == 2 and "the run list was changed" in err
    out = tmp_path / "blind"
    run = study.runs[0]
    keep_plan(out, [run])
    shutil.copytree(study.out / run.folder, out / run.folder)
    shutil.copytree(study.out / run.dataset, out / run.dataset)
    (out / run.dataset / "simulated" / "elements.bed").unlink()
    with pytest.raises(UserError, match=r"elements.bed: cannot be read"):
        perform(run, out, "cpu")


def _table(**ratios: list[float]) -> pd.DataFrame:
    """Runs of variants with these multiples of a best rival of 0.3."""
    rows = [
        {
            "variant": variant.replace("_", " "), "seed": seed, "ratio": ratio, "mask_bases": 0.3 * ratio,
            "mask_elements": 0.95, "selected": 0.1, "r2": 0.95, "steps": 1_200, "learned": float(ratio >= 1.3),
        }
        for variant, values in ratios.items()
        for seed, ratio in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_words_follow_from_the_numbers():
    table = _table(discovery=[1.5, 1.4, 1.6], worse=[1.5, 1.2, 1.6], better=[1.8, 1.7, 1.9], same=[1.4, 1.5, 1.6])
    lines = {line.split("**")[1]: line for line in conclusions(table).splitlines()}
    assert "learns less reliably (learned on 2 of 3, discovery 3 of 3" in lines["worse"]
    assert "finds more, on every seed" in lines["better"] and "+0.090 over bases" in lines["better"]
    assert "no difference" in lines["same"]


def test_targets_are_counted_on_every_seed():
    table = _table(**{DISCOVERY: [1.5, 1.2, 1.6], NO_MASK_DEEP: [1.0] * 3, DISCOVERY_LONG: [1.5], NO_MASK_LONG: [1.0]})
    table.loc[table["variant"] == NO_MASK_DEEP, "r2"] = [0.96, 0.98, 0.90]
    rows = targets(table).set_index("target")
    assert list(rows["met"]) == ["2 of 3", "3 of 3", "3 of 3", "2 of 3", "1 of 1"]
    assert list(rows.iloc[3][["seed 0", "seed 1", "seed 2"]]) == ["-0.010", "-0.030", "0.050"]
    assert list(rows.iloc[4][["seed 0", "seed 1"]]) == ["0.000", "-"]


def test_words_about_other_genes():
    others = _table(**{DISCOVERY: [1.5, 1.2]}).assign(condition=["few decoys", "8,192 bases"], ridge_r2=0.4)
    text = on_other_genes(others, others[:0])
    assert "up to 8,192 bases) it learns in 1 of 2 runs, not on: 8,192 bases;" in text and "lowest 1.20 (8,192" in text
    assert "With 8,192 bases and the weights of shorter windows" in on_other_genes(others, others[1:])
    assert on_other_genes(others[:0], others[:0]) == ""
