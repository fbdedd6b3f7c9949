"""The rows of the paper's tables: which model each is, and where ours is not the published one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEEDS = (2, 22, 222, 2222, 22222)
SIGNALS = ("H3K27ac", "DNase", "contacts")
SPLITS = {"valid": {"chr3", "chr21"}, "test": {"chr22", "chrX"}}
FEATURES = 9


@dataclass(frozen=True)
class Row:
    """model: the `model:` section of its training file; everything else follows from the model's name. source: the row
    whose model of the same seed is frozen in it. note: what a reader of the table has to know. needs: beside the
    signals."""

    model: Mapping[str, Any]
    note: str
    needs: str = ""
    source: str | None = None


OWN = "Own implementation of the published baseline on the kernels of this package"
UNSAID = "The published scripts have no command for this row: batch size, rate and steps are those of Seq2Exp."
NOT_PAPER = "Not in the paper."
PEAKS = "peaks in the store"

ROWS: dict[str, Row] = {
    "Enformer": Row(
        {"name": "enformer"}, "The trunk of enformer-pytorch on the middle 196,608 bases, from scratch.",
        "pip install 'seq2exp[enformer]'",
    ),
    "HyenaDNA": Row({"name": "hyenadna"}, "Own module, with the published sizes and initial weights."),
    "Mamba": Row({"name": "mamba"}, f"{OWN}."),
    "Caduceus": Row({"name": "caduceus"}, f"{OWN}."),
    "Caduceus w/ signals": Row({"name": "caduceus_signals"}, f"{OWN}."),
    "EPInformer": Row(
        {"name": "epinformer"},
        "Own module; candidates are the peaks of the store, a gene's own number of them (the published one also "
        "encodes padding). 20,000 steps stand for the published 20 epochs, bfloat16 for its float16.",
        PEAKS,
    ),
    "MACS3": Row(
        {"name": "peaks", "packed": False},
        "The mask is the peaks of the store, and the centre (the published baseline reads its peaks only). " + UNSAID,
        PEAKS,
    ),
    "Seq2Exp-hard": Row(
        {"preset": "hard", "task_gradient": False},
        "As the published code: no task gradient reaches the mask. Other than there, a gene's prediction does not "
        "depend on its batch.",
    ),
    "Seq2Exp-soft": Row({"preset": "soft"}, "Mask ratio: mean of the mask over the window; the paper gives none."),
    "Seq2Exp-retrain": Row(
        {"name": "retrain", "packed": False, "fraction": 0.10, "centre_counts": True},
        "A new predictor under the mask of the Seq2Exp-soft of the same seed. Other than in the "
        "published code, bases of the include list are forced to 1. " + UNSAID,
        "Seq2Exp-soft of the same seed",
        source="Seq2Exp-soft",
    ),
    "ABC": Row({"name": "abc", "packed": False}, f"{NOT_PAPER} The mask is the 10 % of highest ABC score."),
    "Ridge": Row({"name": "ridge"}, f"{NOT_PAPER} Solved, the same for every seed."),
}  # fmt: skip

WITHOUT_MASK = ("Enformer", "HyenaDNA", "Mamba", "Caduceus", "Caduceus w/ signals", "EPInformer")
EXTRA = ("ABC", "Ridge")  # in no table, but anyone may ask for them


@dataclass(frozen=True)
class Table:
    """cell_type: the one that it is of; None: of both."""

    title: str
    rows: tuple[str, ...]
    cell_type: str | None = None


TABLES: dict[str, Table] = {
    "table1": Table("Table 1", (*WITHOUT_MASK, "Seq2Exp-hard", "Seq2Exp-soft")),
    "table2": Table("Table 2", ("Seq2Exp-hard", "Seq2Exp-retrain", "MACS3")),
    "table4": Table("Table 4", (*WITHOUT_MASK, "MACS3", "Seq2Exp-hard", "Seq2Exp-soft"), "K562"),
    "table5": Table("Table 5", (*WITHOUT_MASK, "MACS3", "Seq2Exp-hard", "Seq2Exp-soft"), "GM12878"),
}
