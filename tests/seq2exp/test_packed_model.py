"""The packed predictor: what it reads, with room to spare, with too little, and its memory."""

from __future__ import annotations

import pytest
import torch
from memory import memory, saved_bytes

import seq2exp.model
from seq2exp import Seq2Exp, Seq2ExpConfig, seq2exp_loss
from seq2exp.errors import UserError
from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.kernels.bimamba import mixer

LENGTH, CENTER = 96, 8


def model(preset, dtype=torch.float32, **fields):
    small = dict(
        length=LENGTH, center=CENTER, d_model=16, generator_layers=2, predictor_layers=2, d_state=4, gene_features=0
    )
    torch.manual_seed(4)
    return Seq2Exp(getattr(Seq2ExpConfig, preset)(**small | fields)).to(dtype).eval()


def batch(n=3, length=LENGTH, dtype=torch.float32):
    g = torch.Generator().manual_seed(8)
    codes = torch.randint(0, 5, (n, length), generator=g, dtype=torch.uint8)
    return codes, (torch.rand(n, length, 3, generator=g) * 1.8).to(dtype)


def like(other, **fields):
    m = Seq2Exp(other.config.replace(**fields)).to(next(other.parameters()).dtype).eval()
    m.load_state_dict(other.state_dict())
    return m


def parameter_gradients(m, out):
    m.zero_grad()
    seq2exp_loss(out, torch.ones(out.expression.shape[0])).backward()
    return {name: p.grad for name, p in m.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, expected, found):
    torch.testing.assert_close(found.expression, expected.expression, rtol=1e-5, atol=1e-6)
    pairs = [parameter_gradients(m, out) for m, out in ((ours, found), (theirs, expected))]
    assert pairs[0].keys() == pairs[1].keys()
    for name, grad in pairs[0].items():
        torch.testing.assert_close(grad, pairs[1][name], rtol=1e-4, atol=1e-6, msg=name)


# --- keep_threshold ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["input", "every_layer"])
def test_keep_threshold_reads_what_is_above_it(placement):
    """Row by row by hand: the kept bases of (e + s) * m as one short window."""
    m = model("discovery", torch.float64, mask_placement=placement, select_bias=0.5, keep_threshold=0.55)
    codes, signals = batch(dtype=torch.float64)
    out = m(codes, signals)
    one_hot = torch.eye(5, 4, dtype=torch.float64)[codes.long()]
    both = m.sequence_embedding(one_hot) + m.signal_embedding(signals)
    kept_bases = set()
    for b in range(3):
        kept = (out.mask[b] >= 0.55).nonzero()[:, 0]
        kept_bases.add(len(kept))
        gate = out.mask[b, kept]
        hidden = m.predictor(
            (both[b, kept] * gate[:, None])[None], gate=gate[None] if placement == "every_layer" else None
        )
        centre = centre_slice(LENGTH, CENTER)
        pooled = hidden[0, (kept >= centre.start) & (kept < centre.stop)].mean(0)
        torch.testing.assert_close(out.expression[b], m.head(pooled[None], None)[0], rtol=1e-9, atol=1e-12)
    assert len(kept_bases) > 1 and max(kept_bases) < 0.9 * LENGTH, "the test shows little"


def test_a_keep_threshold_below_every_mask_changes_nothing():
    dense = model("discovery")
    packed = like(dense, keep_threshold=1e-6)
    expected, found = dense(*batch()), packed(*batch())
    assert bool((expected.mask > 1e-6).all())
    assert_same(packed, dense, expected, found)


# --- what is selected -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [None, 0.5])
def test_nothing_but_the_centre(capacity):
    m = model("hard", capacity=capacity)
    out = m(*batch(), exclude=torch.ones(3, LENGTH, dtype=torch.bool))
    assert out.mask.sum(1).tolist() == [CENTER] * 3
    assert out.expression.isfinite().all()
    assert all(g.isfinite().all() for g in parameter_gradients(m, out).values())


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("fields", [{}, {"mask_placement": "every_layer"}, {"rc_equivariant": True}], ids=str)
def test_room_to_spare_changes_nothing(fields, one_hot):
    exact = model("hard", **fields)
    roomy = like(exact, capacity=1.0)
    codes, signals = batch()
    sequence = torch.eye(5, 4)[codes.long()] if one_hot else codes
    expected, found = exact(sequence, signals), roomy(sequence, signals)
    assert 0.05 < float(expected.selected_fraction) < 0.95
    assert_same(roomy, exact, expected, found)


