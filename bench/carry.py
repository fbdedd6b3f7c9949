"""`make carry`: what a GPU machine without network needs beyond the tree, into carry/, which git ignores.

carry/commit        what the tree is, for a copy without .git
carry/_C.so         the extension as built here, where the build fails there
carry/golden/       a published model's weights, outputs and gradients, under our names
carry/peers/        mamba-ssm and causal-conv1d, by bench/peers.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from gpu_facts import commit
from safetensors import safe_open

from seq2exp import Caduceus, load_official
from seq2exp.official import official_name

ROOT = Path(__file__).resolve().parents[1]
CARRY, GOLDEN, EXTENSION = ROOT / "carry", ROOT.parent / "shared" / "golden", ROOT / "seq2exp" / "_C.so"
LIMIT_MB = 60


def main() -> int:
    CARRY.mkdir(exist_ok=True)
    (CARRY / "commit").write_text(f"{commit()}\n")
    if EXTENSION.exists():
        shutil.copy2(EXTENSION, CARRY / "_C.so")
    else:
        print("no extension: seq2exp/_C.so is not built here")
    if GOLDEN.is_dir():
        (CARRY / "golden").mkdir(exist_ok=True)
        torch.save(caduceus(GOLDEN / "caduceus_ph.safetensors"), CARRY / "golden" / "caduceus.pt")
    else:
        print("no golden files: ../shared/golden is not here")
    packed = subprocess.run([sys.executable, ROOT / "bench" / "peers.py", "pack"]).returncode
    if packed:
        print("no peers: run python bench/peers.py fetch first")
    size = sum(path.stat().st_size for path in CARRY.rglob("*") if path.is_file()) / 1e6
    print(f"{CARRY.relative_to(ROOT)}: {size:.1f} MB of at most {LIMIT_MB}")
    return 0 if size <= LIMIT_MB else 1


def caduceus(path: Path) -> dict:
    """A golden file of the masked language model as tensors under our names, so that torch alone can use it."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    weights = {key[2:]: value for key, value in tensors.items() if key.startswith("w.")}
    model = load_official(weights, config | {"_class": "CaduceusForMaskedLM"})
    vocabulary, d_model = model.embedding.weight.shape
    arguments = {"vocabulary": vocabulary, "d_model": d_model, "n_layers": config["n_layer"]}
    arguments |= {name: config["ssm_cfg"][name] for name in ("d_state", "d_conv", "expand")}
    Caduceus(**arguments).load_state_dict(model.state_dict())  # as the test will
    return {
        "model": arguments,
        "weights": model.state_dict(),
        "tokens": tensors["in.input_ids"],
        "hidden": tensors["out.hidden"],
        "logits": tensors["out.logits"],
        "gradients": {official_name(key[2:]): value for key, value in tensors.items() if key.startswith("g.")},
    }


if __name__ == "__main__":
    sys.exit(main())
