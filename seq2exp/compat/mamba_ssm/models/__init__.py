"""Stacks of blocks and the language model."""
