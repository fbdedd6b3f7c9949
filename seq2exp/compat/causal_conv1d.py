"""The names of causal-conv1d."""

__version__ = "1.4.0+seq2exp"
