"""The processes of one run, as torchrun starts them: the share of each, means over all, one sentence when one fails."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from seq2exp.errors import UserError

T = TypeVar("T")
FAILED, SAID = "seq2exp/failed", "seq2exp/said"  # keys of the store that the ranks share


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` of ``world``, number ``local`` on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def parts(self, batch_size: int, accumulate: int) -> list[slice]:
        """Where this rank's micro-batches lie in the batch of a step: its contiguous share, cut into ``accumulate``.

        Raises UserError when the shares would not be equal.
        """
        pieces = self.world * accumulate
        size, left = divmod(batch_size, pieces)
        if left or not size:
            raise UserError(
                f"data.batch_size is {batch_size}, which {self.world} rank{'s' * (self.world > 1)} with "
                f"data.accumulate {accumulate} cannot share equally: make it a multiple of {pieces}"
            )
        first = self.rank * accumulate
        return [slice(size * i, size * (i + 1)) for i in range(first, first + accumulate)]

    def spread(self, items: int) -> list[int]:
        """Every world-th item, equally many on all ranks: the last item stands in where there are too few."""
        rounds = -(-items // self.world)
        return [min(self.rank + self.world * i, items - 1) for i in range(rounds)]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over the ranks of each value."""
        if self.world == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.world).tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """What every rank holds, on all of them."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def take_device(self, device: torch.device) -> None:
        """Each rank of a machine its own GPU. Raises UserError when there are not enough."""
        if device.type != "cuda":
            return
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"rank {self.rank} finds no GPU of its own, this machine has {torch.cuda.device_count()}: start as "
                "many ranks a machine (torchrun --nproc-per-node), or use --device cpu"
            )
        torch.cuda.set_device(self.local)


@contextmanager
def started() -> Iterator[Ranks]:
    """The ranks that torchrun started, this process alone without it.

    An error on one rank ends all of them, also those that wait for it in a collective, with exit code 2; the first
    rank says why.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    ranks = Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    done = threading.Event()
    watch = threading.Thread(target=_end_when_another_fails, args=(store, ranks, done), daemon=True)
    watch.start()
    try:
        yield ranks
    except Exception as error:
        done.set()
        watch.join()
        _tell(store, ranks, error)
        raise
    done.set()
    watch.join()
    ranks.mean({"done": 0.0})  # nobody leaves while another still works
    dist.destroy_process_group()


def _end_when_another_fails(store: dist.Store, ranks: Ranks, done: threading.Event) -> None:
    while not done.wait(0.2):
        try:
            if not store.check([FAILED]):
                continue
            if ranks.first:
                print(f"seq2exp: {store.get(FAILED).decode()}", file=sys.stderr, flush=True)
                store.set(SAID, "")
        except dist.DistError:  # the store went with the rank that held it
            pass
        os._exit(2)  # the main thread may wait in a collective, where nothing else reaches it


def _tell(store: dist.Store, ranks: Ranks, error: Exception) -> None:
    """Let the others end; the first rank speaks, so give it the time to."""
    sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    try:
        store.set(FAILED, f"rank {ranks.rank}: {' '.join(sentence.split())}")
        if not ranks.first:
            store.wait([SAID], timedelta(seconds=10))
    except dist.DistError:
        pass
