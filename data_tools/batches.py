"""From items of ``GeneWindows`` to batches: stacking, and the expansion of compact ones on any device."""

from typing import Any

import torch
from torch import Tensor


def stack(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items -> one batch: tensors stacked, row and start as int64 (batch,), strings as lists. Compact ones stay so."""
    batch: dict[str, Any] = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, int):
            batch[name] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[name] = values
    return batch


def expand(batch: dict[str, Any], device: torch.device | str | None = None) -> dict[str, Any]:
    """Moves a batch to a device and there makes signals and regions of its compact parts, if it has them.

    The result is that of items that were not compact, bit by bit: signals float32 (batch, length, tracks), exclude,
    include and, if read, peaks bool (batch, length).
    """
    place = batch.get("contact_place")  # stays where it is: its numbers say what is copied where
    batch = {n: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for n, x in batch.items()}
    if "tracks" not in batch:
        return batch
    tracks: Tensor = batch.pop("tracks")
    count, number, length = tracks.shape
    signals = tracks.new_empty(count, length, number + (place is not None), dtype=torch.float32)
    for i in range(number):  # one transposed copy of all takes half as long again
        signals[..., i] = tracks[:, i]
    if place is not None:
        signals[..., -1] = 0
        bins = batch.pop("contact_bins")
        del batch["contact_place"]
        for row, (size, offset, low, high) in enumerate(place.tolist()):
            signals[row, low:high, -1] = bins[row].repeat_interleave(size)[offset + low : offset + high]
    roles = [name.removesuffix("_bits") for name in batch if name.endswith("_bits")]
    regions = {role: _bits(batch.pop(f"{role}_bits"), length) for role in roles}
    return batch | {"signals": signals} | regions


def collate(items: list[dict[str, Any]], device: torch.device | str | None = None) -> dict[str, Any]:
    """Items -> one batch of complete signals, on `device`: ``stack``, then ``expand``.

    With DataLoader workers stack there (``collate_fn=stack``) and expand what the loader gives: workers have no GPU.
    """
    return expand(stack(items), device)


def _bits(packed: Tensor, length: int) -> Tensor:
    """uint8 (batch, ceil(length / 8)) -> bool (batch, length)."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).bool().flatten(1)[:, :length]
