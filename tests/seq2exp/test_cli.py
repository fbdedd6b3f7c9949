"""The program: what it writes, and that a mistake ends with one sentence and exit code 2."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

COMMANDS = ("demo", "data", "train", "evaluate", "predict", "discover", "profile", "info")


def test_help_is_quick_and_lists_the_commands():
    """Quick because nothing heavy is imported before a command runs."""
    probe = (
        "import sys, seq2exp.cli\n"
        "try: seq2exp.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('pandas', 'zarr', 'matplotlib', 'tensorboard') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(seq2exp, command):
    code, out, err = seq2exp(command, "--help")
    assert code == 0 and "Usage" in out and not err


def test_train_evaluate_predict_discover(seq2exp, settings, write_yaml, tmp_path, simulated):
    run = tmp_path / "run"
    code, out, _ = seq2exp("train", write_yaml(settings | {"steps": 2}), "--out", run)
    assert code == 0 and "best validation MSE" in out

    code, out, _ = seq2exp("evaluate", run)
    assert code == 0 and "2 genes without a target were left out" in out
    result = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert set(result) == {"train", "valid", "test"}
    assert result["test"]["genes"] == 10 and result["test"]["without_target"] == 2
    table = pd.read_csv(run / "evaluation" / "evaluation.csv").set_index("split")
    assert table.loc["valid", "mse"] == pytest.approx(result["valid"]["mse"])

    code, _, _ = seq2exp("predict", run, "--out", tmp_path / "p.csv", "--batch-size", 5)
    predicted = pd.read_csv(tmp_path / "p.csv")
    assert code == 0 and len(predicted) == 60
    columns = ["gene_id", "chrom", "tss", "strand", "split", "target", "prediction", "selected_fraction"]
    assert list(predicted) == columns
    assert predicted["prediction"].notna().all() and predicted["target"].isna().sum() == 2
    test = predicted[(predicted["split"] == "test") & predicted["target"].notna()]
    assert result["test"]["mse"] == pytest.approx(((test["prediction"] - test["target"]) ** 2).mean(), rel=1e-4)
    genes = pd.read_csv(simulated / "genes.csv")
    assert predicted["gene_id"].tolist() == genes["gene_id"].tolist()

    gene = predicted[predicted["split"] == "test"]["gene_id"].iloc[0]
    arguments = ["--split", "test", "--gene", gene, "--truth", simulated / "elements.bed", "--min-length", 1]
    code, out, _ = seq2exp("discover", run, *arguments)
    folder = run / "discovery"
    assert code == 0 and sorted(p.name for p in folder.iterdir()) == [
        f"{gene}.png", "elements.bed", "elements.csv", "mask.bw"
    ]  # fmt: skip
    _check_discovery(run, folder, set(predicted[predicted["split"] == "test"]["gene_id"]))


def _check_discovery(run: Path, folder: Path, genes: set[str]) -> None:
    """Regions lie outside the centre and cover the highest tenth of the other bases; the bigWig holds the mask."""
    import pyBigWig

    from seq2exp.data_tools import GeneWindows
    from seq2exp.inference.windows import load_model, run_windows

    model, _, settings = load_model(run)
    windows = GeneWindows(settings["data"]["store"], 128, "test", require_target=False)
    with (folder / "elements.bed").open() as file:
        header, *lines = csv.reader(file, delimiter="\t")
    assert header == ["#chrom", "start", "end", "name", "score", "strand"]
    assert all(len(line) == 6 and 0 <= int(line[4]) <= 1_000 and line[5] == "." for line in lines)
    with (folder / "elements.csv").open() as file:
        regions = list(csv.DictReader(file))
    assert [[region[name] for name in ("chrom", "start", "end", "name")] for region in regions] == [
        line[:4] for line in lines
    ]
    scores = {
        region["name"]: (int(line[4]), float(region["mean_mask"])) for region, line in zip(regions, lines, strict=True)
    }
    assert all(abs(score - 1_000 * mean) <= 0.6 for score, mean in scores.values())
    assert {region["gene_id"] for region in regions} <= genes
    positions = [(region["chrom"], int(region["start"])) for region in regions]
    assert positions == sorted(positions)
    with pyBigWig.open(str(folder / "mask.bw")) as bigwig:
        for batch, out in run_windows(model, windows):
            start, mask = int(batch["start"][0]), out.soft_mask[0].numpy()
            written = np.array(bigwig.values(batch["chrom"][0], start, start + 128))
            np.testing.assert_allclose(written, mask, atol=6e-5)
            mine = [region for region in regions if region["gene_id"] == batch["gene_id"][0]]
            assert mine
            outside = np.delete(mask, range(56, 72))
            cut = np.sort(outside)[-11]
            for region in mine:
                a, b = int(region["start"]) - start, int(region["end"]) - start
                assert b <= 56 or a >= 72
                assert mask[a] >= cut and mask[b - 1] >= cut
                assert float(region["mean_mask"]) == pytest.approx(mask[a:b].mean(), abs=1e-3)


def test_saved_model_needs_a_store(seq2exp, trained, tiny_store, tmp_path):
    shutil.copytree(trained / "best", tmp_path / "model")
    code, _, err = seq2exp("predict", tmp_path / "model")
    assert (code, err.count("\n")) == (2, 1) and "give --store" in err
    code, _, _ = seq2exp("predict", tmp_path / "model", "--store", tiny_store)
    assert code == 0 and (tmp_path / "model" / "predictions.csv").exists()


def test_a_model_without_a_mask_discovers_nothing(seq2exp, settings, write_yaml, tmp_path):
    model = {key: settings["model"][key] for key in ("length", "center", "d_model")} | {"name": "caduceus"}
    run = tmp_path / "run"
    assert seq2exp("train", write_yaml(settings | {"steps": 1, "model": model}), "--out", run)[0] == 0
    assert seq2exp("evaluate", run)[0] == 0
    code, _, err = seq2exp("discover", run)
    assert code == 2 and "no mask" in err and not (run / "discovery" / "elements.bed").exists()


MISTAKES = {  # {run} a finished run, {store} its store, {in} a folder of bad input, {out} a path that must not appear
    "train": "give a configuration and --out",
    "train {in}/train.yaml": "give a configuration and --out",
    "train {in}/absent.yaml --out {out}": "absent.yaml: no such file",
    "train {in}/train.yaml --out {out} --device tpu": "device 'tpu' is unknown",
    "train {in}/train.yaml --out {out}": "nowhere.zarr: no such store",
    "train --resume {in}": "no run to resume",
    "train --resume {in} --out {out}": "--resume alone",
    "evaluate": "Missing argument",
    "evaluate {in}/absent": "neither a run folder nor a saved model",
    "evaluate {in}": "config.json does not exist",
    "evaluate {in}/broken --store {store}": "does not fit",
    "evaluate {in}/other-shape --store {store}": "does not fit",
    "evaluate {run} --store {in}/absent.zarr": "absent.zarr: no such store",
    "evaluate {run} --split tset": "no split 'tset'; the splits are test, train, valid",
    "evaluate {run} --precision fp8": "precision 'fp8' is unknown",
    "evaluate {run} --batch-size 0": "--batch-size",
    "evaluate {run} --colour red": "No such option: --colour",
    "predict {in}/other-signals --store {store}": "signals DNase, H3K27ac, contacts, this store has H3K27ac",
    "discover {run} --threshold 2": "threshold must be above 0",
    "discover {run} --top-fraction 0": "top fraction must be above 0",
    "discover {run} --gene TP53": "no gene 'TP53'",
    "discover {run} --truth {in}/absent.bed": "absent.bed: cannot be read",
    "demo --out {in}": "holds report.json of an earlier demonstration",
    "bake": "No such command 'bake'",
}


@pytest.fixture
def bad_input(trained, settings, tmp_path) -> Path:
    """A folder of things that cannot be used."""
    folder = tmp_path / "in"
    for name in ("broken", "other-shape", "other-signals"):
        shutil.copytree(trained / "best", folder / name)
    (folder / "broken" / "model.safetensors").write_bytes(b"")
    config = json.loads((trained / "best" / "config.json").read_text())
    (folder / "other-shape" / "config.json").write_text(json.dumps(config | {"d_model": 16}))
    inputs = {"signals": ["DNase", "H3K27ac", "contacts"], "gene_features": []}
    (folder / "other-signals" / "inputs.json").write_text(json.dumps(inputs))
    settings["data"]["store"] = str(folder / "nowhere.zarr")
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    (folder / "report.json").touch()
    return folder


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_end_with_one_sentence(seq2exp, trained, tiny_store, bad_input, tmp_path, line):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = sorted(tmp_path.rglob("*"))
    places = {"{run}": run, "{store}": tiny_store, "{in}": bad_input, "{out}": tmp_path / "out"}
    arguments = line
    for name, path in places.items():
        arguments = arguments.replace(name, str(path))
    code, out, err = seq2exp(*arguments.split())
    assert code == 2 and not out
    assert err.startswith("seq2exp: ") and err.count("\n") == 1 and MISTAKES[line] in err
    assert sorted(tmp_path.rglob("*")) == before


def test_no_write_permission(seq2exp, trained, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    code, _, err = seq2exp("predict", trained, "--out", blocked / "p.csv")
    assert code == 2 and str(blocked) in err and err.count("\n") == 1


def test_module_entry_point_never_shows_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seq2exp.cli", "evaluate", str(tmp_path / "absent")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
