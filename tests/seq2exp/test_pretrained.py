"""Saving and loading, and what importing the package does."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from seq2exp import Seq2Exp, Seq2ExpConfig, UserError
from seq2exp.baselines import GeneExpBiMamba, GeneExpBiMambaConfig

SMALL = dict(length=32, center=4, gene_features=2, d_model=8, d_state=2)
PRESETS = ("soft", "hard", "top_fraction", "discovery")


def made(preset: str) -> Seq2Exp | GeneExpBiMamba:
    torch.manual_seed(0)
    if preset == "baseline":
        return GeneExpBiMamba(GeneExpBiMambaConfig(**SMALL, layers=2, interact="signal")).eval()
    return Seq2Exp(getattr(Seq2ExpConfig, preset)(**SMALL, generator_layers=1, predictor_layers=1)).eval()


@pytest.mark.parametrize("preset", [*PRESETS, "baseline"])
def test_round_trip(preset, tmp_path):
    model = made(preset)
    model.save_pretrained(tmp_path / "deep" / "folder")
    torch.manual_seed(99)
    loaded = type(model).from_pretrained(tmp_path / "deep" / "folder")
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    if preset == "hard":
        assert loaded.generator is loaded.predictor
    inputs = torch.randint(0, 5, (2, 32), dtype=torch.uint8), torch.rand(2, 32, 3), torch.rand(2, 2)
    assert torch.equal(loaded(*inputs).expression, model(*inputs).expression)


def test_files_are_json_and_safetensors(tmp_path):
    made("hard").save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    header = (tmp_path / "model.safetensors").read_bytes()
    assert set(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])) > {"mask_head.weight"}
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "Seq2Exp"


def edit(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage,words",
    [
        (lambda folder: (folder / "config.json").unlink(), r"config.json: no such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model.safetensors: no such file"),
        (lambda folder: (folder / "config.json").write_text('{"length": 32,'), r"config.json: not a JSON"),
        (lambda folder: (folder / "config.json").write_text("[1, 2]"), r"config.json: not a JSON object"),
        (lambda folder: (folder / "config.json").write_bytes(b"\x80\x81\xff"), r"config.json: not a JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), r"model.safetensors: "),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), r"model.safetensors: "),
        (truncate, r"model.safetensors: "),
        (edit(model="GeneExpBiMamba"), r"holds a GeneExpBiMamba; load it with GeneExpBiMamba.from_pretrained"),
        (edit(d_model=16), r"model.safetensors: does not fit .*config.json"),
        (edit(predictor_layers=2), r"model.safetensors: does not fit .*config.json"),
        (edit(prior_mean=2), r"config.json: prior_mean"),
        (edit(surprise=1), r"config.json: surprise"),
    ],
)
def test_damaged(damage, words, tmp_path):
    made("soft").save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        Seq2Exp.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_absent_folder(tmp_path):
    with pytest.raises(UserError, match="no such file; give a folder written by save_pretrained"):
        Seq2Exp.from_pretrained(tmp_path / "nowhere")


def test_import_is_light_and_compiles_nothing():
    """Processor time, so that a busy machine changes nothing."""
    script = """
        import json, subprocess, sys, time
        import torch
        def refuse(*args, **kwargs):
            raise AssertionError(f"importing started {args}")
        subprocess.Popen.__init__ = refuse
        start = time.process_time()
        import seq2exp, seq2exp.kernels, seq2exp.baselines
        seconds = time.process_time() - start
        heavy = ("kernels", "data_tools", "torch.utils.cpp_extension", "setuptools", "triton", "pandas", "zarr")
        print(json.dumps([seconds, [name for name in heavy if name in sys.modules]]))
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    seconds, found = json.loads(ran.stdout)
    assert seconds < 2
    assert found == []
