"""Benchmarks of the fused input on the CPU: against F.embedding, F.linear, an addition and a product."""

from __future__ import annotations

import functools

from embed_load import EmbedLoad, composed, on_backend
from harness import Contest, benchmark

from seq2exp.kernels import _extension

LENGTH = 200_000


def contest(load: EmbedLoad) -> Contest:
    x = load.inputs("cpu")
    ours, theirs = (load.call(form, x) for form in (on_backend("cpu"), composed))
    return Contest(ours, theirs, lambda: load.check(ours(), x), load.bytes)


for _batch in (1, 8):
    for _dtype in ("float32", "bfloat16"):
        for _kept, _words, _goal in ((1.0, "all bases", 5), (0.1, "10 % of the bases", 2)):
            benchmark(
                f"embed_cpu_b{_batch}_{_kept:g}_{_dtype}", ours="C++ kernels",
                other="F.embedding, F.linear, add, multiply",
                goal=_goal, rounds=3, unavailable=_extension.load,
                setting=f"forward and backward, {_dtype}, batch {_batch}, L {LENGTH:,}, 128 channels, {_words}",
            )(functools.partial(contest, EmbedLoad(_kept, _batch, LENGTH, dtype=_dtype)))  # fmt: skip
