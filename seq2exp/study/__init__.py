"""The simulated-truth study: what makes the mask learn which elements are causal, and how reliably."""

from .conditions import PRESETS
from .plan import Run
from .runner import Study

__all__ = ["PRESETS", "Run", "Study"]
