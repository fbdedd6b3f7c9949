"""Benchmarks of the mask on the CPU: the op against torch.distributions, the top fraction against torch.topk."""

from __future__ import annotations

import functools

import torch
from harness import Contest, benchmark
from mask_load import MaskLoad, composed, on_backend

from seq2exp.kernels import _extension
from seq2exp.kernels.beta_mask import native, reference

BATCH, LENGTH = 8, 200_000


def contest(kind: str) -> Contest:
    load = MaskLoad(kind, BATCH, LENGTH)
    x = load.inputs("cpu")
    ours, theirs = (load.call(form, x) for form in (on_backend("cpu"), composed))
    return Contest(ours, theirs, lambda: load.check(ours(), x), load.bytes)


for _kind in ("soft", "hard"):
    benchmark(
        f"beta_mask_cpu_{_kind}", ours="C++ mask", other="torch.distributions", goal=10, rounds=3,
        unavailable=_extension.load,
        setting=f"forward and backward, published {_kind} settings, fp32, batch 8, L 200,000",
    )(functools.partial(contest, _kind))  # fmt: skip


@benchmark(
    "beta_mask_cpu_top", ours="C++ top fraction", other="torch.topk", goal=1, unavailable=_extension.load,
    setting="the largest 10 % of 200,000 means; ours gives the mask, ties by position",
)  # fmt: skip
def top() -> Contest:
    g = torch.Generator().manual_seed(0)
    alpha, beta = (torch.randn(1, LENGTH, generator=g).exp() for _ in range(2))
    scores, k = alpha / (alpha + beta), LENGTH // 10

    def check() -> None:
        assert torch.equal(native.top_mask(scores, k), reference.top_mask(scores, k)), "another selection"

    return Contest(lambda: native.top_mask(scores, k), lambda: torch.topk(scores, k), check)
