"""The emulator that runs CUDA kernels on the CPU: what it computes, and that planted mistakes do not pass."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p

import numpy as np
import pytest
from emulated_cuda import EMULATOR, add_buffer, entry, library

ORDERS = {"forward": 0, "reverse": 1, "random 2": 2, "random 3": 3}
NONE, WARP, BLOCK = range(3)


@pytest.fixture(scope="module")
def planted() -> ctypes.CDLL:
    return library(EMULATOR / "planted_kernels.cpp")


@pytest.fixture(params=ORDERS.values(), ids=ORDERS.keys())
def order(request, planted) -> int:
    planted.emulator_set_order(request.param)
    yield request.param
    planted.emulator_set_order(0)


def pass_up(planted: ctypes.CDLL, barrier: int, distance: int, threads: int = 128, blocks: int = 2) -> bool:
    """Whether every thread got the value of the thread `distance` below it."""
    out = np.full((blocks, threads), -1, np.float32)
    entry(planted, "run_pass_up", c_int, c_void_p, c_int, c_int, c_int)(
        barrier, out.ctypes.data, blocks, threads, distance
    )
    t = np.arange(threads)
    return np.array_equal(out, np.tile(np.where(t >= distance, t - distance, 0), (blocks, 1)))


@pytest.mark.parametrize("threads", [1, 31, 32, 33, 100, 128, 1024])
def test_barriers_order_shared_memory(planted, order, threads):
    assert pass_up(planted, BLOCK, 1, threads) and pass_up(planted, BLOCK, 32, threads)
    assert pass_up(planted, WARP, 1, min(threads, 32))


def caught_in(planted: ctypes.CDLL, *arguments: int) -> set[str]:
    caught = set()
    for name, order in ORDERS.items():
        planted.emulator_set_order(order)
        if not pass_up(planted, *arguments):
            caught.add(name)
    planted.emulator_set_order(0)
    return caught


def test_a_missing_block_barrier_shows(planted):
    assert caught_in(planted, WARP, 32) == {"reverse", "random 2", "random 3"}  # right by luck when run forward


def test_a_missing_warp_barrier_shows(planted):
    assert caught_in(planted, NONE, 1, 32) == {"reverse", "random 2", "random 3"}


def test_a_missing_second_barrier_shows(planted, order):
    out = np.zeros((2, 128), np.float32)
    for second in (0, 1):
        entry(planted, "run_reuse", c_int, c_void_p)(second, out[second].ctypes.data)
    exact = (np.arange(128) + 5 * 32) % 128 + 5
    assert np.array_equal(out[1], exact) and not np.array_equal(out[0], exact)


def test_shared_memory_starts_as_nan_in_every_block(planted):
    out = np.zeros(2, np.float32)
    entry(planted, "run_unwritten", c_void_p)(out.ctypes.data)  # by two blocks
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("at", "message"), [(64, "writes 0 bytes past the 256"), (100, "writes 144"), (-1, "writes 1 bytes before")]
)
def test_writes_outside_shared_memory_are_reported(planted, at, message):
    run = entry(planted, "run_write_outside", c_int)
    with pytest.raises(RuntimeError, match=rf"\(3 blocks of 64 threads\), block 1: {message}"):
        run(at)
    run(63)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (0, "divergent __syncthreads: 32 threads wait, 32 have exited"),
        (1, "warp 0: divergent warp operation"),
        (2, "warp 0: divergent warp operation"),
        (3, "warp 0: divergent warp operation"),
        (4, "warp 0: lane 0 shuffles from lane 16, which takes no part"),
    ],
)
def test_divergence_is_reported_and_the_next_launch_runs(planted, order, how, message):
    with pytest.raises(RuntimeError, match=message):
        entry(planted, "run_diverge", c_int)(how)
    assert pass_up(planted, BLOCK, 32)


def test_warp_operations(planted, order):
    got = np.full((64, 12), np.nan)
    entry(planted, "run_operations", c_void_p)(got.ctypes.data)
    lane = np.arange(64) % 32
    x = 10 * lane[:32] + 0.5
    expected = [
        np.full(64, x[7]),
        x[(lane + 1) % 32],
        x[np.where(lane >= 3, lane - 3, lane)],
        x[np.where(lane < 29, lane + 3, lane)],
        x[lane ^ 5],
        np.where(lane >= 1, lane - 1, lane) + 1e-12,
        2**40 + (lane ^ 16),
        np.full(64, sum(1 << i for i in range(0, 32, 3))),
        np.ones(64),
        np.ones(64),
        np.where(lane < 16, lane ^ 1, np.where(lane < 31, lane + 1, lane)),
        np.where(lane < 16, 0xFFFF, 0),
    ]
    assert np.array_equal(got, np.stack(expected, 1))


def test_orders_of_blocks_warps_and_lanes(planted):
    """Ranks of arrival: warps run whole up to a block barrier, in an order drawn anew after each; so do lanes."""

    def ranks(order: int) -> np.ndarray:
        planted.emulator_set_order(order)
        out = np.zeros((3, 3, 4, 32), np.int32)  # block, interval, warp, lane
        entry(planted, "run_arrival", c_void_p, c_int, c_int)(out.ctypes.data, 3, 128)
        planted.emulator_set_order(0)
        assert np.array_equal(np.sort(out.ravel()), np.arange(out.size))
        return out

    forward, reverse, first, second = map(ranks, range(4))
    assert np.array_equal(forward[:, 2].ravel(), np.sort(forward[:, 2].ravel()))
    assert np.array_equal(reverse[:, 2].ravel(), np.sort(reverse[:, 2].ravel())[::-1])
    assert np.array_equal(first, ranks(2)) and not np.array_equal(first, second)
    for random in (first, second):
        by_lane = np.argsort(random, axis=3).reshape(-1, 32)
        assert len(np.unique(by_lane, axis=0)) > 20  # of 36
        by_warp = np.argsort(random[:, 1:].min(axis=3), axis=2).reshape(-1, 4)
        assert len(np.unique(by_warp, axis=0)) > 1


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ((0, 32, 0), "a grid of 0 blocks"),
        ((2**31, 32, 0), "a grid of 2147483648 blocks"),
        ((1, 1025, 0), "a block of 1025 threads"),
        ((1, 0, 0), "a block of 0 threads"),
        ((1, 32, 166_913), "166913 bytes of shared memory"),
    ],
)
def test_launches_that_no_gpu_would_take(planted, configuration, message):
    run = entry(planted, "run_nothing", c_int64, c_int, c_int64)
    run(1, 1024, 166_912)
    with pytest.raises(RuntimeError, match=message):
        run(*configuration)


@pytest.fixture(scope="module")
def checked() -> ctypes.CDLL:
    return library(EMULATOR / "planted_kernels.cpp", checked=True)


def access(checked: ctypes.CDLL, how: int) -> None:
    data = np.full((2, 256), 1, np.float32)  # in and out in the middle of something larger
    source, target = (row[64:].ctypes.data for row in data)
    add_buffer(checked, "in", source, 512)
    add_buffer(checked, "out", target, 512)
    try:
        entry(checked, "run_access", c_int, c_void_p, c_void_p)(how, source, target)
    finally:
        checked.checks_forget_buffers()


BETWEEN = "without a barrier between"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (1, rf"thread 1 writes shared memory \+ 0, which thread 0 writes, {BETWEEN}"),
        (2, rf"thread 0 reads shared memory \+ 4, which thread 1 writes, {BETWEEN}"),
        (3, "thread 63 reads 4 bytes outside of every buffer"),
        (4, "thread 0 reads 4 bytes outside of every buffer"),
        (5, rf"thread 0 writes out \+ 0, which thread 0 writes, {BETWEEN}"),
        (6, rf"thread 32 writes shared memory \+ 128, which thread 31 reads, {BETWEEN}"),
        (7, "thread 0 reads 4 bytes outside of every buffer"),
    ],
)
def test_memory_checks_report_what_no_value_shows(checked, how, message):
    access(checked, 0)
    with pytest.raises(RuntimeError, match=rf"{message} \(planted_kernels.cpp:\d+"):
        access(checked, how)


@pytest.mark.parametrize("barrier", [NONE, WARP])
def test_memory_checks_need_no_lucky_order(checked, barrier):
    """The two missing barriers from above, run forward, where the results are right."""
    distance = 32 if barrier else 1
    out = np.zeros(64, np.float32)
    run = entry(checked, "run_pass_up", c_int, c_void_p, c_int, c_int, c_int)
    add_buffer(checked, "out", out.ctypes.data, out.nbytes)
    run(BLOCK, out.ctypes.data, 1, 64, distance)
    with pytest.raises(RuntimeError, match=f"which thread . writes, {BETWEEN}"):
        run(barrier, out.ctypes.data, 1, 64, distance)
    checked.checks_forget_buffers()
