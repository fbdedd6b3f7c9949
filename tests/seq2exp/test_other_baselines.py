"""EPInformer, Enformer, ridge, and what users are told when something that a baseline needs is not there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from seq2exp.baselines import Enformer, EnformerConfig, EPInformer, EPInformerConfig, Ridge, RidgeConfig
from seq2exp.data_tools import GeneWindows
from seq2exp.errors import UserError
from seq2exp.inference.ridge import binned_signals, fit_ridge
from seq2exp.inference.windows import predict_genes
from seq2exp.training import TrainConfig, Trainer

L = 1_000
SMALL = dict(length=L, center=40, element=416, elements=3, d_model=32, layers=2, heads=2, gene_features=2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def window(n=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (n, L), dtype=torch.uint8, generator=g), torch.rand(n, L, 3, generator=g)


def peaks(*ranges, n=2):
    found = torch.zeros(n, L, dtype=torch.bool)
    for start, end in ranges:
        found[:, start:end] = True
    return found


def test_candidates_are_the_nearest_peaks_outside_the_centre():
    model = EPInformer(EPInformerConfig(**SMALL))
    exclude = torch.zeros(2, L, dtype=torch.bool)
    exclude[1, 290:310] = True
    found = peaks((0, 20), (250, 350), (470, 500), (600, 640), (700, 720), (990, 1000))
    starts, there = model.places(found, exclude)
    # middles: 9, 299, 484 (centre: 480..519), 619, 709, 994; starts are 208 before, inside the window
    assert starts.tolist() == [[292, 411, 91, 501], [292, 411, 501, 0]]
    assert there.all()
    starts, there = model.places(peaks((0, 20)), None)
    assert there.tolist() == [[True, True, False, False]] * 2


def test_epinformer_reads_promoter_and_candidates_only():
    torch.manual_seed(0)
    model = EPInformer(EPInformerConfig(**SMALL)).eval()
    (sequence, signals), features, found = window(), torch.randn(2, 2), peaks((850, 860))
    out = model(sequence, signals, features, peaks=found)
    assert out.expression.shape == (2,) and out.mask is None
    for base, read in ((100, False), (291, False), (292, True), (700, True), (707, True), (600, True)):
        other = sequence.clone()
        other[:, base] = (other[:, base] + 1) % 4
        changed = model(other, signals, features, peaks=found).expression != out.expression
        assert changed.any() == read, base
    louder = signals.clone()
    louder[:, 600:, 1] += 1
    assert (model(sequence, louder, features, peaks=found).expression != out.expression).all()
    alone = model(sequence[:1], signals[:1], features[:1], peaks=found[:1]).expression
    torch.testing.assert_close(alone, out.expression[:1])
    assert model(sequence, signals, features, peaks=peaks()).expression.isfinite().all()


def test_epinformer_features_are_those_of_the_candidates():
    model = EPInformer(EPInformerConfig(**SMALL, signal_names=("contacts", "DNase", "H3K27ac")))
    _, signals = window()
    starts, _ = model.places(peaks((600, 640)), None)
    bases = (starts[..., None] + torch.arange(416)).flatten(1)
    got = model.features(signals, starts, bases)
    assert (got[:, 0] == 0).all()
    contact, dnase, h3k27ac = signals[1, 411:827].mean(0)
    expected = torch.stack([torch.tensor(0.119), contact, (dnase * h3k27ac).sqrt()])
    torch.testing.assert_close(got[1, 1], expected)


def test_a_candidate_sees_the_promoter_and_itself():
    model = EPInformer(EPInformerConfig(**SMALL)).eval()
    x, nobody = torch.randn(1, 4, 32), torch.zeros(1, 4, dtype=torch.bool)
    other = x.clone()
    other[:, 2] += 1
    a, b = (model.layers[0](v, nobody, model.apart) for v in (x, other))
    assert [(a[0, i] != b[0, i]).any().item() for i in range(4)] == [True, False, True, False]


def test_defaults_of_epinformer_are_those_of_the_paper():
    c = EPInformerConfig()
    assert (c.elements, c.element, c.d_model, c.layers, c.heads) == (60, 2_000, 64, 3, 4)
    assert EPInformer(c).encoder.pool[0].weight.shape == (2, 101)
    with pytest.raises(ValueError, match="element is 300: it must be 416 to length"):
        EPInformerConfig(element=300)


def test_enformer_is_its_trunk_on_the_middle_bins():
    pytest.importorskip("enformer_pytorch")
    config = EnformerConfig(length=L, center=40, dim=24, depth=1, heads=2, d_model=8, gene_features=2)
    model = Enformer(config).eval()
    sequence, _ = window()
    sequence[:, 500] = 4
    features = torch.randn(2, 2)
    out = model(sequence, None, features).expression
    letters = torch.nn.functional.one_hot(sequence.long(), 5)[:, 52:948, :4].float()  # 7 bins of 128
    hidden = model.trunk(letters)
    assert hidden.shape == (2, 5, 48)  # a bin is cut from each end
    torch.testing.assert_close(out, model.head(hidden.mean(1), features))
    ends = sequence.clone()
    ends[:, :52] = ends[:, 948:] = 0
    assert model(ends, None, features).expression.equal(out)


def test_defaults_of_enformer_are_those_of_the_paper():
    c = EnformerConfig()
    assert (c.dim, c.depth, c.heads, c.bins) == (1_536, 11, 8, 1_536)
    with pytest.raises(ValueError, match="multiple of 6"):
        EnformerConfig(dim=32, heads=2)


def test_ridge_is_the_closed_form(tiny_store):
    train, valid = (GeneWindows(tiny_store, 128, split) for split in ("train", "valid"))
    model = Ridge(RidgeConfig(length=128, center=16, gene_features=0, bins=8))
    model.fit(train, valid)
    x, y = ([w[i][key].numpy() for i in range(len(w))] for w, key in ((train, "signals"), (train, "target")))
    x_valid, y_valid = (
        [w[i][key].numpy() for i in range(len(w))] for w, key in ((valid, "signals"), (valid, "target"))
    )
    x, x_valid = (np.stack([binned_signals(s, 8) for s in found]) for found in (x, x_valid))
    weights, means, intercept = fit_ridge(x, np.array(y, float), x_valid, np.array(y_valid, float))
    found = predict_genes(model, valid, batch_size=5)
    np.testing.assert_allclose(found["prediction"], (x_valid - means) @ weights + intercept, rtol=1e-5)


# What is missing: the model section, the change to the run's store, and the sentence.
MISSING = {
    "epinformer": ({"length": 512, "element": 416}, "holds no peaks; build it with --peaks"),
    "peaks": ({}, "holds no peaks; build it with --peaks"),
    "abc": (
        {},
        "the ABC mask needs the signals H3K27ac, DNase and contacts; DNase is not among H3K27ac, open, contacts",
    ),
    "retrain": ({"source": "nowhere"}, "nowhere: neither a run folder nor a saved model"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_said_in_one_sentence(
    seq2exp, settings, write_yaml, other_tracks, tiny_store, tmp_path, name
):
    fields, said = MISSING[name]
    settings["data"]["store"] = str(other_tracks if name == "abc" else tiny_store)
    settings["model"] = {"name": name, "length": 128, "center": 16} | fields
    code, out, err = seq2exp("train", write_yaml(settings), "--out", tmp_path / "run")
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def other_tracks(simulated, tmp_path_factory):
    """A store whose second track has another name."""
    from seq2exp.data_tools import build_store

    out = tmp_path_factory.mktemp("other") / "store.zarr"
    build_store(
        fasta=simulated / "genome.fa",
        track={"H3K27ac": simulated / "H3K27ac.bw", "open": simulated / "DNase.bw"},
        contacts=str(simulated / "contacts.tsv"),
        genes=simulated / "genes.csv",
        target="target",
        split="split",
        out=out,
    )
    return out


def test_enformer_without_its_package(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "enformer_pytorch", None)
    settings["model"] = {"name": "enformer", "length": 128, "center": 16, "dim": 24, "heads": 2, "depth": 1}
    with pytest.raises(UserError, match=r"needs the package enformer-pytorch .*: pip install 'seq2exp\[enformer\]'$"):
        Trainer(TrainConfig.model_validate(settings), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
