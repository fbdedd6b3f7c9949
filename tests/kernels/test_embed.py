"""embed_bases: the oracle, the C++ kernels against it for every instruction set of this CPU, and the op."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from embed_problems import ALL, BFLOAT, CHANNELS, DOUBLE, DTYPES, FLOAT, HALF, check, moved, problem, results, strided
from memory import saved_bytes
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels import _extension, set_backend
from seq2exp.kernels.embed import embed_bases, native, reference
from seq2exp.kernels.embed.bases import Bases, Wanted

NO_EXTENSION = _extension.load()
SETS = [] if NO_EXTENSION else torch.ops.seq2exp_native.cpu_instruction_sets()
INPUTS = ("table", "signals", "signal_weight", "positions", "mask")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["reference", *SETS])
def module(request) -> Iterator[object]:
    """The plain PyTorch form, and the C++ kernels with each instruction set."""
    if request.param == "reference":
        yield reference
        return
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(request.param)
    yield native
    torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def run(x: Bases, dtype: torch.dtype | None = None) -> Tensor:
    given = x._asdict()
    return embed_bases(given.pop("codes"), given.pop("table"), **given, dtype=dtype)


def composed(x: Bases) -> Tensor:
    """From torch's own operators."""
    codes = torch.where(x.codes < 4, 3 - x.codes, x.codes) if x.complement else x.codes
    out = F.embedding(codes.long(), x.table)
    if x.positions is not None:
        out = out + x.positions
    if x.signals is not None:
        out = out + F.linear(x.signals.to(out.dtype), x.signal_weight)
    if x.mask is not None:
        out = out * x.mask[..., None]
    return out if x.indices is None else out.flatten(0, 1)[x.indices]


def leaves(x: Bases) -> tuple[Bases, list[Tensor]]:
    """With every floating point input a leaf, and those."""
    fresh = {name: getattr(x, name).clone().requires_grad_() for name in INPUTS if getattr(x, name) is not None}
    return x._replace(**fresh), list(fresh.values())


