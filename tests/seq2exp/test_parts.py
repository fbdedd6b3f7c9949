"""The names of a step's phases: heard when somebody listens, free and invisible to the compiler otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby

import pytest
import torch

from seq2exp import Seq2Exp, Seq2ExpConfig
from seq2exp.parts import listening, part

TINY = {"length": 64, "center": 8, "d_model": 8, "generator_layers": 1, "predictor_layers": 1, "d_state": 4}


@pytest.mark.parametrize("preset", ["soft", "hard", "top_fraction"])
def test_the_model_names_its_parts_in_order(preset):
    heard = []

    @contextmanager
    def listener(name: str) -> Iterator[None]:
        yield heard.append(name)

    model = Seq2Exp(getattr(Seq2ExpConfig, preset)(**TINY, gene_features=0))
    batch = torch.zeros(2, 64, dtype=torch.uint8), torch.rand(2, 64, 3)
    with listening(listener):
        model(*batch)
    in_order = [name for name, _ in groupby(heard)]
    assert in_order == ["embedding", "generator", "mask", "gather", "predictor", "head"]
    so_far = len(heard)
    model(*batch)
    assert len(heard) == so_far, "heard after it was closed"


def test_compiled_code_does_not_see_the_listener():
    def listener(name: str) -> nullcontext[None]:
        raise AssertionError(name)

    def double(x: torch.Tensor) -> torch.Tensor:
        with part("embedding"):
            return 2 * x

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    with listening(listener):
        assert compiled(torch.ones(2)).tolist() == [2, 2]
