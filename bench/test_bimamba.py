"""Absolute times of the bidirectional layer for work on the kernels: `pytest bench --benchmark-only`."""

from __future__ import annotations

import pytest
from layer import unavailable
from layer_load import COMPOSED, LayerLoad, on_backend

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"kernels of bimamba: {unavailable()}")

LOADS = [
    LayerLoad(shape, direction, batch, length)
    for shape, direction, batch, length in (
        ("mixer", "forward", 1, 16_384), ("mixer", "both", 1, 16_384), ("mixer", "both", 8, 2_048),
        ("mixer", "both", 1, 65_536), ("layer", "both", 1, 16_384), ("equivariant", "both", 1, 16_384),
    )
]  # fmt: skip


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
@pytest.mark.parametrize("form", [on_backend("cpu"), COMPOSED], ids=["ours", "published"])
def test_layer(benchmark, load, form):
    x = load.inputs("cpu")
    call = load.call(form, x)
    load.check(call(), x)
    benchmark(call)
    benchmark.extra_info["GB/s"] = load.moved(form.published) / benchmark.stats.stats.min / 1e9
