"""Memory and time of a training step, part by part, and the largest batch or window that fits into a budget."""

from .isolate import OutOfMemory
from .measure import StepCost, measure_step
from .search import Search, largest_batch, search_batch, search_length, with_length
from .step import StepSettings, TrainingStep

__all__ = [
    "OutOfMemory",
    "Search",
    "StepCost",
    "StepSettings",
    "TrainingStep",
    "largest_batch",
    "measure_step",
    "search_batch",
    "search_length",
    "with_length",
]
