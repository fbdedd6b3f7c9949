"""The oracle against autograd, the torch path against the oracle, the registered op."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from seq2exp.kernels import selective_scan, set_backend
from seq2exp.kernels.selective_scan import chunked, reference


def inputs(batch=2, dim=6, length=37, state=3, groups=2, dtype=torch.float64, seed=0, **absent):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = dict(
        u=randn(batch, dim, length),
        delta=randn(batch, dim, length),
        A=-torch.exp(randn(dim, state)),
        B=randn(batch, groups, state, length),
        C=randn(batch, groups, state, length),
        D=randn(dim),
        z=randn(batch, dim, length),
        delta_bias=randn(dim),
    )
    x = {k: v.to(dtype) for k, v in x.items()}
    return {k: None if absent.get(k) is False else v for k, v in x.items()}


OFFSETS = torch.tensor([0, 1, 12, 12, 30, 37])


def composed(x, softplus, reverse, cu_seqlens):
    """The scan by autograd, sequence by sequence."""
    bounds = [0, x["u"].shape[2]] if cu_seqlens is None else cu_seqlens.tolist()
    outs = []
    for a, b in itertools.pairwise(bounds):
        dt = x["delta"][..., a:b]
        dt = dt if x["delta_bias"] is None else dt + x["delta_bias"][:, None]
        dt = F.softplus(dt) if softplus else dt
        u = x["u"][..., a:b]
        B, C = (x[k][..., a:b].repeat_interleave(u.shape[1] // x[k].shape[1], 1) for k in "BC")
        h, ys = 0, {}
        for t in range(b - a - 1, -1, -1) if reverse else range(b - a):
            h = torch.exp(dt[..., t, None] * x["A"]) * h + (dt * u)[..., t, None] * B[..., t]
            ys[t] = (h * C[..., t]).sum(-1)
        if b > a:
            y = torch.stack([ys[t] for t in range(b - a)], -1)
            y = y if x["D"] is None else y + x["D"][:, None] * u
            outs.append(y if x["z"] is None else y * F.silu(x["z"][..., a:b]))
    return torch.cat(outs, -1)


CASES = list(itertools.product([False, True], [False, True], [None, OFFSETS], [True, False]))


@pytest.mark.parametrize("softplus,reverse,cu,optional", CASES)
def test_reference_backward_is_the_gradient(softplus, reverse, cu, optional):
    x = inputs(batch=1 if cu is not None else 2, D=optional, z=optional, delta_bias=optional)
    leaves = {k: v.requires_grad_() for k, v in x.items() if v is not None}
    expected = composed(x, softplus, reverse, cu)
    out, _ = reference.selective_scan_forward(**x, delta_softplus=softplus, reverse=reverse, cu_seqlens=cu)
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-12)
    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    expected_grads = torch.autograd.grad(expected, list(leaves.values()), g)
    with torch.no_grad():
        grads = reference.selective_scan_backward(g, **x, delta_softplus=softplus, reverse=reverse, cu_seqlens=cu)
    for name, e in zip(leaves, expected_grads, strict=True):
        assert torch.allclose(getattr(grads, name), e, rtol=1e-10, atol=1e-10), name


@pytest.mark.parametrize("softplus,reverse,cu,optional", CASES)
@pytest.mark.parametrize("tile_bytes", [1, 40_000, 1 << 28])
def test_chunked_equals_reference(monkeypatch, softplus, reverse, cu, optional, tile_bytes):
    monkeypatch.setattr(chunked, "TILE_BYTES", tile_bytes)
    x = inputs(batch=1 if cu is not None else 2, D=optional, z=optional, delta_bias=optional)
    args = (*x.values(), softplus, reverse, cu)
    out, last, states = chunked.forward(*args)
    expected, expected_last = reference.selective_scan_forward(*args)
    assert torch.allclose(out, expected, rtol=1e-11, atol=1e-11)
    assert torch.allclose(last, expected_last, rtol=1e-11, atol=1e-11)
    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    for name, a, e in zip(
        reference.ScanGrads._fields, chunked.backward(g, *args, states), reference.selective_scan_backward(g, *args),
        strict=True,
    ):  # fmt: skip
        assert (a is None) == (e is None), name
        assert e is None or torch.allclose(a, e, rtol=1e-10, atol=1e-10), name


@pytest.mark.parametrize("length", [1, 2, 3, 63, 130, 1000])
@pytest.mark.parametrize("groups", [1, 3])
def test_chunked_lengths(length, groups):
    x = inputs(length=length, groups=groups)
    out, last, _ = chunked.forward(*x.values(), True, False, None)
    expected, expected_last = reference.selective_scan_forward(**x, delta_softplus=True)
    assert torch.allclose(out, expected) and torch.allclose(last, expected_last)


@pytest.mark.parametrize("reverse,cu", [(False, None), (True, OFFSETS)])
def test_gradcheck(reverse, cu):
    x = inputs(batch=1, dim=2, groups=1, length=37)
    leaves = {k: v.requires_grad_() for k, v in x.items()}

    def f(*values):
        return selective_scan(*values, delta_softplus=True, reverse=reverse, cu_seqlens=cu)

    assert torch.autograd.gradcheck(f, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_opcheck(backend):
    x = {k: v.requires_grad_() for k, v in inputs(dtype=torch.float32).items()}
    from seq2exp.kernels.backend import resolve

    with set_backend(backend):
        name = resolve("selective_scan", torch.device("cpu"), torch.float32)
    args = (*x.values(), True, True, None, name)
    torch.library.opcheck(torch.ops.seq2exp.selective_scan_fwd.default, args)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_compile_fullgraph(backend):
    x = {k: v.requires_grad_() for k, v in inputs(dtype=torch.float32, length=130).items()}

    def f(*values):
        return selective_scan(*values, delta_softplus=True).square().sum()

    with set_backend(backend):
        eager = torch.autograd.grad(f(*x.values()), list(x.values()))
        compiled = torch.autograd.grad(
            torch.compile(f, fullgraph=True, backend="aot_eager")(*x.values()), list(x.values())
        )
    for name, a, b in zip(x, compiled, eager, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5), name


def test_forms_of_B_and_C_and_last_state():
    x = inputs(groups=1)
    constant = torch.randn(6, 3, dtype=torch.float64)
    grouped = constant[None, :, :, None].expand(2, 6, 3, 37)
    y3 = selective_scan(x["u"], x["delta"], x["A"], x["B"][:, 0], constant, delta_softplus=True)
    y4, last = selective_scan(x["u"], x["delta"], x["A"], x["B"], grouped, None, None, None, True, True)
    assert torch.allclose(y3, y4) and last.shape == (2, 6, 3)
    assert not last.requires_grad


def test_empty_length():
    x = inputs(length=0)
    out, last = selective_scan(*x.values(), return_last_state=True)
    assert out.shape == (2, 6, 0) and torch.equal(last, torch.zeros(2, 6, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    "change,error,words",
    [
        (dict(delta=torch.zeros(2, 6, 36)), ValueError, "delta has shape"),
        (dict(A=torch.zeros(6, 3, dtype=torch.complex64)), TypeError, "A is complex"),
        (dict(A=torch.zeros(6, 300)), ValueError, "outside 1..256"),
        (dict(B=torch.zeros(2, 4, 3, 37)), ValueError, "groups dividing 6"),
        (dict(z=torch.zeros(2, 6, 37, dtype=torch.bfloat16)), TypeError, "z is torch.bfloat16"),
        (dict(u=torch.zeros(2, 6, 37, dtype=torch.int32)), TypeError, "u is torch.int32"),
        (dict(D=[1.0]), TypeError, "D must be a tensor"),
        (dict(D=torch.zeros(5)), ValueError, r"D must be \(dim,\)"),
        (dict(cu_seqlens=torch.tensor([0, 37])), ValueError, "batch 1"),
        (dict(cu_seqlens=torch.tensor([0.0, 37.0])), TypeError, "int32 or int64"),
    ],
)
def test_bad_input(change, error, words):
    x = {**inputs(dtype=torch.float32), **change}
    with pytest.raises(error, match=words):
        selective_scan(**x)


@pytest.mark.parametrize("offsets", [[0, 20, 10, 37], [0, 30], [1, 37]])
def test_bad_offsets(offsets):
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to L = 37"):
        selective_scan(**inputs(batch=1), cu_seqlens=torch.tensor(offsets))


@pytest.mark.slow
def test_chunked_temporaries_at_full_length():
    """Forward and backward at L = 200,000, 256 channels, 16 states: under 1 GB beside inputs and results."""
    probe = """
import resource, torch
from seq2exp.kernels.selective_scan import chunked
u, delta = torch.randn(1, 256, 200_000), torch.rand(1, 256, 200_000)
A, B, C = -torch.rand(256, 16), torch.randn(1, 1, 16, 200_000), torch.randn(1, 1, 16, 200_000)
args = (u, delta, A, B, C, None, None, None, True, False, None)
now = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = now()
out, last, states = chunked.forward(*args)
print(peak() - before - (out.nbytes + states.nbytes))
before = now()
grads = chunked.backward(out, *args, states)
print(peak() - before - sum(g.nbytes for g in grads if g is not None))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    forward, backward = (int(line) / 2**30 for line in done.stdout.split())
    assert forward < 1 and backward < 1, (forward, backward)
