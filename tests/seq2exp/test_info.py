"""`seq2exp info`: what it collects and prints."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from seq2exp import info
from seq2exp.kernels import _extension


def test_collect_names_versions_backends_and_devices():
    facts = info.collect()
    assert facts["versions"]["torch"] == torch.__version__ and facts["versions"]["seq2exp"]
    assert set(facts["backends"]) == {"reference", "cpu", "triton", "cuda"} and facts["backends"]["reference"] is None
    assert facts["threads"] == torch.get_num_threads()
    if _extension.load() is None:
        assert facts["instruction_set"] in facts["instruction_sets"]
        assert (facts["extension"]["nvcc"] is None) == (facts["extension"]["cuda_architectures"] == [])


def test_missing_extension_is_said_with_its_reason(monkeypatch):
    monkeypatch.setattr(_extension, "_REASON", "no compiler was there")
    facts = info.collect()
    assert facts["backends"]["cpu"] == "no compiler was there" and facts["extension"] is None
    column = " ".join(str(cell) for column in info.render(facts).columns for cell in column.cells)
    assert "unavailable: no compiler was there" in column and "nothing: the kernels run on plain PyTorch" in column


def test_module_prints_the_table():
    environment = os.environ | {"COLUMNS": "200"}
    run = subprocess.run([sys.executable, "-m", "seq2exp.info"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert f"torch              {torch.__version__}" in run.stdout and "backend reference  usable" in run.stdout
