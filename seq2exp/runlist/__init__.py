"""Many trainings as one job: a list that is fixed at its beginning, each run in a process of its own, resumable."""

from .plan import Run, keep_plan, read_plan, slug
from .pool import RunList, Slot, alone, progress_bar

__all__ = ["Run", "RunList", "Slot", "alone", "keep_plan", "progress_bar", "read_plan", "slug"]
