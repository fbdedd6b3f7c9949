"""What one of several ranks does in tests/seq2exp/test_train_ranks.py.

`python two_ranks.py JOBS.json`: runs that are done one after another in one group of ranks.
`python two_ranks.py exhaust ...`: the program, on whose rank 1 the memory is not enough in step 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from seq2exp.training import TrainConfig, Trainer
from seq2exp.training.parallel import whole
from seq2exp.training.ranks import Ranks, started


class Interrupted(Exception):
    """As if the run had been killed."""


def run_job(ranks: Ranks, *, config: dict[str, Any], run: str, do: str = "fit", resume: bool = False) -> None:
    """``do``: "fit", "interrupt" after the checkpoint at step 4, or keep the "gradients" of the first step."""
    trainer = Trainer(TrainConfig.model_validate(config), Path(run), resume=resume, quiet=True, ranks=ranks)
    if do == "gradients":
        found = gradients(trainer)
        if ranks.first:
            torch.save(found, Path(run) / "gradients.pt")
    elif do == "interrupt":
        interrupt(trainer, 4)
    else:
        trainer.fit()


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The clipped gradient of the first step of every parameter, the masks of its windows, its logged values."""
    masks: list[torch.Tensor] = []
    hook = trainer.model.register_forward_hook(lambda _module, _inputs, out: masks.append(out.mask.detach()))
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
    trainer._step(trainer._batches())
    hook.remove()
    found = {name: whole(parameter.grad) for name, parameter in trainer.model.named_parameters()}
    found["masks"] = torch.cat(trainer.ranks.gather(torch.cat(masks)))
    return found | {name: torch.tensor(value) for name, value in trainer.state.sums.items()}


def interrupt(trainer: Trainer, step: int) -> None:
    """Train to the checkpoint of a step and go on to nowhere."""
    save = trainer._save

    def save_and_stop() -> None:
        save()
        if trainer.state.step == step:
            raise Interrupted

    trainer._save = save_and_stop  # type: ignore[method-assign]
    try:
        trainer.fit()
    except Interrupted:
        return
    raise AssertionError("ran to its end")


def exhaust_rank_1(arguments: list[str]) -> None:
    from seq2exp.cli import main

    real = Trainer._backward

    def backward(self: Trainer, *args: Any) -> Any:
        if os.environ["RANK"] == "1" and self.state.step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(self, *args)

    Trainer._backward = backward  # type: ignore[method-assign]
    main(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "exhaust":
        exhaust_rank_1(sys.argv[2:])
    else:
        with started() as ranks:
            for job in json.loads(Path(sys.argv[1]).read_text()):
                run_job(ranks, **job)
