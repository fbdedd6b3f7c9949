"""Benchmarks of the bidirectional layer on the CPU: against the published form on our own scan, plain and equivariant.

Forward and backward count together: that is what both forms trade memory and recomputation for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import Contest, benchmark, peak_memory
from layer_load import COMPOSED, Form, LayerInputs, LayerLoad, on_backend

from seq2exp.kernels import _extension
from seq2exp.kernels.backend import IMPLEMENTED

LENGTH = 200_000
OURS = on_backend("cpu")
NAMES = {"mixer": "bimamba", "layer": "layer", "equivariant": "equivariant layer"}
PUBLISHED = "published form, our scan"
SAVED_LIMIT = 400  # bytes a base in bfloat16 at d_model 128


def unavailable() -> str | None:
    return _extension.load() or (None if "bimamba" in IMPLEMENTED["cpu"] else "bimamba has no C++ kernels yet")


def peak_needs_linux() -> str | None:
    return unavailable() or (None if peak_memory(lambda: None) is not None else "peak memory cannot be told here")


@functools.lru_cache(maxsize=1)
def posed(load: LayerLoad) -> tuple[LayerInputs, dict[str, torch.Tensor]]:
    """The inputs and what is right, kept while the next benchmark is about the same."""
    x = load.inputs("cpu")
    return x, load.exact(x)


def checked(load: LayerLoad) -> tuple[LayerInputs, Callable[[], float]]:
    """Inputs, and the check of our form and of the published one."""
    x, exact = posed(load)

    def check() -> float:
        return max(load.check(load.call(form, x)(), x, exact) for form in (COMPOSED, OURS))

    return x, check


def against_published(load: LayerLoad) -> Contest:
    x, check = checked(load)
    return Contest(load.call(OURS, x), load.call(COMPOSED, x), check)


def title(load: LayerLoad) -> str:
    what = "forward" if load.direction == "forward" else "forward and backward"
    return f"{what}, {load.dtype}, batch {load.batch}, L {load.length:,}, d {load.d_model}"


MIXER = LayerLoad("mixer", "both", 1, LENGTH)
CONTESTS = {
    "layer_cpu": (MIXER, 1.2),
    "layer_cpu_forward": (LayerLoad("mixer", "forward", 1, LENGTH), None),
    "layer_cpu_equivariant": (LayerLoad("equivariant", "both", 1, LENGTH), None),
}  # fmt: skip
for _name, (_load, _goal) in CONTESTS.items():
    benchmark(
        _name, ours=NAMES[_load.shape], other=PUBLISHED, goal=_goal, rounds=3, unavailable=unavailable,
        setting=title(_load),
    )(functools.partial(against_published, _load))  # fmt: skip


@benchmark(
    "layer_cpu_parts", ours="published form", other="its parts alone, summed", goal=1 / 1.1, rounds=3,
    unavailable=unavailable, setting=f"{title(MIXER)}; the baseline has no hidden cost",
)  # fmt: skip
def baseline_against_its_parts() -> Contest:
    x, check = checked(MIXER)
    parts = MIXER.parts(x)
    return Contest(MIXER.call(COMPOSED, x), lambda: [part.run() for part in parts], check)


def saved_bytes(load: LayerLoad, how: str, limit: float | None = None) -> Contest:
    """A base, the layer's input among them. limit: against that figure instead of the published form."""
    x, check = checked(load)

    def count(form: Form) -> float:
        return getattr(load.saved(form, x), how) / load.bases

    return Contest(lambda: count(OURS), lambda: limit or count(COMPOSED), check)


_bf16 = LayerLoad("mixer", "both", 1, 16_384, dtype="bfloat16")
for _how, _words in (("hooks", "bytes a base saved, by autograd's hooks"), ("live", "bytes a base live in between")):
    benchmark(
        f"layer_cpu_saved_{_how}", ours="bimamba", other=PUBLISHED, goal=10, unit=_words, unavailable=unavailable,
        setting=title(MIXER),
    )(functools.partial(saved_bytes, MIXER, _how))  # fmt: skip
    benchmark(
        f"layer_cpu_saved_{_how}_bf16", ours="bimamba", other="limit", goal=1, unit=_words, unavailable=unavailable,
        setting=title(_bf16),
    )(functools.partial(saved_bytes, _bf16, _how, SAVED_LIMIT))  # fmt: skip


@benchmark(
    "layer_cpu_peak", ours="bimamba", other=PUBLISHED, goal=2, unit="MB at the peak beside the inputs",
    unavailable=peak_needs_linux, setting=title(MIXER),
)  # fmt: skip
def peak() -> Contest:
    x, check = checked(MIXER)
    return Contest(*(functools.partial(peak_mb, MIXER.call(form, x)) for form in (OURS, COMPOSED)), check)


def peak_mb(work: Callable[[], object]) -> float:
    return (peak_memory(work) or 0) / 1e6


PAIR = [LayerLoad(shape, "both", 1, LENGTH) for shape in ("equivariant", "layer")]


@benchmark(
    "layer_cpu_equivariant_plain", ours="equivariant layer", other="plain layer", goal=1 / 2.1, rounds=3,
    unavailable=unavailable, setting=title(PAIR[0]),
)  # fmt: skip
def equivariant_against_plain() -> Contest:
    x, check = checked(PAIR[0])
    return Contest(PAIR[0].call(OURS, x), PAIR[1].call(OURS, PAIR[1].inputs("cpu")), check)


@benchmark(
    "layer_cpu_equivariant_peak", ours="equivariant layer", other="plain layer", goal=1 / 2.1,
    unit="MB at the peak beside the inputs", unavailable=peak_needs_linux, setting=title(PAIR[0]),
)  # fmt: skip
def equivariant_peak() -> Contest:
    times = equivariant_against_plain()
    assert times.other
    return Contest(functools.partial(peak_mb, times.ours), functools.partial(peak_mb, times.other), times.check)


# The published form needs 17 kB a base; what is larger is measured alone and checked on one row of CHECKED.
PUBLISHED_BASES = 300_000
CHECKED = 65_536


def sizes() -> list[LayerLoad]:
    shapes = {
        "mixer": ((1, 16_384), (1, 65_536), (8, 16_384), (32, 16_384), (1, 200_704), (1, 1_048_576)),
        "equivariant": ((1, 65_536), (8, 16_384), (1, 200_704)),
    }
    return [LayerLoad(shape, "both", *size) for shape, found in shapes.items() for size in found]


def size(load: LayerLoad) -> Contest:
    traffic = load.moved(published=False)
    if load.bases <= PUBLISHED_BASES:
        return replace(against_published(load), traffic=traffic)
    _, check = checked(replace(load, batch=1, length=min(load.length, CHECKED)))
    return Contest(load.call(OURS, load.inputs("cpu")), None, check, traffic)


for _load in sizes():
    benchmark(
        f"layer_{_load.name}", ours=NAMES[_load.shape], unavailable=unavailable,
        rounds=3 if _load.bases < 100_000 else 1, other=PUBLISHED if _load.bases <= PUBLISHED_BASES else "",
        setting=f"{NAMES[_load.shape]}, {title(_load)}",
    )(functools.partial(size, _load))  # fmt: skip
