"""The tables of the paper: their rows, trained with the paper's settings, beside the published values."""

from .plan import TableRun, run_list
from .rows import EXTRA, ROWS, TABLES

__all__ = ["EXTRA", "ROWS", "TABLES", "TableRun", "run_list"]
