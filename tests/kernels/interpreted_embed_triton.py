"""embed_bases' Triton kernels in Triton's interpreter, against the float64 oracle. Needs TRITON_INTERPRET=1 from the
start: test_embed_triton.py does that.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from embed_problems import ALL, DTYPES, FLOAT, check, problem, results, strided
from triton_interpreter import backwards, races

from seq2exp.kernels import set_backend
from seq2exp.kernels.embed import embed_bases
from seq2exp.kernels.embed import triton as module
from seq2exp.kernels.embed.bases import Wanted


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kept", [None, 0.4])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes(dtypes, kept):
    check(module, problem((2, 19), 20, *dtypes, kept=kept, padding=3 if kept else 0))


@pytest.mark.parametrize("channels", [1, 16, 127, 128, 257, 600])
def test_channels(channels):
    check(module, problem((2, 19), channels))


@pytest.mark.parametrize("tracks", [0, 1, 12])
def test_tracks(tracks):
    check(module, problem(tracks=tracks, complement=True))


@pytest.mark.parametrize("asked", [Wanted(False, False, False), Wanted(False, True, True)])
@pytest.mark.parametrize("kept", [None, 0.4])
def test_gradients_asked_for(asked, kept):
    check(module, problem((3, 29), 16, kept=kept), asked=asked)


@pytest.mark.parametrize("options", [dict(positions=False), dict(mask=False, positions=False, tracks=0)], ids=str)
def test_absent_inputs(options):
    check(module, problem(**options))


def test_strides():
    check(module, strided(problem((3, 11), 20, kept=0.5)))


def test_places_that_are_no_bases():
    p = problem((2, 30), 20, kept=0.5)
    x = p.bases._replace(indices=torch.cat([p.bases.indices, torch.tensor([60, -1, 2**62, -(2**62)])]))
    grad = torch.cat([p.grad, torch.full((4, 20), torch.nan)])
    out, alone = module.forward(x, FLOAT), results(module, p)
    assert torch.equal(out[:-4], alone["out"])
    assert not out[[-4, -2]].any() and out[[-3, -1]].isnan().all()
    for got, want in zip(module.backward(grad, x, ALL), list(alone.values())[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kept", [None, 0.4])
def test_same_bits_in_every_order_and_no_races(kept):
    p = problem((2, 70), 300, kept=kept)
    with races() as found:
        forwards = results(module, p)
    assert not found
    with backwards():
        assert all(torch.equal(x, forwards[name]) for name, x in results(module, p).items())


def test_several_tiles(monkeypatch):
    monkeypatch.setattr(module, "PROGRAMS", 1)
    check(module, problem((2, 90), 16))
    check(module, problem((1, 1_100), 4), asked=Wanted(False, True, False))


def test_op():
    p = problem((2, 9), 12)
    x = p.bases
    given = dict(signals=x.signals, signal_weight=x.signal_weight, mask=x.mask.requires_grad_())
    found = {}
    for backend in ("triton", "reference"):
        with set_backend(backend):
            out = embed_bases(x.codes, x.table, **given)
            found[backend] = out, *torch.autograd.grad(out, x.mask, p.grad)
    for got, want in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, want)
