"""The map-style dataset: a window of sequence and signals around each gene's TSS."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seq2exp.data_tools.store import Store, open_store
from seq2exp.errors import UserError

log = logging.getLogger(__name__)


class GeneWindows(torch.utils.data.Dataset[dict[str, Any]]):
    """Windows [tss - length // 2, tss - length // 2 + length) of the genes of a split, in table order.

    Safe in DataLoader workers, forked or spawned: only paths cross into them.

    An item is a dict of
        sequence: uint8 (length,), A C G T N = 0..4, N past chromosome ends
        signals: float32 (length, tracks), the store's tracks in order, then log10(1 + contact) when it has contacts
        gene_features: float32 (features,)
        target: float32 (), NaN where empty
        exclude, include: bool (length,)
        gene_id: str;  chrom: str;  start: int, the window's first base;  row: int, the gene's row in store.genes

    Args:
        store: a store or its path.
        length: bases.
        split: only the genes of this split; None: of all.
        require_target: leave out genes without a target (their number is logged).

    Raises:
        UserError: an unknown split, no gene left, or contacts that do not reach over the window.
    """

    def __init__(
        self, store: Store | str | Path, length: int = 200_000, split: str | None = None, require_target: bool = True
    ) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.length = length
        self.split = split
        if length < 1:
            raise UserError(f"The window length is {length}; it must be at least 1.")
        genes = self.store.genes
        if split is not None:
            there = sorted(set(genes["split"]) - {""})
            if split not in there:
                raise UserError(f"{self.store.path}: no split {split!r}; the splits are {', '.join(there) or 'none'}.")
            genes = genes[genes["split"] == split]
        if require_target:
            empty = int(genes["target"].isna().sum())
            if empty:
                log.warning(
                    "%s: %d of %d genes%s have no target and are left out.",
                    self.store.path,
                    empty,
                    len(genes),
                    f" of {split}" if split else "",
                )
            genes = genes[genes["target"].notna()]
        if genes.empty:
            raise UserError(f"{self.store.path}: no gene{f' of split {split}' if split else ''} has a target.")
        covered = (2 * self.store.contact_reach - 1) * self.store.contact_resolution
        if self.store.has_contacts and length > covered:
            raise UserError(
                f"{self.store.path}: its contacts cover windows of up to {covered:,} bases, not {length:,}; build the "
                "store with a larger --contact-reach."
            )
        self.genes: pd.DataFrame = genes
        self.rows: np.ndarray = genes.index.to_numpy(np.int64)

    @property
    def signal_names(self) -> list[str]:
        """Names of the columns of signals."""
        return [*self.store.tracks, *(["contacts"] if self.store.has_contacts else [])]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        store, row = self.store, int(self.rows[index])
        gene = self.genes.iloc[index]
        chrom, start = str(gene["chrom"]), int(gene["tss"]) - self.length // 2
        end = start + self.length
        signals = np.empty((self.length, len(self.signal_names)), dtype=np.float32)
        for column, name in enumerate(store.tracks):
            signals[:, column] = store.track(name, chrom, start, end)
        if store.has_contacts:
            signals[:, -1] = store.contacts(row, start, end)
        return {
            "sequence": torch.from_numpy(store.sequence(chrom, start, end)),
            "signals": torch.from_numpy(signals),
            "gene_features": torch.tensor([gene[name] for name in store.feature_names], dtype=torch.float32),
            "target": torch.tensor(gene["target"], dtype=torch.float32),
            "gene_id": str(gene["gene_id"]),
            "row": row,
            "exclude": torch.from_numpy(store.regions("exclude", chrom, start, end)),
            "include": torch.from_numpy(store.regions("include", chrom, start, end)),
            "chrom": chrom,
            "start": start,
        }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of ``GeneWindows`` -> one batch: tensors stacked, row and start as int64 (batch,), strings as lists."""
    batch: dict[str, Any] = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, int):
            batch[name] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[name] = values
    return batch
