"""embed_bases' GPU backends on a GPU against the float64 oracle there; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from embed_problems import ALL, BFLOAT, CHANNELS, DTYPES, FLOAT, HALF, check, moved, problem, results, strided
from on_gpu import BACKENDS, DEVICE, MARKS, forced, implementation

from seq2exp.kernels import embed_bases
from seq2exp.kernels.embed.bases import Wanted

pytestmark = MARKS


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[str]:
    with forced(request.param) as name:
        yield name


@pytest.fixture
def module(backend) -> ModuleType:
    return implementation("embed", backend)


@pytest.mark.parametrize("kept", [None, 0.3])
@pytest.mark.parametrize("channels", [*CHANNELS, 1000])
def test_channels(module, channels, kept):
    check(module, problem((2, 170), channels, kept=kept, padding=5 if kept else 0), DEVICE)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [64, 77])
def test_dtypes(module, dtypes, channels):
    check(module, problem((2, 170), channels, *dtypes), DEVICE)


@pytest.mark.parametrize("tracks", [0, 1, 4, 12, 32])
def test_tracks(module, tracks):
    check(module, problem((2, 170), 32, tracks=tracks, complement=True), DEVICE)


@pytest.mark.parametrize("asked", [Wanted(False, False, False), Wanted(False, True, True), Wanted(True, False, False)])
@pytest.mark.parametrize("kept", [None, 0.3])
def test_gradients_asked_for(module, asked, kept):
    check(module, problem((3, 129), 16, kept=kept), DEVICE, asked)


@pytest.mark.parametrize("options", [dict(positions=False), dict(mask=False, positions=False, tracks=0)], ids=str)
def test_absent_inputs(module, options):
    check(module, problem((3, 129), 16, **options), DEVICE)


@pytest.mark.parametrize("length", [1, 63, 130, 2047, 2049, 65_537, 200_000])
@pytest.mark.parametrize("kept", [None, 0.1])
def test_lengths(module, length, kept):
    check(module, problem((2, length), 16, BFLOAT, HALF, kept=kept), DEVICE)


@pytest.mark.parametrize("channels", [32, 41])
def test_strides(module, channels):
    check(module, strided(problem((3, 11), channels, kept=0.5)), DEVICE)


def test_places_that_are_no_bases(module):
    p = moved(problem((2, 30), 16, kept=0.5), device=DEVICE)
    beyond = torch.tensor([60, -1, 2**62, -(2**62)], device=DEVICE)
    x = p.bases._replace(indices=torch.cat([p.bases.indices, beyond]))
    grad = torch.cat([p.grad, torch.full((4, 16), torch.nan, device=DEVICE)])
    out, alone = module.forward(x, FLOAT), results(module, p)
    assert torch.equal(out[:-4], alone["out"])
    assert not out[[-4, -2]].any() and out[[-3, -1]].isnan().all()
    for got, want in zip(module.backward(grad, x, ALL), list(alone.values())[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kept", [None, 0.3])
def test_same_bits_in_every_run(module, kept):
    p = moved(problem((2, 20_000), 128, BFLOAT, HALF, kept=kept), device=DEVICE)
    first, second = results(module, p), results(module, p)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.skipif(DEVICE == "cpu", reason="the CPU refuses such codes")
def test_codes_above_4_are_read_as_n(module):
    x = moved(problem((2, 30), 16, complement=True), device=DEVICE).bases
    wild = x._replace(codes=torch.where(x.codes == 4, 200, x.codes).to(torch.uint8))
    assert torch.equal(module.forward(x, FLOAT), module.forward(wild, FLOAT))


def test_op(backend):
    p = moved(problem((2, 9), 12, BFLOAT, HALF, kept=0.5), device=DEVICE)
    x = p.bases._replace(mask=p.bases.mask.requires_grad_(), table=p.bases.table.requires_grad_())
    torch.library.opcheck(torch.ops.seq2exp.embed_bases_fwd, (*x, BFLOAT, backend))
    given = x._asdict()

    def loss(mask: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        others = {name: given[name] for name in ("signals", "signal_weight", "positions", "indices")}
        return (embed_bases(x.codes, table, **others, mask=mask, dtype=BFLOAT) * p.grad).float().sum()

    inputs = (x.mask, x.table)
    eager = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))
