"""Epochs of batches on the device: shuffled, shared among ranks, and to be taken up again in the middle."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from seq2exp.data_tools.batches import expand, stack
from seq2exp.data_tools.windows import GeneWindows
from seq2exp.errors import UserError
from seq2exp.seeds import permutation


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batch sampler of ``GeneWindows``: for the batches of `epoch` from number `first` on, this rank's (index, epoch).

    The order of an epoch is a function of (seed, epoch). A batch of `batch_size` is cut among the ranks, so the number
    of ranks changes no batch. The last one of an epoch is smaller; of it, what the ranks cannot share equally is left
    out.
    """

    def __init__(
        self, items: int, batch_size: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise UserError(f"batch_size is {batch_size}; it must be a multiple of the number of ranks, {world}.")
        self.items, self.batch_size, self.seed, self.shuffle = items, batch_size, seed, shuffle
        self.rank, self.world = rank, world
        self.epoch = self.first = 0

    @property
    def in_epoch(self) -> int:
        """Batches of a whole epoch."""
        whole, left = divmod(self.items, self.batch_size)
        return whole + (left >= self.world)

    def __len__(self) -> int:
        return self.in_epoch - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = permutation(self.items, self.seed, self.epoch) if self.shuffle else list(range(self.items))
        for number in range(self.first, self.in_epoch):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            share = len(batch) // self.world
            yield [(i, self.epoch) for i in batch[self.rank * share : (self.rank + 1) * share]]


class WindowLoader:
    """Batches of ``GeneWindows``, complete and on the device, an epoch each time it is iterated over.

    ``state_dict`` says which batch comes next, whatever the workers have read ahead; a loader of the same windows that
    takes it goes on there, on any number of ranks, and gives the same bits as if nothing had happened. An epoch that
    was left early is also gone on with by the next iteration.

    Args:
        windows: best compact; then a batch is expanded on the device, to which it goes from pinned memory.
        batch_size: windows of all ranks together.
        seed, shuffle, rank, world: as of ``EpochBatches``.
        workers: processes that read ahead; 0: none.
        device: where batches go; None: they stay on the CPU.

    Raises:
        UserError: a batch that the ranks cannot share equally.
    """

    def __init__(
        self,
        windows: GeneWindows,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self._batches = EpochBatches(len(windows), batch_size, seed=seed, shuffle=shuffle, rank=rank, world=world)
        self._device = None if device is None else torch.device(device)
        self._loader = DataLoader(
            windows,
            batch_sampler=self._batches,
            collate_fn=stack,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._device is not None and self._device.type == "cuda",
            generator=torch.Generator(),  # else every epoch draws from the one of the whole program
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._batches.in_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._loader:
            self._batches.first += 1
            if self._batches.first == self._batches.in_epoch:
                self._batches.epoch, self._batches.first = self._batches.epoch + 1, 0
            yield expand(batch, self._device)

    def state_dict(self) -> dict[str, Any]:
        """The batch that comes next, and what it depends on."""
        own = self._batches
        return {
            "epoch": own.epoch,
            "batch": own.first,
            "of": {"items": own.items, "batch_size": own.batch_size, "seed": own.seed, "shuffle": own.shuffle},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the batch of a ``state_dict``. Raises UserError when that was of another loader."""
        for name, value in self.state_dict()["of"].items():
            if state["of"][name] != value:
                raise UserError(f"The loader's state is of {name} {state['of'][name]}, this loader has {name} {value}.")
        self._batches.epoch, self._batches.first = state["epoch"], state["batch"]
