"""Stands in for seq2exp.pretrained on a machine that has torch only: nothing is saved or loaded."""


class Pretrained:
    """A mix-in without methods."""
