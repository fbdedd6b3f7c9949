"""The mixer in Triton without a GPU: in the interpreter, compiled for sm_80 and sm_90, and what launches take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import interpreted
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from seq2exp.kernels.bimamba import triton as mixer  # noqa: E402
from seq2exp.kernels.bimamba import triton_kernels as kernels  # noqa: E402
from seq2exp.kernels.bimamba.direction import Direction, Taps  # noqa: E402
from seq2exp.kernels.bimamba.triton_variants import variants  # noqa: E402
from seq2exp.kernels.selective_scan import triton_kernels as scan_kernels  # noqa: E402
from seq2exp.kernels.selective_scan.triton_variants import resources  # noqa: E402

INTERPRETED = Path(__file__).with_name("interpreted_bimamba_triton.py")


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, list[str]]:
    return interpreted.failures(INTERPRETED, "", tmp_path_factory.mktemp("interpreted") / "report.xml")


@pytest.mark.parametrize("name", interpreted.names(INTERPRETED, slow=False))
def test_in_the_interpreter(failures, name):
    assert not failures[name], "\n\n".join(failures[name])


def check_compiles(variant, architecture: int) -> None:
    compiled = variant.compile(architecture)
    assert resources(compiled)["spilled"] == 0
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"]), "an atomic: sums would depend on timing"


VARIANTS = {quick: [v for v in variants() if (v.dtype == "bf16" and v.options == "all") == quick] for quick in (0, 1)}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("variant", VARIANTS[True], ids=lambda v: v.name)
def test_compiles_without_spills(variant, architecture):
    check_compiles(variant, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("variant", VARIANTS[False], ids=lambda v: v.name)
def test_every_variant_compiles_without_spills(variant, architecture):
    check_compiles(variant, architecture)


# --- launches, on tensors without memory ------------------------------------------------------------------------------


class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, kernel, launches: list[tuple[int, dict]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int]):
        def launch(*args: object, **kwargs: object) -> None:
            named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            self.launches.append((grid[0], named | {"kernel": self.kernel}))

        return launch


@pytest.fixture
def launches(monkeypatch) -> Iterator[list[tuple[int, dict]]]:
    found: list[tuple[int, dict]] = []
    for module in (kernels, scan_kernels):
        for name, kernel in vars(module).copy().items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Recorder(kernel, found))
    yield found


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def direction(batch: int, length: int, second: bool, dim: int = 256, state: int = 16, rank: int = 8) -> Direction:
    u = empty(batch, dim, length)
    low, B, C = empty(batch, rank + 2 * state, length).split([rank, state, state], 1)
    dt_proj, A, D = (empty(dim, n, dtype=torch.float32) for n in (rank, state, 1))
    z = empty(batch, 2 * dim, length)[:, dim:] if second else None
    return Direction(u, low, dt_proj, A, B, C, D[:, 0], D[:, 0], z, u if second else None, False, None)


def run_all(batch: int, length: int) -> None:
    """What a mixer launches, forward and backward."""
    first, second = (direction(batch, length, is_second) for is_second in (False, True))
    _, states = mixer.scan(first)
    mixer.scan(first, False)
    mixer.scan(second)
    mixer.scan_backward(second.u, second._replace(add=None), states, False)
    mixer.scan_backward(second.u, second, states, True)
    taps = Taps(empty(256, 4, dtype=torch.float32), empty(256, dtype=torch.float32))
    x = empty(batch, 512, length)[:, :256]
    mixer.convolve(x, taps, taps, None)
    mixer.convolve_backward(x, x, x, taps, taps, None)


def test_launches_match_the_variants(launches):
    """What is compiled ahead of time has the arguments of what is launched."""
    run_all(1, 2_000)
    compiled = VARIANTS[True]
    matched = set()
    for _, launch in launches:
        if launch["kernel"] is scan_kernels.selective_scan_carry_kernel.kernel:
            continue  # a variant of the scan
        settings = {k: v for k, v in launch.items() if k in ("num_warps", "maxnreg")}
        present = {k for k, v in launch.items() if v is not None} - {*settings, "kernel"}
        tensors = {k: v for k, v in launch.items() if isinstance(v, Tensor)}
        types = {k: {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[v.dtype] for k, v in tensors.items()}
        same = [
            v.name for v in compiled
            if v.function is launch["kernel"]
            and {k for k in v.function.arg_names if v.constants.get(k, 0) is not None} == present
            and {k: t for k, t in v.signature.items() if t.startswith("*")} == types
            and all(launch[k] == c for k, c in v.constants.items())
            and v.launch == settings
        ]  # fmt: skip
        assert len(same) == 1, launch
        matched |= set(same)
    assert matched == {v.name for v in compiled}


def test_no_tensor_of_step_sizes(launches):
    """And scratch in all is below a gigabyte at batch 8."""
    results = ("out", "out_fwd", "out_rev", "du", "ddelta", "dz", "y", "dx", "states")
    run_all(8, 200_000)
    inputs = 8 * 200_000 * 512 * 2
    for _, launch in launches:
        sizes = {k: x.nbytes for k, x in launch.items() if isinstance(x, Tensor) and k not in results}
        scratch = {k: n for k, n in sizes.items() if k in ("carry", "ends", "sums") or k.startswith("d")}
        assert sum(scratch.values()) < 1e9, scratch
        assert max(sizes.values()) <= inputs


@pytest.mark.parametrize("batch, length, programs", [(8, 200_000, 8 * 49 * 64), (1, 200_000, 66 * 64), (1, 9, 64)])
def test_programs_of_the_convolution(launches, batch, length, programs):
    """Few enough that their parts of the weights' gradients are small, many enough for a GPU."""
    taps = Taps(empty(256, 4, dtype=torch.float32), empty(256, dtype=torch.float32))
    x = empty(batch, 256, length)
    mixer.convolve_backward(x, x, None, taps, None, None)
    ((grid, launch),) = launches
    assert grid == programs
    assert launch["dweight_fwd"].shape == (programs // 64, 256, 4) and launch["dweight_rev"] is None
