"""The Triton scan without a GPU: in the interpreter, compiled for sm_80 and sm_90, and how launches cut the work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import interpreted
import pytest
import torch
from scan_problems import GRADS
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from seq2exp.kernels.selective_scan import triton as scan  # noqa: E402
from seq2exp.kernels.selective_scan import triton_kernels as kernels  # noqa: E402
from seq2exp.kernels.selective_scan.triton_variants import resources, variants  # noqa: E402

INTERPRETED = Path(__file__).with_name("interpreted_selective_scan_triton.py")


@pytest.fixture(scope="module")
def failures(tmp_path_factory, request) -> dict[str, list[str]]:
    marks = "slow" if request.config.option.markexpr == "slow" else "not slow"
    return interpreted.failures(INTERPRETED, marks, tmp_path_factory.mktemp("interpreted") / "report.xml")


@pytest.mark.parametrize("name", interpreted.names(INTERPRETED, slow=False))
def test_in_the_interpreter(failures, name):
    assert not failures[name], "\n\n".join(failures[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", interpreted.names(INTERPRETED, slow=True))
def test_in_the_interpreter_at_length(failures, name):
    assert not failures[name], "\n\n".join(failures[name])


def listed() -> Iterator:
    """The variants; those of other types than bfloat16 are slow tests."""
    for v in variants():
        yield pytest.param(v, id=v.name, marks=[] if v.dtype == "bf16" else pytest.mark.slow)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("variant", list(listed()))
def test_every_variant_compiles_without_spills(variant, architecture):
    compiled = variant.compile(architecture)
    assert resources(compiled)["spilled"] == 0
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"]), "an atomic: sums would depend on timing"


class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, arg_names: list[str], launches: list[tuple[int, dict]]) -> None:
        self.arg_names, self.launches = arg_names, launches

    def __getitem__(self, grid: tuple[int]):
        def launch(*args: object, **kwargs: object) -> None:
            self.launches.append((grid[0], dict(zip(self.arg_names, args, strict=False)) | kwargs))

        return launch


@pytest.fixture
def launches(monkeypatch) -> Iterator[list[tuple[int, dict]]]:
    found: list[tuple[int, dict]] = []
    for name in ("fwd", "bwd", "segment", "carry"):
        kernel = getattr(kernels, f"selective_scan_{name}_kernel")
        monkeypatch.setattr(kernels, f"selective_scan_{name}_kernel", Recorder(kernel.arg_names, found))
    yield found


def inputs(batch: int, length: int, dim: int = 256, state: int = 16, groups: int = 1) -> tuple:
    """Without memory: u, delta, A, B, C, D, z, delta_bias, softplus, reverse, cu_seqlens."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def channels(*shape: int) -> Tensor:
        return empty(dim, *shape, dtype=torch.float32)

    u, B = empty(batch, dim, length), empty(batch, groups, state, length)
    return u, u, channels(state), B, B, channels(), u, channels(), True, False, None


def test_scratch_is_below_one_gigabyte(launches):
    arguments = inputs(8, 200_000)
    states = scan.forward(*arguments)[2]
    launches.clear()
    scan.backward(arguments[0], *arguments, states)
    results = ("du", "ddelta", "dz")
    scratch = {
        id(x): x.nbytes for _, launch in launches for name, x in launch.items()
        if isinstance(x, Tensor) and name not in results and all(x is not y for y in (*arguments, states))
    }  # fmt: skip
    assert sum(scratch.values()) < 1e9


@pytest.mark.parametrize(
    "batch, length, forward, backward", [(8, 200_000, 1, 128), (1, 200_000, 8, 782), (2, 300, 2, 2)]
)
def test_long_rows_are_cut_where_programs_are_few(launches, batch, length, forward, backward):
    arguments = inputs(batch, length)
    states = scan.forward(*arguments)[2]
    assert {launch["n_segments"] for _, launch in launches} == {forward}
    assert [grid for grid, launch in launches if "out" in launch] == [batch * 64 * forward]
    launches.clear()
    scan.backward(arguments[0], *arguments, states)
    assert {launch["n_segments"] for _, launch in launches} == {backward}
    assert [grid for grid, launch in launches if "du" in launch] == [batch * backward]


COMPILED = [v for v in variants() if v.options == "all" and v.dtype in ("bf16", "fp32")]  # before `launches` stands in


def test_launches_match_the_variants(launches):
    """What is compiled ahead of time has the arguments of what is launched."""
    arguments = inputs(1, 2_000)
    states = scan.forward(*arguments)[2]
    scan.backward(arguments[0], *arguments, states)
    for _, launch in launches:
        settings = {k: v for k, v in launch.items() if k in ("num_warps", "maxnreg")}
        present = {k for k, v in launch.items() if v is not None} - set(settings)
        tensors = {k: v for k, v in launch.items() if isinstance(v, Tensor)}
        types = {k: {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[v.dtype] for k, v in tensors.items()}
        assert any(
            {k for k in v.function.arg_names if v.constants.get(k, 0) is not None} == present
            and {k: t for k, t in v.signature.items() if t.startswith("*")} == types
            and all(launch[k] == c for k, c in v.constants.items())
            and v.launch == settings
            for v in COMPILED
        ), launch


def test_gradients_of_absent_inputs_are_none(launches):
    u, delta, A, B, C, *_ = inputs(1, 100)
    bare = (u, delta, A, B, C, None, None, None, False, True, None)
    got = scan.backward(u, *bare, scan.forward(*bare)[2])
    assert [name for name, x in zip(GRADS, got, strict=True) if x is None] == ["D", "z", "delta_bias"]
