"""MIGRATION.md: its code runs, its commands run, and the names in it are there."""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
from published_modules import Backbone

from seq2exp import Caduceus
from seq2exp.compat import uninstall
from seq2exp.compat.official import CaduceusConfig, GeneBiMambaMIRNP

PAGE = (Path(__file__).resolve().parents[2] / "MIGRATION.md").read_text()
SETTINGS = dict(d_model=16, gen_n_layer=1, enc_n_layer=1, center_len=16, rna_feat_dim=2, ssm_cfg={"d_state": 4})
LENGTH = 64

USE = "from mamba_ssm import Mamba"


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the files are that the page speaks of."""
    torch.manual_seed(0)
    weights = GeneBiMambaMIRNP(CaduceusConfig(**SETTINGS)).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    run = {"model": {"_name_": "BiMambaMIRNP", "config": SETTINGS}, "dataset": {"seq_range": LENGTH}}
    checkpoint = {"state_dict": {f"model.{k}": v for k, v in weights.items()}, "hyper_parameters": run}
    torch.save(checkpoint, tmp_path / "soft.ckpt")
    Caduceus(16, SETTINGS["d_model"], 1, d_state=4).save_pretrained(tmp_path / "caduceus")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(folder):
    """In turn, in one namespace; the last installs modules."""
    *here, installing = blocks("python")
    assert len(here) == 4 and "install()" in installing
    names = {
        "seqs": torch.eye(5, 4)[torch.randint(0, 5, (2, LENGTH))], "signals": torch.rand(2, LENGTH, 3),
        "mask_regions": torch.zeros(2, LENGTH, 2, dtype=torch.bool), "rna_feat": torch.rand(2, 2),
        "target": torch.rand(2, 1), "settings": SETTINGS, "built": Backbone(), "embedded": torch.randn(1, 20, 16),
    }  # fmt: skip
    for block in here:
        exec(block, names)
    assert names["out"].expression.shape == (2,) and names["logits"].shape == (2, 1)
    assert torch.isfinite(names["loss"]) and names["replaced"] == 2 and names["hidden"].shape == (1, 20, 16)
    try:
        exec(installing + USE, names)
        assert names["Mamba"].__module__.startswith("seq2exp.compat.mamba_ssm")
    finally:
        uninstall()


def test_commands(folder, seq2exp):
    for line in "".join(blocks("")).splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "seq2exp"
        code, _, error = seq2exp(*arguments)
        assert code == 0, error
    assert (folder / "soft" / "model.safetensors").is_file() and (folder / "back" / "model.safetensors").is_file()


def test_lines_that_change(folder):
    """Those after the change: imports, commands."""
    added = [line[1:].strip() for block in blocks("diff") for line in block.splitlines() if line.startswith("+")]
    names: dict = {}
    for line in added:
        if line.startswith("python "):
            assert line == "python -m seq2exp.compat train.py"  # which test_compat_mamba_run.py runs
        elif "seq2exp.compat.official." not in line:  # those in quotes: the next test
            exec(line, names)
    assert names["model"].config.length == LENGTH and callable(names["entropy"])


def test_names_on_the_page():
    dotted = set(re.findall(r"\bseq2exp(?:\.\w+)+", PAGE))
    assert "seq2exp.compat.official.GeneBiMambaMIRNP" in dotted
    for name in dotted:
        pkgutil.resolve_name(name)
    for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (Path(__file__).parents[2] / path).is_file()
