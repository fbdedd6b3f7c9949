"""`seq2exp profile`: the parts add up, memory is what was allocated, running out of memory is a line in a report."""

from __future__ import annotations

import csv
import json
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from seq2exp import Seq2ExpConfig, UserError
from seq2exp.errors import is_out_of_memory
from seq2exp.parts import part
from seq2exp.profiling import OutOfMemory, StepSettings, measure_step, search_batch, with_length
from seq2exp.profiling.isolate import Answer, gigabytes, in_process, memory_size
from seq2exp.profiling.measure import Curve, curve, kept_bytes
from seq2exp.profiling.record import (
    Allocations,
    Span,
    Trace,
    record_cpu_allocations,
    record_resident,
    snapshot_allocations,
)
from seq2exp.profiling.search import largest_size, take_one_step
from seq2exp.profiling.step import PARTS

TINY = {"d_model": 16, "generator_layers": 1, "predictor_layers": 1, "d_state": 4, "gene_features": 2}
MB = 10**6


def settings(preset: str = "soft", length: int = 600, **fields: object) -> StepSettings:
    config = getattr(Seq2ExpConfig, preset)(length=length, center=length // 100, **TINY)
    return StepSettings(config, batch=2, **fields)


@pytest.mark.parametrize(
    "preset, form, precision", [("soft", "ours", "bf16"), ("hard", "ours", "fp32"), ("hard", "published", "fp32")]
)
def test_the_parts_make_up_the_step(preset, form, precision, monkeypatch):
    monkeypatch.setattr("seq2exp.profiling.measure.TIMED_SECONDS", 0.3)
    cost = measure_step(settings(preset, 4_000, form=form, precision=precision))
    assert [p.name for p in cost.parts] == list(PARTS)
    assert all(p.seconds > 0 for p in cost.parts)
    assert sum(p.seconds for p in cost.parts) == pytest.approx(cost.seconds, rel=0.1)
    assert cost.peak == max(p.peak for p in cost.parts) > cost.fixed
    assert 0 < cost.selected_fraction < 1
    before_backward = [
        bytes_
        for second, bytes_ in zip(cost.allocated_curve.seconds, cost.allocated_curve.bytes, strict=True)
        if second <= cost.spans[-2][1]
    ]
    gradients = cost.fixed / 3  # the rest of it is what AdamW keeps, two numbers a weight
    assert before_backward[-1] == pytest.approx(cost.fixed + gradients + sum(p.kept or 0 for p in cost.parts), rel=0.05)


def test_what_the_generator_keeps_grows_linearly_with_the_length(monkeypatch):
    monkeypatch.setattr("seq2exp.profiling.measure.TIMED_SECONDS", 0.0)
    kept = []
    for length in (1_000, 2_000, 4_000):
        parts = {p.name: p for p in measure_step(settings(length=length)).parts}
        kept.append(parts["generator"].kept)
        assert parts["backward"].kept is parts["optimiser"].kept is None
    assert (kept[2] - kept[1]) == pytest.approx(2 * (kept[1] - kept[0]), rel=0.02)
    assert kept[0] > 2 * 1_000 * 16 * 4  # more than the residual stream


class FakeStep:
    """Allocates 96 MB in each of two parts, of which the first keeps one half. So much always comes from the system."""

    def __call__(self) -> None:
        with part("generator"):
            self.kept = torch.ones(12 * MB)
            self.freed = torch.ones(12 * MB)
            del self.freed
        with part("backward"):
            time.sleep(0.1)
            torch.ones(24 * MB)
            del self.kept

    def make_gradients(self) -> None:
        pass

    drop_gradients = make_gradients


def test_allocations_are_those_of_the_step():
    spans, allocations = record_cpu_allocations(FakeStep())
    level = np.cumsum(allocations.changes)
    assert [s.name for s in spans] == ["generator", "backward"]
    assert level.max() == pytest.approx(144 * MB, rel=1e-3) and abs(level[-1]) < 1_000
    assert kept_bytes(spans, allocations)["generator"] == pytest.approx(48 * MB, rel=1e-3)
    trace = Trace(spans, allocations.times, level)
    assert trace.largest("generator") == pytest.approx(96 * MB, rel=1e-3)
    assert trace.largest("backward") == pytest.approx(144 * MB, rel=1e-3)


def test_the_resident_set_is_sampled_during_the_parts():
    trace = record_resident(FakeStep())
    assert trace.largest("backward") >= trace.bytes[0] + 40 * MB
    assert len(trace.times) >= 4 + 3 and (np.diff(trace.times) >= 0).all()


def test_a_curve_is_stretched_part_by_part():
    trace = Trace([Span("data", 0, 10), Span("mask", 20, 30)], np.array([0, 5, 10, 25]), np.array([1, 2, 3, 4]))
    spans = [Span("data", 100, 200), Span("mask", 200, 300)]
    assert curve(trace, spans) == Curve([0, 50e-9, 100e-9, 150e-9], [1, 2, 3, 4])


def test_a_memory_snapshot_of_a_gpu_is_read():
    entries = [
        ("alloc", 1, 512, 7),
        ("segment_alloc", 2, 2**20, 7),
        ("free_requested", 3, 512, 7),
        ("free_completed", 4, 512, 7),
    ]
    trace = [dict(zip(("action", "time_us", "size", "addr"), entry, strict=True)) for entry in entries]
    found = snapshot_allocations({"device_traces": [[], trace]}, device=1)
    assert found.times.tolist() == [1_000, 4_000] and found.changes.tolist() == [512, -512]
    assert isinstance(found, Allocations) and found.addresses.tolist() == [7, 7]


@pytest.mark.parametrize("true, failed", [(1, None), (3, None), (57, None), (8, 9), (5_000, None), (5_000, 8_000)])
def test_the_search_finds_the_largest_in_few_trials(true, failed):
    budget = 1_000 + 100 * true + 50
    noise = np.random.default_rng(0)

    def measure(size: int) -> int | None:
        assert failed is None or size < failed
        peak = 1_000 + 100 * size + int(noise.integers(0, 20))
        return peak if peak <= budget else None

    largest, trials = largest_size(measure, budget, 1, failed)
    assert 0.95 * true <= largest <= true and len(trials) <= 7
    assert any(trial.size == largest and trial.peak for trial in trials)


def test_a_search_in_which_nothing_fits():
    assert largest_size(lambda size: None, 10, 2_000, smallest=100)[0] == 0


def test_work_in_a_process_of_its_own():
    answer = in_process(torch.ones, 3)
    assert answer.value.tolist() == [1, 1, 1] and answer.resident > 50 * MB
    with pytest.raises(UserError, match="'1 apple' is not an amount"):
        in_process(memory_size, "1 apple")


@pytest.mark.slow
def test_an_unexpected_exception_comes_with_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        in_process(divmod, 1, 0)


def test_running_out_of_memory_is_one_sentence():
    with pytest.raises(OutOfMemory, match="needs more than the 700 MB"):  # killed on its way
        in_process(torch.ones, 2 * 10**9, limit=700 * MB)
    with pytest.raises(OutOfMemory, match=r"^out of memory: 4000000000000000 bytes more could not be had$"):
        in_process(torch.ones, 10**15, limit=700 * MB)  # refused by the allocator
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_amounts_of_memory():
    assert [memory_size(text) for text in ("10GB", "8 GiB", "500m", "123", None)] == [
        10**10,
        2**33,
        5 * 10**8,
        123,
        None,
    ]
    assert [gigabytes(size) for size in (12_345_678_900, 5 * 10**6, 1_500, 3)] == ["12.3 GB", "5 MB", "1.5 kB", "3 B"]


MODEL = ("--d-model", 16, "--layers", 1, "--batch", 2, "--device", "cpu")


def test_the_command_measures_both_forms(seq2exp, tmp_path, tiny_store):
    arguments = ["--length", 120, "--compare", "published", "--store", tiny_store, "--out", tmp_path]
    code, out, err = seq2exp("profile", *arguments, *MODEL)
    assert code == 0, err
    assert all(name in out for name in PARTS) and "published" in out
    report = json.loads((tmp_path / "profile.json").read_text())
    assert [step["form"] for step in report["steps"]] == ["ours", "published"]
    assert all(step["resident"] > step["resident_before"] > 50 * MB for step in report["steps"])
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [*PARTS, "step"] * 2
    assert sum(float(row["share"]) for row in rows[: len(PARTS)]) == pytest.approx(1, abs=0.1)


def test_the_command_goes_on_after_a_size_that_does_not_fit(seq2exp, tmp_path):
    arguments = ["--length", "2000000,100", "--budget", "700MB", "--out", tmp_path]
    code, out, err = seq2exp("profile", *arguments, *MODEL)
    assert code == 0 and "ours: out of memory: needs more than the 700 MB" in out, err
    steps = json.loads((tmp_path / "profile.json").read_text())["steps"]
    assert steps[0]["failed"].startswith("out of memory") and "parts" in steps[1]


@pytest.mark.parametrize("option, fixed", [("--max-length", "batch 2"), ("--max-batch", "windows of 700 bases")])
def test_the_command_finds_the_largest(seq2exp, tmp_path, monkeypatch, option, fixed):
    def one_step(function, settings, budget, limit):  # of 1 MB for 1,000 bases
        resident = 400 * MB + settings.batch * settings.config.length * 1_000
        if resident > limit:
            raise OutOfMemory("out of memory")
        return Answer(0, resident)

    monkeypatch.setattr("seq2exp.profiling.search.in_process", one_step)
    code, out, err = seq2exp("profile", option, "--length", 700, "--budget", "600MB", "--out", tmp_path, *MODEL)
    assert code == 0 and fixed in out, err
    search = json.loads((tmp_path / "profile.json").read_text())["searches"][0]
    true = {"--max-length": 100_000, "--max-batch": 285}[option]
    assert 0.95 * true <= search["largest"] <= true
    assert (tmp_path / "search.csv").read_text().count("\n") == 1 + len(search["trials"])


@pytest.mark.slow
def test_the_largest_batch_fits_and_five_percent_more_does_not():
    search = search_batch(settings(length=50_000), budget=900 * MB)
    assert search.largest > 2
    for batch, fits in ((search.largest, True), (max(search.largest + 1, round(1.1 * search.largest)), False)):
        step = replace(settings(length=50_000), batch=batch)
        with nullcontext() if fits else pytest.raises(OutOfMemory):
            in_process(take_one_step, step, search.budget, limit=search.budget)


def test_the_budget_must_be_there():
    with pytest.raises(UserError, match=r"more than the .* that are free on cpu"):
        search_batch(settings(), budget=10**15)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--length", "many"], "--length many"),
        (["--length", "0"], "--length 0"),
        (["--mode", "sofd"], "preset 'sofd' is unknown"),
        (["--precision", "fp8"], "precision 'fp8'"),
        (["--budget", "much"], "'much' is not an amount"),
        (["--compare", "others"], "--compare 'others'"),
        (["--compare", "published", "--mode", "discovery"], "soft and hard"),
        (["--recompute", "all"], "recompute"),
    ],
)
def test_mistakes_are_one_sentence(seq2exp, arguments, sentence):
    code, _, err = seq2exp("profile", *arguments)
    assert code == 2 and sentence in err and err.count("\n") == 1


def test_the_centre_stays_a_hundredth_of_the_window():
    longer = with_length(replace(settings(), batch=1), 200_000)
    assert longer.config.length == 200_000 and longer.config.center == 2_000
