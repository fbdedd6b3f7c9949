"""`seq2exp data`: the commands themselves; what they build and refuse is tested in tests/data_tools."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from seq2exp.cli.data import app
from seq2exp.data_tools import GeneWindows, open_store
from seq2exp.errors import UserError


def run(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_simulate_prints_the_build_command_that_works(tmp_path: Path):
    said = run("simulate", tmp_path / "sim", "--seed", 3, "--genes", 30, "--causal", 1, 1)
    command = next(line for line in said.splitlines() if line.startswith("seq2exp data build")).split()
    printed = run(*command[2:])
    assert "30, 0 without target; train 24 (24 with target); valid 3" in printed
    assert len(GeneWindows(tmp_path / "sim" / "store.zarr", 512, split="test")) == 3
    assert "float16" in run("info", tmp_path / "sim" / "store.zarr")


def test_yaml_and_options_together(tmp_path: Path):
    sim = tmp_path / "sim"
    run("simulate", sim, "--genes", 30)
    (tmp_path / "b.yaml").write_text(
        f"fasta: {sim}/genome.fa\ntrack: {{DNase: {sim}/DNase.bw}}\n"
        f"genes: {sim}/genes.csv\ntarget: none\nsplit: split\n"
    )
    arguments = (tmp_path / "b.yaml", "--target", "target", "--out", tmp_path / "s.zarr", "--contacts", "powerlaw")
    run("build", *arguments)
    assert open_store(tmp_path / "s.zarr").tracks == ["DNase"]


def test_info_says_how_contacts_were_made(tmp_path: Path):
    run("simulate", tmp_path / "sim", "--genes", 30)
    sim = tmp_path / "sim"
    arguments = ["--fasta", sim / "genome.fa", "--genes", sim / "genes.csv", "--target", "target"]
    arguments += ["--contacts", sim / "contacts.tsv", "--contact-recipe", "abc", "--out", tmp_path / "s.zarr"]
    said = " ".join(run("build", *arguments).split())
    assert "normalisation or column: contact; recipe: abc; 16 bases a bin, 200 bins each side" in said
    assert said == " ".join(run("info", tmp_path / "s.zarr").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build"], "out: Field required"),
        (["build", "--track", "a.bw"], r"--track a\.bw: must be NAME=VALUE"),
        (["build", "--track", "a=1", "--track", "a=2"], "a is given twice"),
        (["build", "nowhere.yaml"], r"nowhere\.yaml: no such file"),
        (["info", "nowhere.zarr"], r"nowhere\.zarr: no such store"),
        (["simulate", "x", "--genes", "1"], "chromosomes"),
    ],
)
def test_user_mistakes_are_user_errors(arguments, said):
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
