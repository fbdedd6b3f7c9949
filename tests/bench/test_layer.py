"""The bidirectional layer's benchmarks: the published form as baseline, their checks, what they count and print."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import harness
import layer_cost
import published_layer as published
import pytest
import run
import torch
from gpu_measure import measure, prepare
from harness import Benchmark, Contest
from layer_cost import Widths
from layer_load import COMPOSED, Form, LayerLoad, on_backend, published_form
from mixer_layers import converted, layer, leaves

from seq2exp.baselines import published_layer
from seq2exp.kernels import selective_scan
from seq2exp.kernels.bimamba import reference

REFERENCE = on_backend("reference")
SMALL = LayerLoad("mixer", "both", 2, 130, d_model=16, state=4)


@pytest.mark.parametrize("width", [2, 4])
def test_published_form_equals_the_oracle(width):
    fixed, _ = converted(*layer(d=6, state=5, width=width, batch=2, length=37), torch.float64)
    out, exact = published.bimamba(*fixed), reference.bimamba_forward(*fixed)
    assert torch.allclose(out, exact, rtol=1e-10, atol=1e-10)
    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    for ours, want in zip(*(torch.autograd.grad(y, leaves(fixed, None), g) for y in (out, exact)), strict=True):
        assert torch.allclose(ours, want, rtol=1e-9, atol=1e-9)


def test_equivariant_form_is_two_plain_ones():
    """The second on the reverse complement; and it commutes with that."""
    fixed, _ = converted(*layer(d=6, state=5, batch=2, length=37), torch.float64)

    def mixer(h: torch.Tensor) -> torch.Tensor:
        return published.bimamba(h, *fixed[1:])

    x = torch.randn(2, 37, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = published.on_both_strands(mixer, x)
    assert torch.equal(out[..., :6], mixer(x[..., :6]))
    assert torch.equal(out[..., 6:], mixer(x[..., 6:].flip(1, 2)).flip(1, 2))
    assert torch.allclose(published.on_both_strands(mixer, x.flip(1, 2)), out.flip(1, 2), rtol=1e-12, atol=1e-12)


def test_fast_module_calls_mamba_ssm_as_its_signature_says(monkeypatch):
    """With a stand-in for the fused function, made of the same steps."""

    def mamba_inner_fn(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, B=None,
        C=None, D=None, delta_bias=None, delta_softplus=True,
    ):  # fmt: skip
        assert B is None and C is None and out_proj_bias is None and xz.stride(-1) == 1
        assert {x.dtype for x in (A, D, delta_bias)} == {torch.float32}
        x, z = xz.chunk(2, 1)
        c = published_layer.convolution(x, conv1d_weight, conv1d_bias)
        state, rank = A.shape[1], delta_proj_weight.shape[1]
        low, B, C = published_layer.x_projection(c, x_proj_weight).split([rank, state, state], 1)
        delta = published_layer.dt_projection(low, delta_proj_weight)
        y = selective_scan(c, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return published_layer.output_projection(y, out_proj_weight)

    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.mamba_inner_fn = mamba_inner_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    load = replace(SMALL, length=40)
    x = load.inputs("cpu")
    form = published_form(published.fast_mamba)
    assert load.check(load.call(form, x)(), x) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("shape", ["mixer", "layer", "equivariant"])
def test_both_forms_pass_the_check(shape, direction, dtype):
    load = replace(SMALL, shape=shape, direction=direction, dtype=dtype)
    x = load.inputs("cpu")
    exact = load.exact(x)
    for form in (COMPOSED, REFERENCE):
        assert 0 < load.check(load.call(form, x)(), x, exact) < (1e-2 if direction == "forward" else 2e-2)


def test_the_check_sees_every_gradient():
    x = SMALL.inputs("cpu")
    exact, got = SMALL.exact(x), SMALL.call(REFERENCE, x)()
    assert list(exact)[:3] == ["out", "x", "layers.0.mixer.in_proj"] and len(exact) == len(got) == 18
    for i, name in enumerate(exact):
        wrong = (*got[:i], got[i] * 1.001, *got[i + 1 :])
        with pytest.raises(AssertionError, match=rf"{name} is off by 1\.0e-03"):
            SMALL.check(wrong, x, exact)


WRONG = Form(lambda shape, backbone, x: 1.1 * COMPOSED.run(shape, backbone, x), published=True)


def test_no_figure_for_a_wrong_form(monkeypatch, capsys, tmp_path):
    """Neither on the GPU nor in the CPU's table."""
    prepared = prepare(SMALL)
    figures = measure(SMALL, prepared, {"cuda": WRONG, "composed": COMPOSED})
    assert list(figures["cuda"]) == ["error"] and "out is off by 1.0e-01" in figures["cuda"]["error"]
    assert figures["composed"]["ms"] > 0

    def contest() -> Contest:
        x = SMALL.inputs("cpu")
        call = SMALL.call(WRONG, x)
        return Contest(call, call, lambda: SMALL.check(call(), x))

    bench = Benchmark("wrong", "ours", "other", "setting", 1.0, 1, contest, lambda: None, None)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "cpu.json")
    monkeypatch.setattr(run, "REGISTRY", {"wrong": bench, "amount": replace(bench, name="amount", unit="bytes")})
    assert run.main([]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if "setting" in line][1:]
    assert len(rows) == 2 and all(
        "WRONG, no figure: out is off" in row and row.endswith("|  | 1 MISSED |") for row in rows
    )