def test_too_little_room_is_said():
    m = model("hard", capacity=0.1)
    needed = int(like(m, capacity=None)(*batch()).mask.sum())
    with pytest.raises(UserError, match=rf"room for 29 of the batch's 288 bases, the mask selects {needed}: give at"):
        m(*batch())


def test_neighbours_change_no_bit_from_2000_bases_on():
    m = model("hard", length=6000, center=2000)
    inputs = batch(3, 6000)
    rows, seed = torch.tensor([3, 9, 4]), 5
    m.train()
    together = m(*inputs, seed=seed, rows=rows)
    assert len(set(together.mask.sum(1).tolist())) == 3
    for i in range(3):
        alone = m(*(x[i : i + 1] for x in inputs), seed=seed, rows=rows[i : i + 1])
        assert torch.equal(alone.expression[0], together.expression[i])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(keep_threshold=0.1, hard=True), "keep_threshold is for a soft mask"),
        (dict(capacity=0.5), "capacity needs a packed predictor"),
        (dict(capacity=0.0, hard=True, packed=True), "capacity"),
    ],
)
def test_settings_that_do_not_go_together(fields, words):
    with pytest.raises(ValueError, match=words):
        Seq2ExpConfig.soft(**fields)


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "fields"), [("soft", {}), ("hard", {"capacity": 1.0})], ids=["soft", "hard"])
def test_compiled_in_one_graph(preset, fields):
    m = model(preset, **fields)
    expected = m(*batch(), seed=1)
    found = torch.compile(m, fullgraph=True, backend="aot_eager")(*batch(), seed=1)
    assert_same(m, m, expected, found)


# --- memory -----------------------------------------------------------------------------------------------------------


LARGE = dict(center=256, d_model=128, generator_layers=4, predictor_layers=4, d_state=16)


def kept_per_base(preset, **fields):
    """Bytes that a forward in bfloat16 keeps for the backward, for each further base."""

    def kept(length):
        m, inputs = model(preset, length=length, **LARGE | fields).train(), batch(1, length)

        def forward():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return m(*inputs, seed=1)

        return saved_bytes(forward)

    return (kept(6144) - kept(2048)) / 4096


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize(("residual_dtype", "width"), [("fp32", 4), ("bf16", 2)])
def test_a_soft_step_keeps_streams_and_chunk_states(residual_dtype, width, recompute):
    """A layer its stream and, unless recomputed, 128 bytes of states; the mask head its input; no hidden states."""
    layer = width * 128 + (128 if recompute == "none" else 0)
    kept = kept_per_base("soft", residual_dtype=residual_dtype, recompute=recompute)
    assert 8 * layer <= kept <= 8 * layer + 2 * 128 + 70


def test_a_step_of_8_windows_fits_10_gb(monkeypatch):
    """All temporaries counted, at lengths and slices a hundredth of those of 200,000 bases."""

    def peak(length):
        for module, name, bases in ((mixer, "FORWARD_BASES", 2**21), (mixer, "BACKWARD_BASES", 2**18)):
            monkeypatch.setattr(module, name, bases * length // 200_000)
        monkeypatch.setattr(seq2exp.model, "HEAD_BASES", 2**18 * length // 200_000)
        m, inputs = model("soft", length=length, **LARGE | {"center": 20}).train(), batch(8, length)
        for parameter in m.parameters():
            parameter.grad = torch.zeros_like(parameter)

        def forward():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return seq2exp_loss(m(*inputs, seed=1), torch.ones(8))

        return memory(forward, lambda loss: loss.backward()).peak

    per_base = (peak(2000) - peak(1000)) / (8 * 1000)
    assert per_base * 8 * 200_000 <= 10e9
