from __future__ import annotations

import torch

from seq2exp.training.batches import StepBatches, augment


def test_every_epoch_sees_every_item_once_in_another_order():
    steps = list(StepBatches(items=10, batch_size=4, seed=3, steps=10))
    assert {len(batch) for batch in steps} == {4}
    flat = [item for batch in steps for item, _ in batch]
    epochs = [flat[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert [epoch for batch in steps for _, epoch in batch] == [i // 10 for i in range(40)]
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_seed_and_step_only():
    whole = list(StepBatches(7, 3, seed=1, steps=12))
    assert list(StepBatches(7, 3, seed=1, steps=12, first_step=5)) == whole[5:]
    assert list(StepBatches(7, 3, seed=2, steps=12)) != whole


def test_batch_may_be_larger_than_the_data():
    batches = StepBatches(2, 5, seed=1, steps=2)
    assert [sorted({item for item, _ in batch}) for batch in batches] == [[0, 1], [0, 1]]


def _batch(rows: int = 64) -> dict[str, torch.Tensor]:
    length = 6
    return {
        "sequence": torch.tensor([[0, 1, 2, 3, 4, 0]] * rows, dtype=torch.uint8),
        "signals": torch.arange(rows * length * 2, dtype=torch.float32).view(rows, length, 2),
        "exclude": torch.tensor([[True] + [False] * 5] * rows),
        "include": torch.tensor([[False] * 4 + [True, False]] * rows),
        "target": torch.arange(rows, dtype=torch.float32),
        "row": torch.arange(rows),
    }


def test_reverse_complement():
    batch, flipped = _batch(), augment(_batch(), 1.0, 1, 0, 64, slice(None))
    assert flipped["sequence"][0].tolist() == [3, 4, 0, 1, 2, 3]  # ACGTNA -> TNACGT
    assert flipped["sequence"].dtype == torch.uint8
    assert torch.equal(flipped["signals"], batch["signals"].flip(1))
    assert torch.equal(flipped["exclude"], batch["exclude"].flip(1))
    assert torch.equal(flipped["include"], batch["include"].flip(1))
    assert torch.equal(flipped["target"], batch["target"])
    back = augment(flipped, 1.0, 1, 0, 64, slice(None))
    assert all(torch.equal(back[name], batch[name]) for name in batch)


def test_which_windows_are_flipped_is_drawn_from_seed_and_step():
    def chosen(seed: int, step: int) -> list[bool]:
        out = augment(_batch(), 0.5, seed, step, 64, slice(None))
        assert torch.equal(out["signals"][:, 0, 0] != _batch()["signals"][:, 0, 0], out["sequence"][:, 0] == 3)
        return (out["sequence"][:, 0] == 3).tolist()

    assert chosen(1, 4) == chosen(1, 4)
    assert chosen(1, 4) != chosen(1, 5) != chosen(2, 5)
    assert 16 < sum(chosen(1, 4)) < 48
    assert not any(augment(_batch(), 0.0, 1, 4, 64, slice(None))["sequence"][:, 0] == 3)