OPTIONS = [
    dict(),
    dict(kept=0.4),
    dict(complement=True, positions=False),
    dict(tracks=0),
    dict(mask=False, kept=0.4),
    dict(tracks=0, positions=False, mask=False),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_oracle(options):
    """Against torch's own operators and their autograd; and by finite differences."""
    p = moved(problem((2, 5), 3, **options), dtype=DOUBLE)
    x, inputs = leaves(p.bases)
    ours, theirs = run(x), composed(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for got, want in zip(
        torch.autograd.grad(ours, inputs, p.grad), torch.autograd.grad(theirs, inputs, p.grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    names = [name for name in INPUTS if getattr(x, name) is not None]
    assert torch.autograd.gradcheck(lambda *given: run(x._replace(**dict(zip(names, given, strict=True)))), inputs)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes_and_channels(module, dtypes, channels):
    check(module, problem((2, 19), channels, *dtypes))
    check(module, problem((2, 19), channels, *dtypes, kept=0.3, padding=3))


@pytest.mark.parametrize("options", [o | {"d": 20} for o in OPTIONS], ids=str)
@pytest.mark.parametrize("asked", [None, Wanted(False, False, False), Wanted(False, True, False)], ids=str)
def test_absent_inputs_and_gradients(module, options, asked):
    p = problem((3, 41), **options)
    asked = asked and Wanted(
        *(a and name for a, name in zip(asked, (True, p.bases.mask is not None, True), strict=True))
    )
    check(module, p, asked=asked)


@pytest.mark.parametrize("tracks", [1, 2, 5, 8, 17, 33])
def test_tracks(module, tracks):
    check(module, problem(tracks=tracks, d=17))


@pytest.mark.parametrize("length", [1, 63, 130, 2047, 2049, 65_537, 200_000])
@pytest.mark.parametrize("kept", [None, 0.1])
def test_lengths(length, kept):
    if NO_EXTENSION:
        pytest.skip(NO_EXTENSION)
    check(native, problem((2 if length < 10_000 else 1, length), 5, signal_dtype=HALF, kept=kept))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("kept", [None, 0.5])
def test_strides(module, dtypes, kept):
    check(module, strided(problem((3, 11), 20, *dtypes, kept=kept)))


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF], ids=str)
def test_places_that_are_no_bases(module, dtype):
    """Beyond the bases: zeros; negative: NaN; neither has a gradient, whatever comes back for it."""
    p = problem((2, 30), 20, dtype, kept=0.5)
    x = p.bases._replace(indices=torch.cat([p.bases.indices, torch.tensor([60, -1, 2**62, -(2**62)])]))
    grad = torch.cat([p.grad, torch.full((4, 20), torch.nan, dtype=dtype)])
    out, alone = module.forward(x, dtype), results(module, p)
    assert torch.equal(out[:-4], alone["out"])
    assert not out[[-4, -2]].any() and out[[-3, -1]].isnan().all()
    for got, want in zip(module.backward(grad, x, ALL), list(alone.values())[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_overflowed_selection(module):
    p = problem((2, 30), 20)
    x = p.bases._replace(indices=torch.full((7,), -1))
    assert module.forward(x, FLOAT).isnan().all()
    for got in module.backward(torch.ones(7, 20), x, ALL):
        assert not got.any()


@pytest.mark.skipif(NO_EXTENSION is not None, reason=f"compiled extension: {NO_EXTENSION}")
@pytest.mark.parametrize(
    "options",
    [dict(shape=(2, 3_000)), dict(shape=(2, 3_000), kept=0.5), dict(shape=(1, 70_000), d=3, positions=False)],
    ids=str,
)
def test_same_bits_for_any_number_of_threads(options):
    p = problem(**options)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            runs.append(results(native, p))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(x is None or torch.equal(other[name], x) for name, x in runs[0].items())


@pytest.mark.parametrize("kept", [None, 0.3])
def test_many_equal_gradients(module, kept):
    """Sums over many bases stay exact to 1e-5: gradients of a mean are all of one sign."""
    p = problem((2, 50_000), 4, kept=kept)
    p = p._replace(grad=torch.full_like(p.grad, 1e-3) + 1e-4 * p.grad)
    found, exact = results(module, p), results(reference, moved(p, dtype=DOUBLE))
    for name in ("table", "signal_weight"):
        assert (found[name] - exact[name]).norm() / exact[name].norm() < 1e-5, name


@pytest.fixture(params=["reference", *(["cpu"] if not NO_EXTENSION else [])])
def backend(request) -> Iterator[str]:
    with set_backend(request.param):
        yield request.param


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_opcheck(backend, options):
    p = problem((2, 9), 12, BFLOAT, **options)
    x, _ = leaves(p.bases)
    torch.library.opcheck(torch.ops.seq2exp.embed_bases_fwd, (*x, BFLOAT, backend))
    asked = (x.positions is not None, x.mask is not None, x.signals is not None)
    torch.library.opcheck(torch.ops.seq2exp.embed_bases_bwd, (p.grad, *p.bases, *asked, backend))


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_compile(backend, options):
    p = problem((2, 9), 12, BFLOAT, HALF, **options)
    x, inputs = leaves(p.bases)

    def loss(x: Bases) -> Tensor:
        return (run(x, BFLOAT) * p.grad).float().sum()

    eager = torch.autograd.grad(loss(x), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), inputs)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(eager, compiled, strict=True))


def test_gradients_have_the_dtypes_of_their_inputs(backend):
    p = problem((2, 9), 12, signal_dtype=HALF)
    x = p.bases._replace(
        table=p.bases.table.to(BFLOAT), positions=p.bases.positions.to(BFLOAT), mask=p.bases.mask.to(HALF)
    )
    x, inputs = leaves(x)
    out = run(x)
    out.float().sum().backward()
    assert out.dtype == BFLOAT and [t.grad.dtype for t in inputs] == [t.dtype for t in inputs]


@pytest.mark.parametrize("kept", [None, 0.3])
def test_dtype_of_the_output(backend, kept):
    x = problem((2, 9), 12, kept=kept).bases
    for dtype in (None, FLOAT, BFLOAT, HALF):
        assert run(x, dtype).dtype == (dtype or FLOAT)
    signals = x._replace(signals=x.signals.double())
    torch.testing.assert_close(run(signals), run(x))


def test_float64():
    x = problem((2, 9), 12).bases
    assert run(x, DOUBLE).dtype == DOUBLE
    x = x._replace(table=x.table.double())
    assert run(x).dtype == DOUBLE and run(x, FLOAT).dtype == FLOAT


@pytest.mark.parametrize("options", [dict(kept=0.3), dict(), dict(kept=0.3, positions=False)], ids=str)
def test_only_what_is_needed_is_saved(backend, options):
    """Per base a code, 6 bytes of signals and 4 of the mask, per selected base 8 of its index; and small weights."""
    p = problem((2, 5_000), 12, BFLOAT, HALF, **options)
    x, _ = leaves(p.bases)
    x = x._replace(signals=p.bases.signals)
    weights = 5 * 12 * 4 + 12 * 3 * 4
    indices = 0 if x.indices is None else x.indices.nbytes
    assert saved_bytes(lambda: run(x, BFLOAT)) <= 10_000 * 7 + indices + weights  # the mask is a leaf here
    assert saved_bytes(lambda: run(x._replace(mask=p.bases.mask), BFLOAT)) <= 10_000 * 11 + indices + weights


def test_autocast_changes_nothing(backend):
    x = problem((2, 9), 12).bases
    plain = run(x)
    with torch.autocast("cpu", torch.bfloat16):
        under = run(x)
    assert torch.equal(plain, under) and plain.dtype == under.dtype


def test_batches_are_independent(backend):
    x = problem((3, 9), 12).bases
    one = x._replace(codes=x.codes[1:2], signals=x.signals[1:2], mask=x.mask[1:2])
    assert torch.equal(run(x)[1:2], run(one))


@pytest.mark.parametrize("shape, kept", [((0, 4), None), ((2, 4), 0)], ids=str)
def test_no_rows(backend, shape, kept):
    p = problem(shape)
    x, inputs = leaves(p.bases._replace(indices=None if kept is None else torch.zeros(0, dtype=torch.int64)))
    out = run(x)
    out.sum().backward()
    assert out.shape == x.out_shape and not any(t.grad.any() for t in inputs)


def refused(error: type[Exception], message: str, **changes: object) -> None:
    given = problem((2, 9), 12).bases._asdict() | changes
    with pytest.raises(error, match=message):
        embed_bases(given.pop("codes"), given.pop("table"), **given)


def test_refused_input(backend):
    zeros = torch.zeros
    codes = torch.full((2, 9), 3, dtype=torch.uint8)
    codes[1, 8] = 7
    refused(ValueError, "codes holds 7; codes are A C G T N = 0..4", codes=codes)
    refused(TypeError, "codes must be a tensor, not list", codes=[1])
    refused(TypeError, "codes is torch.int64; torch.uint8 is needed", codes=codes.long())
    refused(ValueError, r"codes must be \(batch, L\), got \(18,\)", codes=codes.flatten())
    refused(ValueError, r"table must be \(5, d\), .*got \(4, 12\)", table=zeros(4, 12))
    refused(TypeError, "table is torch.int64; use float32", table=zeros(5, 12).long())
    refused(TypeError, "dtype is torch.int8; use float32", dtype=torch.int8)
    refused(ValueError, "signals is given without signal_weight; give both", signal_weight=None)
    refused(ValueError, "signal_weight is given without signals; give both", signals=None)
    refused(ValueError, r"signals must have shape \(2, 9, 3\), got \(2, 8, 3\)", signals=zeros(2, 8, 3))
    refused(ValueError, r"signals must have shape \(2, 9, 0\), got \(\)", signals=zeros(()))
    refused(ValueError, r"signal_weight must have shape \(12, 3\), got \(3, 12\)", signal_weight=zeros(3, 12))
    refused(ValueError, r"positions must have shape \(9, 12\), got \(8, 12\)", positions=zeros(8, 12))
    refused(ValueError, r"mask must have shape \(2, 9\), got \(2, 9, 1\)", mask=zeros(2, 9, 1))
    refused(TypeError, "mask is torch.bool; use float32", mask=zeros(2, 9).bool())
    refused(TypeError, "indices is torch.int32; torch.int64 is needed", indices=zeros(3, dtype=torch.int32))
    refused(ValueError, r"indices must be \(total,\), got \(1, 3\)", indices=zeros(1, 3, dtype=torch.int64))
    refused(ValueError, "mask is on meta, codes on cpu", mask=zeros(2, 9, device="meta"))
