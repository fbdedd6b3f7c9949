"""Small problems through every path of one backend, for compute-sanitizer: `python bench/gpu_sanitize.py BACKEND`."""

from __future__ import annotations

import importlib
import sys

import embed_problems
import torch
from gather_problems import moved, results
from gather_problems import problem as pack_problem
from layer_load import LayerLoad
from mask_load import KINDS, MaskLoad
from mask_load import on_backend as mask_on_backend
from scan_problems import arguments, problem

from seq2exp.kernels import set_backend

PROBLEMS = (
    {"length": 37},
    {"length": 700, "dtype": torch.bfloat16, "transposed": True, "groups": 2},
    {"length": 300, "reverse": True, "state": 17, "gate": False, "skip": False, "bias": False},
    {"batch": 1, "length": 300, "cu_seqlens": [0, 0, 1, 130, 300], "dtype": torch.float16},
    {"batch": 1, "dim": 8, "length": 5_000, "state": 4},
)
LAYERS = (
    (LayerLoad("layer", "both", 2, 700, d_model=32, dtype="bfloat16"), None),
    (LayerLoad("layer", "both", 1, 300, d_model=16), [0, 0, 1, 130, 300]),
)
PACKS = ((8, None), (3, 3_000), (8, 100))  # channels and capacity; the last overflows
EMBEDS = (dict(d=40, kept=0.5, padding=9), dict(d=77, tracks=5), dict(shape=(1, 1_300), d=600, positions=False))


def main(backend: str) -> None:
    module = importlib.import_module(f"seq2exp.kernels.selective_scan.{'native' if backend == 'cpu' else backend}")
    device = "cpu" if backend == "cpu" else "cuda"
    for options in PROBLEMS:
        args = arguments(problem(**options), device=device)
        out, _, states = module.forward(*args)
        module.backward(torch.ones_like(out), *args, states)
        if device == "cuda":
            torch.cuda.synchronize()
    for load, cu_seqlens in LAYERS:
        x = load.inputs(device)
        offsets = None if cu_seqlens is None else torch.tensor(cu_seqlens, device=device)
        with set_backend(backend):
            x.backbone(x.x.requires_grad_(), cu_seqlens=offsets).backward(x.grad)
        if device == "cuda":
            torch.cuda.synchronize()
    for kind in KINDS:
        load = MaskLoad(kind, 2, 700)
        load.call(mask_on_backend(backend), load.inputs(device))()
        if device == "cuda":
            torch.cuda.synchronize()
    gather = importlib.import_module(f"seq2exp.kernels.gather.{'native' if backend == 'cpu' else backend}")
    for channels, capacity in PACKS:
        results(gather, moved(pack_problem(2, 2_100, channels, torch.bfloat16), device=device), capacity)
        if device == "cuda":
            torch.cuda.synchronize()
    embed = importlib.import_module(f"seq2exp.kernels.embed.{'native' if backend == 'cpu' else backend}")
    for options in EMBEDS:
        given = {"shape": (2, 700), "dtype": torch.bfloat16} | options
        embed_problems.results(embed, embed_problems.moved(embed_problems.problem(**given), device=device))
        if device == "cuda":
            torch.cuda.synchronize()
    counts = (
        f"{len(PROBLEMS)} problems, {len(LAYERS)} layers, {len(KINDS)} masks, {len(PACKS)} packs, {len(EMBEDS)} inputs"
    )
    print(f"{counts}, forward and backward")


if __name__ == "__main__":
    main(sys.argv[1])
