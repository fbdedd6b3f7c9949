"""README.md: its code runs, its commands run or are at least understood, and what it names is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
import yaml

from seq2exp.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", FENCED.sub("", PAGE))
SMALL = {"length": 128, "center": 16, "d_model": 8, "generator_layers": 1, "predictor_layers": 1, "d_state": 2}
SHORT = {"schedule": {"warmup_fraction": 0.5}, "precision": "fp32", "steps": 2, "evaluate_every": 2}
RUN = ("data build", "train", "evaluate", "predict", "discover")
CRISPRI = "EPCrisprBenchmark_ensemble_data_GRCh38.tsv.gz"


def blocks(language: str) -> list[str]:
    return [text for name, text in FENCED.findall(PAGE) if name == language]


def commands() -> list[str]:
    """Of all blocks without a language, without comments; lines that go on are joined."""
    lines = "".join(blocks("")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line and not line.startswith("#")]


def after(heading: str) -> list[str]:
    """The rows of the table with that first line."""
    return PAGE.split(heading + "\n")[1].split("\n\n")[0].splitlines()[1:]


@pytest.fixture
def folder(simulated, tmp_path, monkeypatch):
    """The files that the page speaks of, of a simulated genome."""
    (tmp_path / "sim").symlink_to(simulated)
    names = {"hg38.fa": "genome.fa", "a.bw": "H3K27ac.bw", "b.bw": "DNase.bw", "GRCh38-cCREs.bed": "truth.bed"}
    for name, file in names.items():
        (tmp_path / name).write_bytes((simulated / file).read_bytes())
    genes = pd.read_csv(simulated / "genes.csv")
    genes.assign(CAGE=10 ** genes.pop("target").clip(lower=0) - 1).to_csv(tmp_path / "genes.csv", index=False)
    tested = pd.read_csv(simulated / "elements.bed", sep="\t", names=["chrom", "start", "end", "gene", "kind"])
    tested["Regulated"] = tested.pop("kind") == "causal"
    tested.to_csv(tmp_path / CRISPRI, sep="\t", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(folder, tiny_store):
    (folder / "store.zarr").symlink_to(tiny_store)
    training, kernels = blocks("python")
    small = ", ".join(f"{name}={value}" for name, value in SMALL.items())
    training = training.replace("gene_features=0", f"gene_features=0, {small}").replace("200_000", "128")
    names: dict = {}
    torch.manual_seed(0)
    exec(training, names)
    assert names["out"].expression.isfinite().all() and names["out"].mask.shape[1] == 128
    exec(kernels, names)
    assert names["y"].shape == names["u"].shape


def test_from_own_data_to_elements(folder, seq2exp):
    """The commands that build, train and use a model, in turn, in one folder; with small models and few steps."""
    done = set()
    for line in commands():
        if line.startswith("printf"):
            subprocess.run(["bash", "-c", line], check=True)
            make_small(folder / line.split()[-1])
        ours = next((name for name in RUN if line.startswith(f"seq2exp {name}")), None)
        if ours:
            code, _, err = seq2exp(*shlex.split(line.replace("hic.mcool", "sim/contacts.tsv"))[1:])
            assert code == 0, f"{line}: {err}"
            done.add(ours)
    assert done == set(RUN) and (folder / "retrained" / "best" / "model.safetensors").is_file()
    named = re.findall(r"`([\w/.]+)`", "".join(row.split(" | ")[0] for row in after("| file in run/discovery | |")))
    assert len(named) == 9
    for name in named:
        pattern = name.replace("GENE", "SIM*").replace("NAME", "CRISPRi")
        files = list((folder / "run" / "discovery").glob(pattern))
        assert files and all(file.stat().st_size for file in files), name


def make_small(path: Path) -> None:
    fields = yaml.safe_load(path.read_text()) | SHORT
    fields["data"]["batch_size"] = 4
    fields["model"] |= {} if "name" in fields["model"] else SMALL  # retrain has the sizes of its source
    path.write_text(yaml.safe_dump(fields))


@pytest.mark.parametrize("line", [line for line in (*commands(), *INLINE) if re.search(r"\bseq2exp [a-z]", line)])
def test_commands_are_understood(line):
    from seq2exp.cli import app
    from seq2exp.cli.data import app as data

    known = typer.main.get_command(app).commands
    name, *words = shlex.split(line.split("seq2exp ", 1)[1])
    if name == "data" and words:
        known, name, *words = typer.main.get_command(data).commands, *words
    assert name in known
    if words:
        known[name].make_context(name, words)  # raises where an argument is missing or an option unknown


def test_what_is_named_is_there():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = re.findall(r"^make (\w+)", "".join(blocks("")), re.MULTILINE)
    made += [text.split()[1] for text in INLINE if text.startswith("make ")]
    assert made and set(made) <= set(targets)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    paths = [text for text in INLINE if re.fullmatch(r"(bench|kernels|seq2exp|tests)/[\w/.]+", text)]
    assert links and paths and all((ROOT / path).exists() for path in (*links, *paths))
    assert {row.split("`")[1] for row in after("| name | source | reads | |")} == set(MODELS)
