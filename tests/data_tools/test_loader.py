"""The loader: every window once an epoch, shared by ranks, taken up again at any batch; and that nothing grows."""

import gc
import json
import random
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from seq2exp.data_tools import EpochBatches, GeneWindows, WindowLoader, open_store
from seq2exp.errors import UserError


def loader(store, batch_size=16, split="test", **settings):
    windows = GeneWindows(store.path, 64, split, compact=True, max_shift=9, rc_augmentation=0.5, seed=3)
    return WindowLoader(windows, batch_size, seed=5, **settings)


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(x, other[name]) if isinstance(x, torch.Tensor) else x == other[name] for name, x in one.items()
    )


def test_an_epoch_holds_every_window_once_in_another_order(store):
    batches = loader(store)
    epochs = [torch.cat([batch["row"] for batch in batches]).tolist() for _ in range(3)]
    rows = batches._loader.dataset.rows.tolist()
    assert all(sorted(epoch) == rows for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3
    plain = loader(store, shuffle=False)
    assert torch.cat([batch["row"] for batch in plain]).tolist() == rows and len(plain) == -(-len(rows) // 16)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_resumes_with_the_next_batch_bit_by_bit(store, workers, stop):
    """Four batches an epoch: in its middle, at its end and in the next one; workers have read ahead by then."""
    whole = loader(store, 8)
    expected = [batch for _ in range(2) for batch in whole]
    assert len(expected) == 8
    first, seen = loader(store, 8, workers=workers), []
    state = None
    while state is None:
        for batch in first:
            seen.append(batch)
            if len(seen) == stop:
                state = json.loads(json.dumps(first.state_dict()))
                break
    again = loader(store, 8, workers=workers)
    again.load_state_dict(state)
    rest = [batch for batch in again]
    if stop < 4:
        rest += list(again)
    assert len(seen + rest) == 8 and all(map(same, seen + rest, expected))


def test_ranks_share_each_batch(store):
    alone = [batch["row"].tolist() for batch in loader(store, 12)]
    shares = [[batch["row"].tolist() for batch in loader(store, 12, rank=rank, world=3)] for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    for whole, parts in zip(alone, zip(*shares, strict=True), strict=False):
        joined = [row for part in parts for row in part]
        assert joined == whole[: len(joined)] and len(whole) - len(joined) < 3
    ahead = loader(store, 12)
    next(iter(ahead))
    later = loader(store, 12, rank=1, world=2)
    later.load_state_dict(ahead.state_dict())
    assert next(iter(later))["row"].tolist() == alone[1][6:]


def test_a_last_batch_that_the_ranks_cannot_share_is_left_out():
    sizes = [
        [len(batch) for batch in EpochBatches(items, 4, shuffle=False, rank=1, world=2)] for items in (8, 9, 10, 11)
    ]
    assert sizes == [[2, 2], [2, 2], [2, 2, 1], [2, 2, 1]]
    assert [len(EpochBatches(items, 4, world=2)) for items in (8, 9, 10, 11)] == [2, 2, 3, 3]


def test_wrong_loaders(store):
    with pytest.raises(UserError, match="batch_size is 3; it must be a multiple of the number of ranks, 2"):
        loader(store, 3, world=2)
    with pytest.raises(UserError, match="state is of batch_size 16, this loader has batch_size 8"):
        loader(store, 8).load_state_dict(loader(store).state_dict())


def read_many(store, windows_to_read):
    """Reads windows at random with a small cache; by how many bytes memory and by how many files this process grows."""
    process = psutil.Process()
    windows = GeneWindows(open_store(store.path, 200_000), 512, compact=True, max_shift=200, rc_augmentation=0.5)
    order = random.Random(0).choices(range(len(windows)), k=windows_to_read)
    for i in order[:500]:
        windows[i]
    gc.collect()
    memory, files = process.memory_info().rss, len(list(Path("/proc/self/fd").iterdir()))
    for epoch, i in enumerate(order):
        windows[i, epoch]
    gc.collect()
    return process.memory_info().rss - memory, len(list(Path("/proc/self/fd").iterdir())) - files


def test_reading_grows_neither_memory_nor_files(store):
    memory, files = read_many(store, 3_000)
    assert memory < 4e6 and files == 0


@pytest.mark.slow
def test_100_000_reads_grow_neither_memory_nor_files(store):
    memory, files = read_many(store, 100_000)
    assert memory < 8e6 and files == 0


def test_random_order_of_numpy_and_torch_is_left_alone(store):
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    next(iter(loader(store)))
    assert (torch.rand(1), np.random.rand()) == expected
