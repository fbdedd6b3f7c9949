"""Layers on both strands: the mirrored input gives the mirrored output, forward and backward, in float64.

The properties are those that Caduceus-PS promises for its own layers, which keep the second strand reversed in its
channels; `test_equals_the_published_form` holds ours equal to that form.
"""

import pytest
import torch
from equivariance import assert_near, check_equivariance, exchanged, reversed_along
from torch import Tensor
from torch.nn import functional as F

from seq2exp import Caduceus, CaduceusBackbone
from seq2exp.backbone import BackboneLayer, BimambaMixer, RMSNorm, published_layout
from seq2exp.kernels.bimamba.reference import bimamba_forward
from seq2exp.model import SequenceEmbedding
from seq2exp.strands import both_strands, complement

D_MODEL = 7  # odd: no half of the channels is needed
LENGTHS = [1, 2, 31, 64]
COMPLEMENTS = [0, 1, 2, 6, 5, 4, 3, 7]  # of tokens 3 4 5 6 = A C G T
MIXERS = [
    pytest.param({"tied": tied, "strategy": strategy}, id=f"{'tied' if tied else 'untied'}-{strategy}")
    for tied in (True, False)
    for strategy in ("add", "ew_multiply")
]
lengths = pytest.mark.parametrize("length", LENGTHS)


def made(kind, *args, **fields):
    """A module in float64 whose norm weights are not all 1."""
    torch.manual_seed(0)
    module = kind(*args, **fields).double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
    return module


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tokens(length, low=0, high=8, batch=2):
    return torch.randint(low, high, (batch, length), generator=torch.Generator().manual_seed(2))


def on_both(layer):
    """A layer of one strand, over both."""
    return lambda x, **rest: torch.stack([layer(x[0], **rest), layer(x[1], complement=True, **rest)])


@lengths
@pytest.mark.parametrize("as_codes", [True, False], ids=["codes", "one-hot"])
def test_sequence_embedding(length, as_codes):
    embedding = made(SequenceEmbedding, D_MODEL)
    codes = tokens(length, high=5).to(torch.uint8)
    x = codes if as_codes else torch.eye(5, 4, dtype=torch.float64)[codes.long()]
    check_equivariance(
        lambda x: embedding(both_strands(x)),
        embedding.parameters(),
        {"x": (x, lambda x: complement(x).flip(1))},
        exchanged,
    )


@lengths
def test_token_embedding(length):
    m = made(Caduceus, 8, D_MODEL, 1, rc_equivariant=True, complement_map=COMPLEMENTS)
    x = tokens(length)
    one, two = (m.embedding(torch.stack([x, m.complement_map[x]])) for x in (x, m.complement_map[x].flip(1)))
    assert torch.equal(two, exchanged(one))


@lengths
def test_mean_of_a_linear_head_over_strands(length):
    head = made(torch.nn.Linear, D_MODEL, 2)
    check_equivariance(
        lambda x: head(x).mean(0), head.parameters(), {"x": (randn(2, 3, length, D_MODEL), exchanged)}, reversed_along
    )


@lengths
def test_residual_add_and_norm(length):
    norm = made(RMSNorm, D_MODEL)
    x, residual = randn(2, 2, 3, length, D_MODEL)
    inputs = {"x": (x, exchanged), "residual": (residual, exchanged)}
    check_equivariance(norm, norm.parameters(), inputs, exchanged)


@lengths
@pytest.mark.parametrize("fields", MIXERS)
def test_mixer(length, fields):
    mixer = made(BimambaMixer, D_MODEL, 3, 4, 2, **fields)
    check_equivariance(
        on_both(mixer), mixer.parameters(), {"x": (randn(2, 2, length, D_MODEL), exchanged)}, exchanged
    )  # fmt: skip


def test_the_complement_strand_is_not_the_strand():
    """Without the exchange of the directions there is no equivariance: the other tests can fail."""
    mixer = made(BimambaMixer, D_MODEL, 3, 4, 2)
    with pytest.raises(AssertionError, match="output"):
        check_equivariance(
            lambda x: torch.stack([mixer(x[0]), mixer(x[1])]), mixer.parameters(),
            {"x": (randn(2, 2, 31, D_MODEL), exchanged)}, exchanged,
        )  # fmt: skip


@lengths
@pytest.mark.parametrize("gated", [False, True])
def test_block(length, gated):
    block = made(BackboneLayer, D_MODEL, 3, 4, 2)

    def both(x, residual, gate=None):
        return torch.stack([sum(block(x[i], residual[i], gate, complement=bool(i))) for i in range(2)])

    inputs = {name: (randn(2, 2, length, D_MODEL), exchanged) for name in ("x", "residual")}
    if gated:
        inputs["gate"] = (torch.sigmoid(randn(2, length)), reversed_along)
    check_equivariance(both, block.parameters(), inputs, exchanged)


@lengths
@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize("fields", MIXERS[:1] + MIXERS[2:3])
def test_backbone(length, fields, recompute):
    backbone = made(CaduceusBackbone, D_MODEL, 2, d_state=3, rc_equivariant=True, recompute=recompute, **fields)
    inputs = {"x": (randn(2, 2, length, D_MODEL), exchanged), "gate": (torch.sigmoid(randn(2, length)), reversed_along)}
    check_equivariance(backbone, backbone.parameters(), inputs, exchanged)


def test_backbone_on_packed_sequences():
    backbone = made(CaduceusBackbone, D_MODEL, 2, d_state=3, rc_equivariant=True)
    x, offsets = randn(2, 1, 21, D_MODEL), torch.tensor([0, 1, 3, 3, 12, 21])
    out = backbone(x, cu_seqlens=offsets)
    assert_near(backbone(exchanged(x), cu_seqlens=(21 - offsets).flip(0)), exchanged(out), 1e-11)
    assert_near(out[:, :, 3:12], backbone(x[:, :, 3:12]), 1e-11)