def test_amounts_are_compared_like_times():
    bench = Benchmark(
        "a", "ours", "theirs", "here", 10.0, 1, lambda: Contest(lambda: 640, lambda: 14_000, lambda: None),
        lambda: None, "bytes a base",
    )  # fmt: skip
    result = harness.measure(bench)
    assert result.amounts == (640, 14_000) and result.met(10.0) and not result.met(30.0)
    table = run.table({"a": run.row(bench, result)}).splitlines()
    assert table[2] == "| ours | theirs | here | bytes a base | 640 | 14,000 | 21.88 | 10 |"


def test_benchmarks_of_the_layer_are_registered():
    names = [name for name in harness.REGISTRY if name.startswith("layer_")]
    goals = {name: harness.REGISTRY[name].goal for name in names}
    assert goals["layer_cpu"] == 1.2 and goals["layer_cpu_saved_hooks"] == 10 and goals["layer_cpu_peak"] == 2
    assert sum(name.startswith(("layer_mixer", "layer_equivariant")) for name in names) == 9


def test_what_is_saved_is_live():
    load = LayerLoad("mixer", "both", 1, 16_384, d_model=64)
    x = load.inputs("cpu")
    found = load.saved(COMPOSED, x)
    assert found.hooks / load.bases > 5_000
    assert found.live == pytest.approx(found.hooks, rel=0.1)


def test_parts_are_all_steps_of_both_modules():
    parts = SMALL.parts(SMALL.inputs("cpu"))
    names = [part.name for part in parts]
    module = ["input projection", "convolution", "x projection", "dt projection", "scan", "output projection"]
    assert names == [*module, "flip", *module, "flip", "add"] + 5 * ["sums of gradients"]  # h, 2 c, in_proj, out_proj
    assert all(part.run() is not None for part in parts)


def test_values_moved():
    """d 128, 256 channels, rank 8, 16 states: 2 d + 14 x 256 + 4 x 40 of ours forward."""
    w = Widths(128, 256, 8, 16)
    assert layer_cost.moved(w, "mixer", "forward", False) == 4_000
    for shape in ("mixer", "layer", "equivariant"):
        for direction in ("forward", "both"):
            ours, theirs = (layer_cost.moved(w, shape, direction, form) for form in (False, True))
            assert 1.4 < theirs / ours < 2.5
