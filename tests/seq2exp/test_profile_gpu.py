"""`seq2exp profile` on a GPU: what its memory snapshot says is what torch counted."""

from __future__ import annotations

import pickle

import pytest
import torch

pytest.importorskip("psutil")
pytest.importorskip("pandas")

from on_gpu import REHEARSAL

from seq2exp import Seq2ExpConfig
from seq2exp.errors import is_out_of_memory
from seq2exp.profiling import StepSettings, TrainingStep, measure_step
from seq2exp.profiling.record import record_gpu_allocations
from seq2exp.profiling.step import PARTS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REHEARSAL or not torch.cuda.is_available(), reason="no CUDA device")]

CONFIG = Seq2ExpConfig.soft(length=20_000, center=200, d_model=64, generator_layers=2, predictor_layers=2)
SETTINGS = StepSettings(CONFIG, batch=2, precision="bf16", device="cuda")


def test_the_snapshot_agrees_with_the_counters(tmp_path):
    step = TrainingStep(SETTINGS)
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - sum(p.grad.nbytes for p in step.model.parameters())
    spans, allocations = record_gpu_allocations(step, tmp_path / "snapshot.pickle")
    assert before + allocations.changes.cumsum().max() == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.02)
    during = (allocations.times >= spans[0].start) & (allocations.times <= spans[-1].end)
    assert during.mean() > 0.9, "the snapshot has another clock"
    assert pickle.loads((tmp_path / "snapshot.pickle").read_bytes())["device_traces"]


def test_a_step_is_measured_and_limited():
    cost = measure_step(SETTINGS)
    assert [p.name for p in cost.parts] == list(PARTS)
    assert sum(p.seconds for p in cost.parts) == pytest.approx(cost.seconds, rel=0.1)
    assert cost.fixed < cost.peak <= cost.reserved and cost.resident is None
    try:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            measure_step(SETTINGS, limit=cost.peak // 2)
        assert is_out_of_memory(raised.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
