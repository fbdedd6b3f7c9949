"""What the static report derives: occupancy, spills, targets, failures."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace

import mask_trips
import pytest
import static
from static_report import Op, Variant


def variant(architecture: int = 80, **changes: int) -> Variant:
    zeros = dict.fromkeys(("stack", "local_accesses", "static_shared", "dynamic_shared", "code"), 0)
    return Variant("cuda", architecture, "kernel", **{"threads": 256, "registers": 32} | zeros | changes)


@pytest.mark.parametrize(
    "changes, blocks, limit",
    [
        ({}, 8, "registers"),  # and warps
        ({"registers": 33}, 6, "registers"),  # 40 a thread: 48 warps
        ({"registers": 128}, 2, "registers"),
        ({"registers": 255, "threads": 128}, 2, "registers"),
        ({"registers": 24}, 8, "warps"),
        ({"registers": 24, "threads": 32}, 21, "registers"),  # given to 4 warps at a time
        ({"registers": 8, "threads": 32}, 32, "blocks"),
        ({"dynamic_shared": 81 << 10}, 2, "shared memory"),  # with 1 KB of the system each
        ({"dynamic_shared": (81 << 10) + 1}, 1, "shared memory"),
        ({"architecture": 90, "dynamic_shared": 75 << 10}, 3, "shared memory"),
    ],
)
def test_occupancy(changes, blocks, limit):
    record = variant(**changes).record()
    assert record["blocks_per_sm"] == blocks
    assert record["warps_per_sm"] == blocks * record["threads"] // 32
    assert record["limited_by"] == limit


@pytest.mark.parametrize("changes, spills", [({}, False), ({"stack": 8}, True), ({"local_accesses": 2}, True)])
def test_spills(changes, spills):
    assert variant(**changes).record()["spills"] == spills


def op(direction: str, per_element: float, backend: str = "cuda", architecture: int = 80) -> Op:
    return Op(backend, architecture, direction, "float32", 200_000, False, {"kernel": per_element}, {})


def test_failures_are_named():
    good = {"variants": [variant().record()], "ops": [op("forward", 14).record()], "calibration": []}
    assert static.failed(good) == []
    bad = {
        "variants": [variant(stack=8).record()],
        "ops": [op("forward", 14.1).record(), op("backward", 45.1).record(), op("backward", 50, "triton").record()],
        "calibration": [{"direction": "forward", "length": 200_000, "per_element": 30, "expected": 36.7, "met": False}],
    }
    assert [line.split(":")[0] for line in static.failed(bad)] == [
        "kernel spills on sm_80",
        "forward float32 at L = 200,000 takes 14.1 instructions per state element on sm_80; the target is 14",
        "backward float32 at L = 200,000 takes 45.1 instructions per state element on sm_80; the target is 45",
        "calibration",
    ]


def test_without_nvcc_it_says_so_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(static, "load_setup", lambda: SimpleNamespace(find_nvcc=lambda: None))
    assert static.main() == 2
    assert capsys.readouterr().err.startswith("make static: nvcc was not found")


def test_recorded_report():
    """Complete, without spills, every target met, and with a calibration that holds."""
    report = static.recorded()
    assert static.failed(report) == []
    assert len(report["calibration"]) == 4
    places = {(r["backend"], r["architecture"]) for r in report["ops"]}
    assert places == {(backend, sm) for backend in ("cuda", "triton") for sm in static.ARCHITECTURES}
    for place in places:
        found = [key(r) for r in report["ops"] if (r["backend"], r["architecture"]) == place]
        assert found == [key(vars(p)) for p in static.ALL_PROBLEMS], place


def test_attempts_of_a_mask():
    """A draw of concentration 1 and more is accepted at once with probability 0.95 and more; a warp waits for its
    last."""
    for kind in ("soft", "hard"):
        for one, warp, block in zip(*(mask_trips.attempts(kind, n) for n in (1, 32, 256)), strict=True):
            assert 1 < one < 1 / 0.95 and one < warp < 1 + 32 * (one - 1) * 1.2 and warp < block < 4


def key(problem: dict) -> tuple:
    return tuple(problem[name] for name in ("direction", "dtype", "length", "reverse"))


@pytest.mark.parametrize(
    "direction", ["mixer forward", "mixer backward, closing", "convolution, backward", "mask, soft forward"]
)
def test_recorded_figures_of_triton_are_those_of_the_code(direction):
    static_triton = pytest.importorskip("static_triton", reason="triton is not installed")
    report = static.recorded()
    if version("triton") != report["tools"]["triton"]:
        pytest.skip("recorded with another version of Triton")
    kind = "float32" if direction.startswith("mask") else "bfloat16"
    problem = next(p for p in static.ALL_PROBLEMS if p.direction == direction and p.dtype == kind)
    same = [
        r for r in report["ops"]
        if (r["backend"], r["architecture"]) == ("triton", 80) and key(r) == key(vars(problem))
    ]  # fmt: skip
    assert same == [static_triton.op(problem, 80).record()]


def test_recorded_cost_of_step_sizes_from_their_factor():
    """The mixer's scan against the plain one of the same length and direction of reading."""
    ops = [r for r in static.recorded()["ops"] if r["backend"] == "cuda"]
    plain = {(r["architecture"], r["direction"], r["dtype"], r["length"], r["reverse"]): r["per_element"] for r in ops}
    mixers = [r for r in ops if r["direction"].startswith("mixer")]
    assert mixers
    for r in mixers:
        direction = "forward" if r["direction"] == "mixer forward" else "backward"
        same = plain[r["architecture"], direction, r["dtype"], r["length"], r["reverse"]]
        assert r["per_element"] <= same * (1.15 if direction == "forward" else 1.10), r["direction"]
