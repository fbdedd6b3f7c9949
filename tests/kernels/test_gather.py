import pytest
import torch

from seq2exp.kernels import pack_selected, unpack_selected

CASES = {
    "some": [[0, 1, 0, 0.5, 1], [1, 0, 0, 0, 2]],
    "an empty row": [[0, 0, 0, 0, 0], [1, 0, 1, 0, 0]],
    "a full row": [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "nothing": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("name", CASES)
def test_pack_and_unpack(name):
    mask = torch.tensor(CASES[name], dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    packed = pack_selected(x, mask)
    kept = [(b, j) for b in range(2) for j in range(5) if mask[b, j] != 0]
    assert packed.indices.tolist() == [b * 5 + j for b, j in kept]
    assert packed.cu_seqlens.tolist() == [0, sum(b == 0 for b, _ in kept), len(kept)]
    for value, (b, j) in zip(packed.values, kept, strict=True):
        assert torch.equal(value, x[b, j] * mask[b, j])
    assert torch.equal(unpack_selected(*packed, mask.shape), x * mask[..., None])


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    mask = torch.tensor(CASES[name], dtype=torch.float64)
    kept = mask != 0
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    mask.requires_grad_()
    packed = pack_selected(x, mask)
    g = torch.randn_like(packed.values)
    dense = (x * mask[..., None])[kept]
    for ours, expected in zip(
        torch.autograd.grad(packed.values, (x, mask), g), torch.autograd.grad(dense, (x, mask), g), strict=True
    ):
        # the composed product also has a gradient at unselected bases of the mask only through x * 0: none
        assert torch.equal(ours, expected)
    if kept.any():
        v = packed.values.detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda v: unpack_selected(v, packed.indices, packed.cu_seqlens, (2, 5)), v)


def test_bad_input():
    with pytest.raises(ValueError, match=r"mask \(batch, L\)"):
        pack_selected(torch.zeros(2, 5, 3), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="floating point"):
        pack_selected(torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(batch \+ 1,\) = \(4,\)"):
        unpack_selected(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), torch.tensor([0, 1]), (3, 5))
