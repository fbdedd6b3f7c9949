"""What a table needs of a store, and where the store is not that of the paper."""

from __future__ import annotations

from collections.abc import Iterable

from seq2exp.data_tools import GeneWindows, Store
from seq2exp.errors import UserError

from .published import PUBLISHED
from .rows import FEATURES, SIGNALS, SPLITS


def check_store(store: Store, cell_type: str, lengths: Iterable[int]) -> None:
    """UserError where no row could be trained on it: signals, splits, contacts that reach over the windows, the target
    of another cell type."""
    held = (*store.tracks, *(["contacts"] if store.has_contacts else []))
    if held != SIGNALS:
        raise UserError(
            f"{store.path}: the tables are of the signals {', '.join(SIGNALS)}, in this order; it holds "
            f"{', '.join(held) or 'none'}: build it with --track H3K27ac=... --track DNase=... --contacts"
        )
    target = str(store.info["target"])
    other = next((cell for cell in PUBLISHED if cell in target and cell_type not in target), None)
    if other is not None:
        raise UserError(f"{store.path}: its target, {target}, is of {other}, not of {cell_type}")
    for length in lengths:
        for split in ("train", "valid", "test"):
            GeneWindows(store, length, split)


def unlike_the_paper(store: Store) -> list[str]:
    """A sentence for each respect in which the data are not the paper's."""
    genes, notes = store.genes, []
    for split, paper in SPLITS.items():
        there = set(genes.loc[genes["split"] == split, "chrom"])
        if there != paper:
            notes.append(f"the genes of {split} are on {_few(sorted(there))}, in the paper on {_few(sorted(paper))}")
    if len(store.feature_names) != FEATURES:
        notes.append(f"{len(store.feature_names)} gene features, in the paper {FEATURES}")
    if "CAGE" not in str(store.info["target"]).upper():
        notes.append(f"the target is the column {store.info['target']!r}, in the paper log10(1 + CAGE)")
    return notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
