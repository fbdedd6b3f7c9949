"""The published two-module form against autograd, and the one-projection form against it."""

import pytest
import torch

from seq2exp.kernels import ScanWeights, bimamba
from seq2exp.kernels.bimamba import reference

D_MODEL, D_INNER, STATE, DT_RANK, WIDTH = 3, 6, 4, 2, 4


def weights(g, width=WIDTH):
    def randn(*shape):
        return (0.4 * torch.randn(*shape, generator=g, dtype=torch.float64)).requires_grad_()

    return ScanWeights(
        randn(D_INNER, 1, width), randn(D_INNER), randn(DT_RANK + 2 * STATE, D_INNER), randn(D_INNER, DT_RANK),
        randn(D_INNER), randn(D_INNER, STATE), randn(D_INNER),
    )  # fmt: skip


def case(untied=False, batch=2, length=21, seed=0, width=WIDTH):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return (0.4 * torch.randn(*shape, generator=g, dtype=torch.float64)).requires_grad_()

    def projections():
        return randn(2 * D_INNER, D_MODEL), randn(D_MODEL, D_INNER)

    fixed = (randn(batch, length, D_MODEL), *projections(), weights(g, width), weights(g, width))
    return fixed, projections() if untied else None


def leaves(fixed, rev_proj):
    h, in_proj, out_proj, fwd, rev = fixed
    return [h, in_proj, out_proj, *fwd, *rev, *(rev_proj or ())]


OPTIONS = [
    pytest.param(
        untied, strategy, cu,
        id=f"{'untied' if untied else 'tied'}-{strategy}-{'dense' if cu is None else 'packed'}",
    )
    for untied in (False, True)
    for strategy in ("add", "ew_multiply")
    for cu in (None, torch.tensor([0, 1, 3, 3, 12, 21]))
]  # fmt: skip


@pytest.mark.parametrize("untied,strategy,cu", OPTIONS)
def test_equals_the_published_form(untied, strategy, cu):
    fixed, rev_proj = case(untied, batch=1 if cu is not None else 2)
    out = bimamba(*fixed, rev_proj=rev_proj, strategy=strategy, cu_seqlens=cu)
    expected = reference.bimamba_forward(*fixed, rev_proj, strategy, cu)
    assert torch.allclose(out, expected, rtol=1e-10, atol=1e-10)

    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    parameters = leaves(fixed, rev_proj)
    by_autograd = torch.autograd.grad(expected, parameters, g)
    with torch.no_grad():
        r = reference.bimamba_backward(g, *fixed, rev_proj, strategy, cu)
    by_hand = [r.h, r.in_proj, r.out_proj, *r.fwd, *r.rev, *(r.rev_proj or ())]
    ours = torch.autograd.grad(out, parameters, g)
    for i, (a, b, c) in enumerate(zip(by_autograd, by_hand, ours, strict=True)):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), f"reference backward, input {i}"
        assert torch.allclose(a, c, rtol=1e-9, atol=1e-9), f"bimamba, input {i}"


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_windows_shorter_than_the_convolution(length, width):
    fixed, _ = case(length=length, width=width)
    assert torch.allclose(bimamba(*fixed), reference.bimamba_forward(*fixed))


def test_packed_equals_separate():
    fixed, _ = case(batch=1)
    cu = torch.tensor([0, 5, 21])
    packed = bimamba(*fixed, cu_seqlens=cu)
    parts = [bimamba(fixed[0][:, a:b], *fixed[1:]) for a, b in ((0, 5), (5, 21))]
    assert torch.allclose(packed, torch.cat(parts, 1), rtol=1e-12, atol=1e-12)


def test_gradcheck():
    fixed, _ = case(batch=1, length=9)

    def f(h, in_proj, out_proj, *rest):
        return bimamba(h, in_proj, out_proj, ScanWeights(*rest[:7]), ScanWeights(*rest[7:]))

    assert torch.autograd.gradcheck(f, tuple(leaves(fixed, None)), fast_mode=True)


def test_autocast_and_compile():
    fixed, _ = case(length=64)
    fixed = [x.detach().float() if torch.is_tensor(x) else ScanWeights(*(w.detach().float() for w in x)) for x in fixed]
    full = bimamba(*fixed)
    compiled = torch.compile(bimamba, fullgraph=True, backend="aot_eager")(*fixed)
    assert torch.allclose(full, compiled, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = bimamba(*fixed)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.03


def test_bad_input():
    fixed, _ = case()
    with pytest.raises(ValueError, match="strategy 'sum' is none of add, ew_multiply"):
        bimamba(*fixed, strategy="sum")
    with pytest.raises(ValueError, match=r"fwd.D must be \(6,\)"):
        bimamba(*fixed[:3], fixed[3]._replace(D=torch.zeros(5)), fixed[4])
