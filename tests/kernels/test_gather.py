"""pack_selected and unpack_selected: the oracle, the C++ kernels against it, and the ops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gather_problems import (
    BFLOAT,
    CHANNELS,
    DTYPES,
    FLOAT,
    HALF,
    LENGTHS,
    SHARES,
    check,
    check_overflow,
    problem,
    results,
    spread,
    strided,
)
from torch import Tensor

from seq2exp.kernels import _extension, pack_selected, set_backend, unpack_selected
from seq2exp.kernels.gather import check_capacity, native, reference, select

NO_EXTENSION = _extension.load()
MODULES = [reference] if NO_EXTENSION else [reference, native]
CASES = {
    "some": [[0, 1, 0, 0.5, 1], [1, 0, 0, 0, 2]],
    "an empty row": [[0, 0, 0, 0, 0], [1, 0, 1, 0, 0]],
    "a full row": [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "nothing": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "NaN and the smallest numbers": [[float("nan"), -0.0, 1e-45, 0, 0], [0, 0, -1e-40, 0, 0]],
}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["reference", *(["cpu"] if not NO_EXTENSION else [])])
def backend(request) -> Iterator[str]:
    with set_backend(request.param):
        yield request.param


@pytest.mark.parametrize("capacity", [None, 10])
@pytest.mark.parametrize("name", CASES)
def test_base_by_base(backend, name, capacity):
    mask = torch.tensor(CASES[name], dtype=FLOAT)
    x = torch.randn(2, 5, 3)
    packed = pack_selected(x, mask, capacity=capacity)
    kept = [(b, j) for b in range(2) for j in range(5) if mask[b, j] != 0]
    padding = 0 if capacity is None else capacity - len(kept)
    assert packed.indices.tolist() == [b * 5 + j for b, j in kept] + [10] * padding
    ends = [sum(b == 0 for b, _ in kept), len(kept)]
    assert packed.cu_seqlens.tolist() == [0, *ends, *([] if capacity is None else [capacity])]
    for value, (b, j) in zip(packed.values, kept, strict=False):
        torch.testing.assert_close(value, x[b, j] * mask[b, j], rtol=0, atol=0, equal_nan=True)
    assert not packed.values[len(kept) :].any()
    back = unpack_selected(*packed, mask.shape)
    torch.testing.assert_close(back, x * mask[..., None], rtol=0, atol=0, equal_nan=True)
    again = select(mask, capacity=capacity)
    assert torch.equal(again.indices, packed.indices) and torch.equal(again.cu_seqlens, packed.cu_seqlens)


@pytest.mark.parametrize("capacity", [None, 10])
@pytest.mark.parametrize("name", list(CASES)[:-1])
def test_gradients_of_the_oracle(name, capacity):
    """Against the composed product, whose only other gradient is that of the mask where it is 0; by differences too."""
    mask = torch.tensor(CASES[name], dtype=torch.float64)
    kept = mask != 0
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    mask.requires_grad_()
    packed = pack_selected(x, mask, capacity=capacity)
    g = torch.randn_like(packed.values)
    dense = (x * mask[..., None])[kept]
    for ours, expected in zip(
        torch.autograd.grad(packed.values, (x, mask), g), torch.autograd.grad(dense, (x, mask), g[: len(dense)]),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, expected, rtol=1e-14, atol=1e-14)
    if kept.any():
        pack = torch.ops.seq2exp.pack_fwd
        assert torch.autograd.gradcheck(lambda x, mask: pack(x, mask, packed.indices, "reference"), (x, mask))
        v = packed.values.detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda v: unpack_selected(v, packed.indices, packed.cu_seqlens, (2, 5)), v)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_dtypes(module, dtypes):
    check(module, problem(3, 65, 20, *dtypes))
    check(module, problem(3, 65, 20, *dtypes), capacity=150)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("module", MODULES)
def test_lengths(module, length, share):
    p = problem(3, length, 5, share=share)
    check(module, p)
    check(module, p, capacity=3 * length)


@pytest.mark.parametrize(
    "shape", [(2, 65_537, 3), (1, 200_000, 8), (70_000, 1, 2), (1, 4_096, 1), (2, 8_193, 1)], ids=str
)
@pytest.mark.parametrize("module", MODULES)
def test_long_and_many_rows(module, shape):
    check(module, problem(*shape, share=0.1))


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("module", MODULES)
def test_channels(module, channels, dtype):
    check(module, problem(2, 33, channels, dtype))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [strided, spread])
@pytest.mark.parametrize("module", MODULES)
def test_strides(module, layout, dtypes):
    check(module, layout(problem(3, 41, 20, *dtypes)))
    check(module, layout(problem(3, 41, 7, *dtypes)), capacity=100)


@pytest.mark.parametrize("module", MODULES)
def test_overflow(module):
    check_overflow(module)


@pytest.mark.skipif(NO_EXTENSION is not None, reason=f"compiled extension: {NO_EXTENSION}")
@pytest.mark.parametrize("shape", [(2, 30_000, 24), (1, 10_000, 1000), (70_000, 1, 3)], ids=str)
def test_same_bits_for_any_number_of_threads(shape):
    p = problem(*shape)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            runs.append(results(native, p))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], x) for name, x in runs[0].items())


def test_too_small_a_capacity_is_refused_on_the_cpu(backend):
    mask = problem().mask
    needed = int(mask.count_nonzero())
    check_capacity(mask, needed)
    message = f"the mask selects {needed} bases and capacity is {needed - 1}: pass capacity={needed} or more"
    for call in (
        lambda: check_capacity(mask, needed - 1),
        lambda: select(mask, capacity=needed - 1),
        lambda: pack_selected(mask[..., None], mask, capacity=needed - 1),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("capacity", [None, 100])
def test_opcheck(backend, capacity):
    p = problem(2, 37, 5)
    torch.library.opcheck(torch.ops.seq2exp.select, (p.mask, capacity, backend))
    indices, _ = select(p.mask, capacity=capacity)
    x, mask = p.x.requires_grad_(), p.mask.requires_grad_()
    torch.library.opcheck(torch.ops.seq2exp.pack_fwd, (x, mask, indices, backend))
    values = torch.randn(len(indices), 5)
    torch.library.opcheck(torch.ops.seq2exp.pack_bwd, (values, p.x.detach(), mask.detach(), indices, backend))
    torch.library.opcheck(torch.ops.seq2exp.unpack_fwd, (values.requires_grad_(), indices, 2, 37, backend))
    torch.library.opcheck(torch.ops.seq2exp.unpack_bwd, (p.grad, indices, backend))


@pytest.mark.parametrize("capacity", [None, 100])
def test_compile(backend, capacity):
    """One graph; with a capacity every shape of it is known, so that one compilation serves every selection."""

    def both(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_selected(x, mask, capacity=capacity)
        return packed.values, unpack_selected(packed.values.sin(), packed.indices, packed.cu_seqlens, mask.shape)

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=False, backend="aot_eager")
    for seed in range(3):
        p = problem(2, 37, 5, seed=seed)
        inputs = (p.x.requires_grad_(), p.mask.requires_grad_())
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            found, expected = compiled(*inputs), both(*inputs)
        grads = [
            torch.autograd.grad((values.cos().sum() + (back * p.grad).sum()), inputs)
            for values, back in (found, expected)
        ]
        for ours, want in zip((*found, *grads[0]), (*expected, *grads[1]), strict=True):
            torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("capacity", [None, 10])
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)], ids=str)
def test_no_bases(backend, shape, capacity):
    x, mask = torch.zeros(shape, requires_grad=True), torch.zeros(shape[:2], requires_grad=True)
    packed = pack_selected(x, mask, capacity=capacity)
    assert packed.values.shape == (capacity or 0, 3) and not packed.values.any()
    assert packed.cu_seqlens.tolist() == [0] * (shape[0] + 1) + [capacity] * (capacity is not None)
    back = unpack_selected(*packed, shape[:2])
    assert back.shape == shape
    (back.sum() + packed.values.sum()).backward()
    assert x.grad.shape == shape and mask.grad.shape == shape[:2]


def test_only_inputs_and_indices_are_saved(backend):
    p = problem(2, 50, 12, BFLOAT)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        packed = pack_selected(p.x.requires_grad_(), p.mask.requires_grad_())
    assert sum(x.nbytes for x in saved) == p.x.nbytes + p.mask.nbytes + packed.indices.nbytes


def test_gradients_have_the_dtypes_of_their_inputs(backend):
    p = problem(2, 50, 12, BFLOAT, HALF)
    x, mask = p.x.requires_grad_(), p.mask.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        packed = pack_selected(x, mask)
    packed.values.float().sum().backward()
    assert packed.values.dtype == x.grad.dtype == BFLOAT and mask.grad.dtype == HALF


def test_float64_takes_the_reference():
    p = problem(2, 5, 3)
    assert pack_selected(p.x.double(), p.mask).values.dtype == torch.float64
    assert pack_selected(p.x, p.mask.double()).values.dtype == FLOAT


def test_refused_input():
    x, mask = torch.zeros(2, 5, 3), torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"mask \(batch, L\), got \(2, 5, 3\) and \(2, 4\)"):
        pack_selected(x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"select: mask must be \(batch, L\), got \(2,\)"):
        select(torch.zeros(2))
    with pytest.raises(ValueError, match="d at least 1"):
        pack_selected(x[..., :0], mask)
    with pytest.raises(TypeError, match=r"mask is torch.bool; a floating point mask is needed \(mask.float\(\)\)"):
        pack_selected(x, mask.bool())
    with pytest.raises(TypeError, match=r"x is torch\.int64; use float32"):
        pack_selected(x.long(), mask)
    with pytest.raises(ValueError, match="mask is on meta, x on cpu"):
        pack_selected(x, mask.to("meta"))
    with pytest.raises(ValueError, match="capacity is 0; at least 1 is needed"):
        pack_selected(x, mask, capacity=0)
    values, indices = torch.zeros(2, 3), torch.tensor([3, 1])
    with pytest.raises(ValueError, match=r"\(batch \+ 1,\) = \(4,\)"):
        unpack_selected(values, indices, torch.tensor([0, 1]), (3, 5))
    with pytest.raises(ValueError, match="indices must ascend"):
        unpack_selected(values, indices, torch.tensor([0, 1, 2]), (2, 5))
    with pytest.raises(ValueError, match=r"indices must be int64 on cpu, got torch\.int32"):
        unpack_selected(values, indices.int(), torch.tensor([0, 1, 2]), (2, 5))