@lengths
def test_language_model_head(length):
    m = made(Caduceus, 8, D_MODEL, 1, rc_equivariant=True, complement_map=COMPLEMENTS)
    check_equivariance(
        m.strand_logits, m.lm_head.parameters(), {"strands": (randn(2, 2, length, D_MODEL), exchanged)},
        lambda logits: logits.flip(1)[..., COMPLEMENTS],
    )  # fmt: skip


@lengths
def test_language_model(length):
    m = made(Caduceus, 8, D_MODEL, 2, d_state=3, rc_equivariant=True, complement_map=COMPLEMENTS)
    read = {"tokens": (tokens(length), lambda x: torch.tensor(COMPLEMENTS)[x].flip(1))}
    hidden = [p for n, p in m.named_parameters() if n != "lm_head.weight"]
    check_equivariance(lambda tokens: m(tokens).hidden, hidden, read, lambda x: x.flip(1, 2))
    check_equivariance(lambda tokens: m(tokens).logits, m.parameters(), read, lambda x: x.flip(1)[..., COMPLEMENTS])
    assert m(tokens(length)).hidden.shape == (2, length, 2 * D_MODEL)


def published_form(m: Caduceus, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Caduceus-PS with its flips and concatenations: each module sees half of the channels, and the other half
    reversed along bases and channels."""
    turned = m.complement_map[ids].flip(1)

    def wrapped(f, x):
        half = x.shape[-1] // 2
        return torch.cat([f(x[..., :half]), f(x[..., half:].flip(-2, -1)).flip(-2, -1)], -1)

    def mixed(mixer, h):
        rev_proj = None if mixer.rev_in_proj is None else (mixer.rev_in_proj, mixer.rev_out_proj)
        weights = mixer.in_proj, mixer.out_proj, mixer.fwd.weights(), mixer.rev.weights()
        return bimamba_forward(h, *weights, rev_proj, mixer.strategy)

    x = torch.cat([m.embedding(ids), m.embedding(turned).flip(-2, -1)], -1)
    for layer in m.backbone.layers:
        x = x + wrapped(lambda h, layer=layer: mixed(layer.mixer, layer.norm(h)), x)
    hidden = wrapped(m.backbone.norm, x)
    forward, backward = hidden.chunk(2, -1)
    weight = m.lm_head.weight
    return hidden, F.linear(forward, weight) + F.linear(backward.flip(-1), weight[m.complement_map])


@pytest.mark.parametrize("fields", MIXERS)
def test_equals_the_published_form(fields):
    m = made(Caduceus, 8, D_MODEL, 2, d_state=3, rc_equivariant=True, complement_map=COMPLEMENTS, **fields)
    ids = tokens(33)
    out, (hidden, logits) = m(ids), published_form(m, ids)
    assert_near(out.hidden, hidden, 1e-11)
    assert_near(out.logits, logits, 1e-11)
    parameters = list(m.parameters())
    g = randn(*logits.shape)
    for ours, theirs in zip(*(torch.autograd.grad(x, parameters, g) for x in (out.logits, logits)), strict=True):
        assert_near(ours, theirs, 1e-10)


def test_published_layout():
    strands = torch.arange(2 * 1 * 2 * 3).view(2, 1, 2, 3)
    assert published_layout(strands).tolist() == [[[0, 1, 2, 8, 7, 6], [3, 4, 5, 11, 10, 9]]]


def test_the_plain_backbone_is_one_strand_of_the_equivariant_one():
    both = made(CaduceusBackbone, D_MODEL, 2, d_state=3, rc_equivariant=True)
    plain = made(CaduceusBackbone, D_MODEL, 2, d_state=3)
    assert all(torch.equal(a, b) for a, b in zip(both.parameters(), plain.parameters(), strict=True))
    x = randn(2, 2, 31, D_MODEL)
    assert torch.equal(both(x)[0], plain(x[0]))


def test_complement_map_may_be_a_mapping():
    m = Caduceus(8, D_MODEL, 1, rc_equivariant=True, complement_map=dict(reversed(list(enumerate(COMPLEMENTS)))))
    assert m.complement_map.tolist() == COMPLEMENTS


@pytest.mark.parametrize(
    "complements,words",
    [
        (None, "rc_equivariant=True needs complement_map"),
        (COMPLEMENTS[:-1], r"complement_map must map each of the tokens 0\.\.7, and no other"),
        ([*COMPLEMENTS, 8], r"complement_map must map each of the tokens 0\.\.7, and no other"),
        ({str(i): c for i, c in enumerate(COMPLEMENTS)}, r"complement_map must map each of the tokens 0\.\.7"),
        ([0, 1, 2, 6, 5, 4, 7, 3], "not an involution: 6 is the complement of 3, 7 that of 6"),
        ([0, 1, 2, 6, 5, 4, 3, 8], "not an involution: 8 is the complement of 7, nothing that of 8"),
        ([0, 1, 2, 6, 5, 4, 3, -1], "not an involution: -1 is the complement of 7, nothing that of -1"),
    ],
)
def test_bad_complement_map(complements, words):
    with pytest.raises(ValueError, match=words):
        Caduceus(8, D_MODEL, 1, rc_equivariant=True, complement_map=complements)


@pytest.mark.parametrize("shape", [(2, 31, D_MODEL), (1, 2, 31, D_MODEL), (3, 2, 31, D_MODEL)])
def test_a_strand_alone_is_refused(shape):
    backbone = CaduceusBackbone(D_MODEL, 1, rc_equivariant=True)
    with pytest.raises(ValueError, match=r"both strands, \(2, batch, L, d_model\)"):
        backbone(torch.zeros(shape))
