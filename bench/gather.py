"""Benchmarks of the pack on the CPU: the op against nonzero, an index and a product, forward and backward."""

from __future__ import annotations

import functools

from gather_load import GatherLoad, composed, on_backend
from harness import Contest, benchmark

from seq2exp.kernels import _extension

BATCH, LENGTH, SHARE = 8, 200_000, 0.1


def contest(dtype: str) -> Contest:
    load = GatherLoad(SHARE, BATCH, LENGTH, dtype=dtype)
    x = load.inputs("cpu")
    ours, theirs = (load.call(form, x) for form in (on_backend("cpu"), composed))
    return Contest(ours, theirs, lambda: load.check(ours(), x), load.bytes)


for _dtype in ("float32", "bfloat16"):
    benchmark(
        f"pack_selected_cpu_{_dtype}", ours="C++ kernels", other="nonzero, index, product", goal=1.2, rounds=5,
        unavailable=_extension.load,
        setting=f"forward and backward, {_dtype}, batch {BATCH}, L {LENGTH:,}, 128 channels, {SHARE:.0%} selected",
    )(functools.partial(contest, _dtype))  # fmt: skip
