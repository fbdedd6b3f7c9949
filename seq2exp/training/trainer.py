"""The training loop. A run is a function of its configuration: stopping and resuming it changes no bit on the CPU, and
the number of ranks nothing but roundings."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from seq2exp.baselines import Ridge
from seq2exp.data_tools import GeneWindows, Store, collate, expand, open_store, stack
from seq2exp.errors import UserError, is_out_of_memory
from seq2exp.inference.windows import Model, autocast, call_model, input_names, predict_genes, resolve_device
from seq2exp.seeds import derive_seed
from seq2exp.start import freeze_parts, start_from_pretrained, start_from_run

from .batches import StepBatches, augment
from .checkpoint import load_checkpoint, load_weights, own_weights, save_checkpoint, save_model
from .config import PretrainedConfig, TrainConfig, defining, load_config, model_config, save_config
from .log import MetricsLog
from .memory import advice, windows_that_fit
from .parallel import exchanging, replica, shard, whole
from .ranks import Ranks, started
from .schedule import kl_weight, learning_rate

LAST = Path("checkpoints") / "last.safetensors"


@dataclass
class RunState:
    """What a checkpoint keeps beside the tensors."""

    step: int = 0
    best_step: int | None = None
    best_mse: float | None = None
    sums: dict[str, float] = field(default_factory=dict)  # since the last logged row
    count: int = 0


@dataclass(frozen=True)
class TrainResult:
    """Where the run is, its best validation mean squared error, and how long a step took in this process."""

    run: Path
    steps: int
    best_step: int
    best_mse: float
    seconds_per_step: float


class Trainer:
    """One run in one folder: config.yaml, checkpoints/last.safetensors, best/, metrics.csv, tensorboard/.

    Raises:
        UserError: the store does not fit the configuration, the folder holds a run already (without ``resume``),
            there is nothing to resume, training diverges, or the memory is not enough.
    """

    def __init__(
        self, config: TrainConfig, run: Path, *, resume: bool = False, device: str = "auto", quiet: bool = False,
        ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        self.config, self.run = config, run
        self.ranks = ranks or Ranks()
        self.quiet = quiet or not self.ranks.first
        self.parts = self.ranks.parts(config.data.batch_size, config.data.accumulate)
        self.device = resolve_device(device)
        self.ranks.take_device(self.device)
        store = open_store(config.data.store)
        self.model_config = self._model_config(store)
        self.model = self._new_model()
        begins = not (resume and (run / LAST).exists())  # else the weights of a checkpoint follow
        if config.start_from and begins:
            start_from_run(self.model, config.start_from)
        if config.pretrained:
            self._start_from_pretrained(config.pretrained, weights=begins)
        self.sharded = self.ranks.world > 1 and config.parallel == "fsdp"
        if self.sharded:
            shard(self.model, self.device, self.ranks.world)
        length, peaks = self.model.config.length, self.model.reads_peaks
        self.train_set = GeneWindows(
            store, length, "train", compact=True, max_shift=config.data.max_shift, peaks=peaks,
            seed=derive_seed(config.seed, "shift"),
        )  # fmt: skip
        self.valid_set = GeneWindows(store, length, "valid", compact=True, peaks=peaks)
        self.inputs = input_names(self.train_set)
        opt = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=opt.lr, betas=opt.betas, weight_decay=opt.weight_decay
        )
        self.state = RunState()
        if resume:
            self._resume()
        elif not self.ranks.first:
            pass
        elif (run / "config.yaml").exists():
            raise UserError(f"{run}: holds a run already; continue it with --resume {run} or choose another folder")
        else:
            run.mkdir(parents=True, exist_ok=True)
            save_config(config, run / "config.yaml")
        if isinstance(self.model, Ridge) and self.ranks.world > 1:
            raise UserError("model.name ridge is solved at once, in one process: start it without torchrun")
        self.replica = replica(self.model, self.ranks.world)
        self.forward = torch.compile(self.replica) if config.compile else self.replica

    def fit(self) -> TrainResult:
        """Train to the last step; evaluate, keep the best model and checkpoint on the way."""
        try:
            return self._fit()
        except (RuntimeError, MemoryError) as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise UserError(
                    f"compile: true does not work here, set it to false: {str(error).splitlines()[0]}"
                ) from error
            if not is_out_of_memory(error):
                raise
        raise UserError(self._out_of_memory())  # here, where the failed step holds no memory any more

    def _fit(self) -> TrainResult:
        config, state = self.config, self.state
        log = MetricsLog(self.run, state.step) if self.ranks.first else None
        batches = self._batches()
        first, seconds = state.step, 0.0
        with self._progress() as progress:
            task = progress.add_task("training", total=config.steps, completed=state.step)
            while state.step < config.steps:
                began = time.perf_counter()
                self._step(batches)
                seconds += time.perf_counter() - began
                last = state.step == config.steps
                row: dict[str, float] = {}
                if state.step % config.evaluate_every == 0 or last:
                    row = self._validate()
                    progress.console.print(
                        f"step {state.step}: valid MSE {row['valid_mse']:.4f}, Pearson {row['valid_pearson']:.3f}, "
                        f"{seconds / (state.step - first):.2f} s/step"
                    )
                if row or state.step % config.log_every == 0:
                    means = {name: total / state.count for name, total in state.sums.items()}
                    if log:
                        pace = seconds / (state.step - first)
                        log.write(state.step, self._rates() | means | row, seconds_per_step=pace)
                    state.sums, state.count = {}, 0
                if state.step % config.checkpoint_every == 0 or last:
                    self._save()
                progress.update(task, completed=state.step)
        if log:
            log.close()
        if state.best_step is None or state.best_mse is None:
            raise UserError(f"{self.run}: no evaluation had a finite error, so there is no best model")
        pace = seconds / max(1, state.step - first)
        return TrainResult(self.run, config.steps, state.best_step, state.best_mse, pace)

    def _batches(self) -> Iterator[dict[str, Any]]:
        """This rank's micro-batches of all steps to come."""
        data, state = self.config.data, self.state
        order = StepBatches(
            len(self.train_set), data.batch_size, self.config.seed, self.config.steps, state.step, self.parts
        )
        batches = DataLoader(
            self.train_set,
            batch_sampler=order,
            collate_fn=stack,
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        return (expand(batch, self.device) for batch in batches)

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One optimiser step; adds what is logged to the running sums. Ridge is solved instead, in one."""
        config, step = self.config, self.state.step
        if isinstance(self.model, Ridge):
            self.model.fit(self.train_set, self.valid_set)
            self.state.step = config.steps
            return
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for part in self.parts:
            with exchanging(self.replica, part == self.parts[-1]):
                for name, mean in self._backward(next(batches), part).items():
                    sums[name] = sums[name] + mean if name in sums else mean
        values = self.ranks.mean({name: total.item() / len(self.parts) for name, total in sums.items()})
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip)
        values["gradient_norm"] = whole(norm).item()
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            remedy = "lower optimizer.lr"
            if getattr(self.model_config, "capacity", None):  # on a GPU nothing else tells
                remedy += f", or raise model.capacity if the mask selects more than {self.model_config.capacity:g}"
            raise UserError(f"{self.run}: training diverged at step {step}: the loss is not finite; {remedy}")
        self.optimizer.step()
        self.state.step += 1
        self.state.count += 1
        for name, value in values.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + value

    def _backward(self, batch: dict[str, Any], part: slice) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch, which is this part of the step's batch; what is logged of it."""
        config, step = self.config, self.state.step
        torch.manual_seed(derive_seed(config.seed, f"dropout {part.start}", step))  # a resumed run draws the same
        if config.data.rc_augmentation:
            batch = augment(batch, config.data.rc_augmentation, config.seed, step, config.data.batch_size, part)
        out, target, loss = self._loss(self.forward, batch)
        (loss / len(self.parts)).backward()
        values = {"loss": loss, "train_mse": (out.expression.float() - target).square().mean()}
        values |= {"kl": out.kl, "selected_fraction": out.selected_fraction}  # None in a model without a mask
        return {name: value.detach() for name, value in values.items() if value is not None}

    def _loss(self, model: Any, batch: dict[str, Any]) -> tuple[Any, Tensor, Tensor]:
        """Output, target and loss of a model in this step."""
        from seq2exp import seq2exp_loss

        config, step = self.config, self.state.step
        with autocast(self.device, config.precision):
            out = call_model(model, batch, self.device, seed=derive_seed(config.seed, "mask", step))
            target = batch["target"].to(self.device)
            return out, target, seq2exp_loss(out, target, kl_weight=kl_weight(config, step))

    @property
    def _micro_batch(self) -> int:
        """Windows at a time."""
        return self.parts[0].stop - self.parts[0].start

    def _rates(self) -> dict[str, float]:
        step = self.state.step - 1
        return {"lr": learning_rate(self.config, step), "kl_weight": kl_weight(self.config, step)}

    def _validate(self) -> dict[str, float]:
        """Error on the validation genes; the model with the lowest, once the KL weight is full, is kept in best/.

        Before that the mask is not yet held back: such models predict as well, but what their mask selects says less.
        """
        from seq2exp.inference.evaluate import scores

        share = self.ranks.spread(len(self.valid_set))
        genes = predict_genes(
            self.model, self.valid_set, batch_size=self._micro_batch, order=share,
            workers=self.config.data.workers, device=self.device, precision=self.config.precision,
        )  # fmt: skip
        genes = reduce(pd.DataFrame.combine_first, self.ranks.gather(genes))
        result = scores(genes)
        kl = self.config.kl
        ramped = self.state.step >= (kl.start_fraction + kl.ramp_fraction) * self.config.steps - 1e-6
        better = self.state.best_mse is None or result["mse"] < self.state.best_mse
        if ramped and better and math.isfinite(result["mse"]):
            self.state.best_mse, self.state.best_step = result["mse"], self.state.step
            best = self._whole_model()
            if self.ranks.first:
                save_model(self.run / "best", best, self.inputs)
        return {"valid_mse": result["mse"], "valid_pearson": result["pearson"]}

    def _save(self) -> None:
        state = asdict(self.state) | {"config": self.config.model_dump(mode="json")}
        save_checkpoint(self.run / LAST, self.model, self.optimizer, state, write=self.ranks.first)

    def _resume(self) -> None:
        path = self.run / LAST
        if not path.exists():  # stopped before the first checkpoint: from the start
            return
        state = load_checkpoint(path, self.model, self.optimizer)
        before, now = defining(state.pop("config")), defining(self.config.model_dump(mode="json"))
        for section in now:
            if before.get(section) != now[section]:
                raise UserError(
                    f"{self.run / 'config.yaml'}: {section} was changed since the checkpoint: "
                    f"it was {before.get(section)!r}, now {now[section]!r}"
                )
        self.state = RunState(**state)

    def _model_config(self, store: Store) -> Any:
        """The configuration of the model, with what the store holds."""
        names = [*store.tracks, *(["contacts"] if store.has_contacts else [])]
        features = list(store.feature_names)
        config = model_config(
            self.config.model, tracks=len(names), gene_features=len(features), signal_names=tuple(names)
        )
        for name, value, held in (("tracks", config.tracks, names), ("gene_features", config.gene_features, features)):
            if value != len(held):
                raise UserError(
                    f"model.{name} is {value}, but {self.config.data.store} holds {len(held)}: "
                    f"{', '.join(held) or 'none'}"
                )
        return config

    def _new_model(self) -> Model:
        from seq2exp.registry import entry

        torch.manual_seed(derive_seed(self.config.seed, "weights"))
        model: Model = entry(self.config.model.get("name", "seq2exp")).model(self.model_config)
        return model.to(self.device)

    def _start_from_pretrained(self, pretrained: PretrainedConfig, weights: bool) -> None:
        if weights:
            start_from_pretrained(self.model, pretrained.path, parts=pretrained.parts)
        if pretrained.freeze:
            freeze_parts(self.model, pretrained.parts)

    def _whole_model(self) -> Model:
        """The model, of which each rank may hold a share only. All ranks take part."""
        if not self.sharded:
            return self.model
        model = self._new_model()
        load_weights(model, {name: whole(tensor) for name, tensor in own_weights(self.model).items()})
        return model

    def _out_of_memory(self) -> str:
        """One sentence, from the memory that one and two windows take without the other ranks."""
        # Gradients of a model that is spread over ranks would wait for the others.
        model = self.model if self.ranks.world == 1 else self._new_model()

        def step(windows: int) -> None:
            model.zero_grad(set_to_none=True)
            batch = collate([self.train_set[i % len(self.train_set)] for i in range(windows)])
            _, _, loss = self._loss(model, batch)
            loss.backward()

        self.optimizer.zero_grad(set_to_none=True)
        here, fits = self._micro_batch, windows_that_fit(step, self.device)
        remedy = advice(
            here, len(self.parts), fits, recomputes=getattr(self.model_config, "recompute", "layer") == "layer"
        )
        where = f"{self.run / 'config.yaml'}: out of memory at step {self.state.step}"
        return f"{where} with {here} windows at a time, {remedy} and continue with --resume {self.run}"

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True, quiet=self.quiet),
        )  # fmt: skip


def train(
    config: TrainConfig | Path | None, run: Path, *, resume: bool = False, device: str = "auto", quiet: bool = False
) -> TrainResult:
    """Train one run, on all ranks where torchrun started several.

    config: the settings or their file; with ``resume`` None, they are then those kept in the run folder.
    """
    with started() as ranks:
        if resume:
            config = run / "config.yaml"
            if not config.exists():
                raise UserError(f"{run}: no run to resume: {config} does not exist")
        if config is None:
            raise UserError("a configuration is needed unless a run is resumed")
        if isinstance(config, Path):
            config = load_config(config)
        return Trainer(config, run, resume=resume, device=device, quiet=quiet, ranks=ranks).fit()
