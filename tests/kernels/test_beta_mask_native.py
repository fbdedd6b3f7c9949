"""The C++ mask against the float64 oracle: dtypes, lengths, strides, options, every instruction set of this CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from mask_problems import INPUTS, OPTIONS, problem, results
from mask_problems import check as check_implementation

from seq2exp.kernels import _extension, beta_mask, set_backend
from seq2exp.kernels.beta_mask import native, reference

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=f"compiled extension: {_extension.load()}")

SETS = [] if _extension.load() else torch.ops.seq2exp_native.cpu_instruction_sets()


@pytest.fixture(params=SETS)
def isa(request) -> Iterator[str]:
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(request.param)
    yield request.param
    torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def check(p, limit=1e-5) -> None:
    check_implementation(native, p, limit)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("regions", [False, True])
def test_options(isa, options, regions):
    check(problem(regions=regions, **options))


@pytest.mark.parametrize("length", [1, 2, 63, 511, 512, 513, 2049, 20_001])
def test_lengths(isa, length):
    check(problem(length=length, seed=length))


@pytest.mark.slow
def test_full_length():
    check(problem(length=200_000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sample", [False, True])
def test_storage(isa, dtype, sample):
    """Everything inside is float32; the gradients are rounded to the storage once."""
    check(problem(dtype=dtype, sample=sample), limit=4e-3 if dtype == torch.bfloat16 else 5e-4)


def test_mixed_storage_and_other_numbers_of_tracks(isa):
    p = problem()
    p.inputs["signals"] = torch.cat([p.inputs["signals"]] * 2, -1)[..., :5].half()
    p.inputs |= dict(weights=torch.rand(5), betas=torch.rand(5))
    p.inputs["seq_logits"] = p.inputs["seq_logits"].bfloat16()
    check(p, limit=4e-3)


def test_any_strides(isa):
    p = problem(length=600)
    expected = results(native, p)
    for name in ("seq_logits", "signals"):
        x = p.inputs[name]
        spread = torch.full((x.shape[2] + 1, x.shape[0], 2 * x.shape[1] + 1), torch.nan)
        view = spread[1:, :, 1::2].permute(1, 2, 0)
        view.copy_(x)
        p.inputs[name] = view
    p.grads = p.grads._replace(mask=p.grads.mask.t().contiguous().t(), alpha=p.grads.alpha[:, :1].expand(-1, 600))
    expected[1][:] = results(native, p)[1]
    contiguous = p.grads._replace(mask=p.grads.mask.contiguous(), alpha=p.grads.alpha.contiguous())
    p.inputs |= {name: p.inputs[name].contiguous() for name in ("seq_logits", "signals")}
    p.grads = contiguous
    for a, b in zip((*expected[0], *expected[1]), (*results(native, p)[0], *results(native, p)[1]), strict=True):
        assert torch.equal(a, b)


def test_bits_do_not_depend_on_threads_or_batch(isa):
    p = problem(batch=4, length=5_000)
    whole = results(native, p)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threaded = results(native, p)
    finally:
        torch.set_num_threads(before)
    for a, b in zip((*whole[0], *whole[1]), (*threaded[0], *threaded[1]), strict=True):
        assert torch.equal(a, b)
    for row in range(4):
        alone = native.forward(
            **{name: x[row : row + 1] if name not in ("weights", "betas") else x for name, x in p.inputs.items()},
            s=p.settings,
        )[0]
        for name in ("mask", "soft_mask", "alpha", "beta"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole[0], name)[row])


def test_outputs_are_written_whole(isa):
    """Fresh memory that held NaN."""
    p = problem(length=700)
    for _ in range(3):
        poison = [torch.full((2, 700, k), torch.nan) for k in (1, 1, 1, 1, 2, 3)]
        del poison
        out, grads = results(native, p)
        assert all(torch.isfinite(x).all() for x in (*out, *grads))


def test_saved_for_the_backward():
    """At most 24 bytes a base at float32 with three tracks, regions included."""
    p = problem(length=4_096)
    names = ("exclude", "include", "rows")
    saved: dict[int, int] = {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with set_backend("cpu"), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = beta_mask(
            p.inputs["seq_logits"].requires_grad_(), p.inputs["signals"], signal_weights=p.inputs["weights"],
            signal_betas=p.inputs["betas"], **{name: p.inputs[name] for name in names}, beta_min=0.2, signal_scale=1.0,
            prior_mean=0.1, prior_scale=1.0, sample=True, seed=1, hard=True,
        )  # fmt: skip
    assert out.mask.requires_grad
    assert 16 <= sum(saved.values()) / out.mask.numel() <= 24


def test_top_mask(isa):
    g = torch.Generator().manual_seed(0)
    for scores in (
        torch.rand(3, 2_001, generator=g), torch.rand(2, 300, generator=g).round(decimals=1), torch.zeros(1, 64),
        torch.tensor([[1e-42, 0.0, 1e-45, torch.inf, torch.nan, 0.3]]), 0.1 + 1e-7 * torch.rand(1, 5_000, generator=g),
    ):  # fmt: skip
        length = scores.shape[1]
        for k in sorted({0, 1, length // 10, length - 1, length}):
            selected = native.top_mask(scores, k)
            assert torch.equal(selected, reference.top_mask(scores, k)), k
            assert (selected.sum(1) == k).all()


def test_the_backward_without_some_gradients():
    p = problem()
    full = p.grads
    for name in full._fields:
        for grads in (full._replace(**{name: None}), type(full)(*[None] * 6)._replace(**{name: getattr(full, name)})):
            p.grads = grads
            ours, exact = results(native, p)[1], _reference_gradients(p)
            for a, b in zip(ours, exact, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def _reference_gradients(p) -> list[torch.Tensor]:
    inputs = {n: x.double() if x is not None and x.is_floating_point() else x for n, x in p.inputs.items()}
    _, saved, _ = reference.forward(**inputs, s=p.settings)
    return reference.backward(p.grads, *(inputs[n] for n in INPUTS), saved, p.settings, True, True)
