"""The training step's benchmarks: their goals, what they measure, and that a wrong form gets no figure."""

from __future__ import annotations

import harness
import pytest
import run  # noqa: F401  (registers all)
import training_step
from step_load import StepLoad, on_backend, published

from seq2exp.baselines import published_layer
from seq2exp.config import Seq2ExpConfig

NAMES = ["step_cpu", "step_cpu_saved", "step_cpu_peak", "step_cpu_reference", "step_cpu_parts"]


@pytest.fixture
def tiny(monkeypatch):
    for name, value in {"LENGTH": 400, "D_MODEL": 8, "LAYERS": 1, "FROM": {"ours": 200, "reference": 100}}.items():
        monkeypatch.setattr(training_step, name, value)
    training_step.measured.cache_clear()
    yield
    training_step.measured.cache_clear()


def test_goals():
    goals = {name: harness.REGISTRY[name].goal for name in NAMES}
    assert goals == dict(zip(NAMES, (1.2, 10, None, 20, 1 / 1.1), strict=True))
    assert training_step.setting("ours").length == 200_000 and training_step.setting("ours").extrapolation == 5


def test_figures_are_those_of_one_contest(tiny):
    results = {name: harness.measure(harness.REGISTRY[name]) for name in NAMES}
    assert all(result.ratio and not result.note for result in results.values())
    measured = training_step.measured("ours")
    assert measured.setting.extrapolation == 2
    assert results["step_cpu"].amounts == (min(measured.ours.step), min(measured.published.step))
    assert results["step_cpu_saved"].amounts == (measured.ours.saved / 1e9, measured.published.saved / 1e9)
    assert results["step_cpu_saved"].ratio > 5
    assert training_step.measured("reference").setting.scan == "reference"


def test_no_figure_for_a_wrong_form(tiny, monkeypatch):
    right = published_layer.flip
    monkeypatch.setattr(published_layer, "flip", lambda h: right(h).roll(1, 1))
    result = harness.measure(harness.REGISTRY["step_cpu"])
    assert result.note.startswith("WRONG, no figure: no figure: the gradient of") and result.amounts is None


def test_the_gpus_check_sees_a_wrong_form(monkeypatch):
    load = StepLoad("soft", 2, 300, d_model=16, layers=1)
    x = load.inputs("cpu")
    exact = load.exact(x)
    for form in (on_backend("reference"), published("ours")):
        assert 0 < load.check(load.call(form, x)(), x, exact) < 0.1
    monkeypatch.setattr(published_layer, "flip", lambda h: h)
    with pytest.raises(AssertionError, match=r"predictor\..* is off by"):
        load.check(load.call(published("ours"), x)(), x, exact)


def test_configuration_without_pydantic(monkeypatch):
    """The stand-in that `make gpu` uses gives the presets of the package."""
    import importlib.util
    import sys
    from pathlib import Path

    from gpu_build import ROOT, STANDINS

    def module(name: str, path: Path):
        spec = importlib.util.spec_from_file_location(name, path)
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    monkeypatch.setitem(sys.modules, "pydantic", module("pydantic", STANDINS / "pydantic.py"))
    bare = module("bare_config", ROOT / "seq2exp" / "config.py").Seq2ExpConfig
    for preset in ("soft", "hard", "top_fraction", "discovery"):
        given = dict(length=300, center=20, d_model=16, gene_features=0)
        ours, theirs = (getattr(kind, preset)(**given) for kind in (bare, Seq2ExpConfig))
        assert ours.model_dump() == theirs.model_dump() and ours.packs == theirs.packs
    assert bare.soft().replace(length=7).length == 7
    with pytest.raises(TypeError, match="unknown fields: legnth"):
        bare.soft(legnth=7)
