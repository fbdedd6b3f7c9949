"""Compact items, and windows that are shifted and reversed at random."""

import numpy as np
import pytest
import torch

from seq2exp.data_tools import GeneWindows, build_store, collate, expand, open_store, stack
from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.errors import UserError
from seq2exp.strands import reverse_complement

from .conftest import LENGTHS

SIGNALS = ("sequence", "signals", "exclude", "include")


@pytest.fixture
def hilly(inputs, tmp_path):
    """A store with rising signals, contacts and regions, whose genes lie near the ends of short chromosomes."""
    write_bigwig(inputs["track"]["DNase"], {c: np.arange(n) % 512 for c, n in LENGTHS.items()})
    (tmp_path / "in.bed").write_text("chr1\t490\t495\nchr2\t0\t30\n")
    (tmp_path / "ex.bed").write_text("chr1\t505\t600\n")
    contacts = {"contacts": str(tmp_path / "contacts.tsv"), "contact_reach": 40}
    return build_store(**inputs, **contacts, include=tmp_path / "in.bed", exclude=tmp_path / "ex.bed")


def same(one, other, names=SIGNALS):
    return all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize("length", [1, 7, 500, 501, 3_777])
@pytest.mark.parametrize("augmented", [{}, {"max_shift": 77, "rc_augmentation": 0.5}])
def test_expanded_equals_complete(hilly, length, augmented):
    complete, compact = (
        GeneWindows(hilly, length, require_target=False, compact=compact, **augmented) for compact in (False, True)
    )
    indices = [(i, epoch) for i in range(3) for epoch in range(6)]
    expected, found = collate([complete[at] for at in indices]), collate([compact[at] for at in indices])
    assert same(expected, found) and found.keys() == expected.keys()
    assert {name: found[name].dtype for name in SIGNALS} == {name: expected[name].dtype for name in SIGNALS}
    assert found["signals"].shape == (18, length, 2) and found["signals"].is_contiguous()


def test_complete_equals_the_store(hilly):
    for item in (GeneWindows(hilly, 3_777, require_target=False)[i] for i in range(3)):
        place = item["chrom"], item["start"], item["start"] + 3_777
        np.testing.assert_array_equal(item["signals"][:, 0], hilly.track("DNase", *place))
        np.testing.assert_array_equal(item["signals"][:, 1], hilly.contacts(item["row"], *place[1:]))
        np.testing.assert_array_equal(item["exclude"], hilly.regions("exclude", *place))
        inside = item["sequence"] < 4
        assert not item["signals"][~inside].any() and (item["signals"][inside][:, 1] > 0).all()


def test_a_compact_item_is_small(hilly):
    item = GeneWindows(hilly, 1_600, compact=True)[0]
    assert item["tracks"].dtype == torch.float16 and item["tracks"].shape == (1, 1_600)
    assert item["contact_bins"].shape == (5,) and item["exclude_bits"].shape == (200,)
    assert sum(x.nbytes for x in item.values() if isinstance(x, torch.Tensor)) < (1 + 2 + 0.25) * 1_600 + 100


def test_tracks_that_are_not_exact_in_float16_stay_float32(inputs):
    values = {c: np.ones(n) for c, n in LENGTHS.items()}
    values["chr1"][7] = 1e6
    write_bigwig(inputs["track"]["DNase"], values)
    windows = GeneWindows(build_store(**inputs), 2_000, compact=True)
    assert windows[0]["tracks"].dtype == torch.float32 and windows[0]["tracks"].max() == 1e6


def test_stack_leaves_compact_and_expand_leaves_complete(hilly):
    batch = stack([GeneWindows(hilly, 10, compact=True)[0]] * 2)
    assert "signals" not in batch and batch["tracks"].shape == (2, 1, 10)
    full = expand(batch)
    assert expand(full).keys() == full.keys() and "tracks" not in full and "contact_place" not in full


def test_reversed_windows_are_the_other_strand(hilly):
    forward = GeneWindows(hilly, 700, require_target=False)
    backward = GeneWindows(hilly, 700, require_target=False, rc_augmentation=1.0)
    for i in range(3):
        expected = reverse_complement(collate([forward[i]]))
        assert same(expected, collate([backward[i, 4]])) and backward[i, 4]["start"] == forward[i]["start"]


def test_shifts_cover_their_range_and_follow_seed_epoch_and_row_only(store):
    def starts(seed, rows, epoch, split=None):
        windows = GeneWindows(store, 64, split, max_shift=3, seed=seed)
        return {windows[i, epoch]["row"]: windows[i, epoch]["start"] for i in range(len(windows)) if i in rows}

    plain = {item["row"]: item["start"] for item in GeneWindows(store, 64)}
    whole = starts(1, range(300), 5)
    shifts = np.array([whole[row] - plain[row] for row in whole])
    assert set(shifts) == set(range(-3, 4)) and np.bincount(shifts + 3).min() > 20
    assert starts(1, range(300), 5) == whole
    of_split = starts(1, range(300), 5, "test")
    assert of_split == {row: whole[row] for row in of_split}
    assert starts(1, range(300), 6) != whole != starts(2, range(300), 5)


def test_strands_follow_seed_epoch_and_row_only(store):
    def reversed_(seed, epoch):
        windows = GeneWindows(store, 64, "train", rc_augmentation=0.25, seed=seed)
        plain = GeneWindows(store, 64, "train")
        return [not torch.equal(windows[i, epoch]["sequence"], plain[i]["sequence"]) for i in range(len(plain))]

    first = reversed_(1, 0)
    assert 0.15 < np.mean(first) < 0.35
    assert reversed_(1, 0) == first and reversed_(1, 1) != first != reversed_(2, 0)


def test_wrong_augmentation(store):
    with pytest.raises(UserError, match="max_shift is -1"):
        GeneWindows(store, 512, max_shift=-1)
    with pytest.raises(UserError, match=r"rc_augmentation 1\.5"):
        GeneWindows(store, 512, rc_augmentation=1.5)
    with pytest.raises(UserError, match="up to 6,384 bases, not 6,380 shifted by up to 3"):
        GeneWindows(store, 6_380, max_shift=3)


def test_the_model_reads_expanded_batches(store):
    from seq2exp import Seq2Exp, Seq2ExpConfig

    config = Seq2ExpConfig.soft(length=64, center=8, d_model=8, generator_layers=1, predictor_layers=1, gene_features=0)
    batch = collate([GeneWindows(store, 64, compact=True)[i] for i in range(2)])
    out = Seq2Exp(config).eval()(batch["sequence"], batch["signals"], rows=batch["row"])
    assert torch.isfinite(out.expression).all()


def test_cache_bound_is_a_parameter_and_travels(store):
    import pickle

    small = open_store(store.path, cache_bytes=1_000)
    again = pickle.loads(pickle.dumps(GeneWindows(small, 512)))
    assert again.store._cache.limit == 1_000
    again[0]
    assert again.store._cache.size == 0
