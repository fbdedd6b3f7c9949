"""The training loop. A run is a function of its configuration: stopping and resuming it changes no bit on the CPU."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from seq2exp.data_tools import GeneWindows, Store, collate, open_store
from seq2exp.errors import UserError
from seq2exp.inference.windows import Model, autocast, call_model, input_names, predict_genes, resolve_device

from .batches import StepBatches, augment
from .checkpoint import load_checkpoint, save_checkpoint, save_model
from .config import TrainConfig, load_config, model_config, save_config
from .log import MetricsLog
from .schedule import derive_seed, kl_weight, learning_rate

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
            there is nothing to resume, or training diverges.
    """

    def __init__(
        self, config: TrainConfig, run: Path, *, resume: bool = False, device: str = "auto", quiet: bool = False
    ) -> None:
        self.config, self.run, self.quiet = config, run, quiet
        self.device = resolve_device(device)
        store = open_store(config.data.store)
        self.model = self._build_model(store)
        self.train_set = GeneWindows(store, self.model.config.length, "train")
        self.valid_set = GeneWindows(store, self.model.config.length, "valid")
        self.inputs = input_names(self.train_set)
        opt = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=opt.lr, betas=opt.betas, weight_decay=opt.weight_decay
        )
        self.state = RunState()
        if resume:
            self._resume()
        elif (run / "config.yaml").exists():
            raise UserError(f"{run}: holds a run already; continue it with --resume {run} or choose another folder")
        else:
            run.mkdir(parents=True, exist_ok=True)
            save_config(config, run / "config.yaml")

    def fit(self) -> TrainResult:
        """Train to the last step; evaluate, keep the best model and checkpoint on the way."""
        config, state = self.config, self.state
        log = MetricsLog(self.run, state.step)
        order = StepBatches(len(self.train_set), config.data.batch_size, config.seed, config.steps, state.step)
        loader = DataLoader(
            self.train_set,
            batch_sampler=order,
            collate_fn=collate,
            num_workers=config.data.workers,
            persistent_workers=config.data.workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        first, seconds = state.step, 0.0
        with self._progress() as progress:
            task = progress.add_task("training", total=config.steps, completed=state.step)
            started = time.perf_counter()
            for batch in loader:
                self._step(batch)
                seconds += time.perf_counter() - started
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
                    log.write(state.step, self._rates() | means | row, seconds_per_step=seconds / (state.step - first))
                    state.sums, state.count = {}, 0
                if state.step % config.checkpoint_every == 0 or last:
                    self._save()
                progress.update(task, completed=state.step)
                started = time.perf_counter()
        log.close()
        if state.best_step is None or state.best_mse is None:
            raise UserError(f"{self.run}: no evaluation had a finite error, so there is no best model")
        pace = seconds / max(1, state.step - first)
        return TrainResult(self.run, config.steps, state.best_step, state.best_mse, pace)

    def _step(self, batch: dict[str, Any]) -> None:
        """One optimiser step; adds what is logged to the running sums."""
        from seq2exp import seq2exp_loss

        config, step = self.config, self.state.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        if config.data.rc_augmentation:
            batch = augment(batch, config.data.rc_augmentation, config.seed, step)
        self.model.train()
        with autocast(self.device, config.precision):
            out = call_model(self.model, batch, self.device, seed=derive_seed(config.seed, "mask", step))
            target = batch["target"].to(self.device)
            loss = seq2exp_loss(out, target, kl_weight=kl_weight(config, step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip)
        values = {
            "loss": loss.detach().item(),
            "train_mse": (out.expression.detach().float() - target).square().mean().item(),
            "gradient_norm": norm.item(),
        }
        if out.kl is not None:  # absent in a model without a mask
            values |= {"kl": out.kl.detach().item(), "selected_fraction": out.selected_fraction.detach().item()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise UserError(f"{self.run}: training diverged at step {step}: the loss is not finite; lower optimizer.lr")
        self.optimizer.step()
        self.state.step += 1
        self.state.count += 1
        for name, value in values.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + value

    def _rates(self) -> dict[str, float]:
        step = self.state.step - 1
        return {"lr": learning_rate(self.config, step), "kl_weight": kl_weight(self.config, step)}

    def _validate(self) -> dict[str, float]:
        """Error on the validation genes; the model with the lowest, once the KL weight is full, is kept in best/.

        Before that the mask is not yet held back: such models predict as well, but what their mask selects says less.
        """
        from seq2exp.inference.evaluate import scores

        genes = predict_genes(
            self.model, self.valid_set, batch_size=self.config.data.batch_size, workers=self.config.data.workers,
            device=self.device, precision=self.config.precision,
        )  # fmt: skip
        result = scores(genes)
        kl = self.config.kl
        ramped = self.state.step >= (kl.start_fraction + kl.ramp_fraction) * self.config.steps - 1e-6
        better = self.state.best_mse is None or result["mse"] < self.state.best_mse
        if ramped and better and math.isfinite(result["mse"]):
            self.state.best_mse, self.state.best_step = result["mse"], self.state.step
            save_model(self.run / "best", self.model, self.inputs)
        return {"valid_mse": result["mse"], "valid_pearson": result["pearson"]}

    def _save(self) -> None:
        state = asdict(self.state) | {"config": self.config.model_dump(mode="json")}
        save_checkpoint(self.run / LAST, self.model, self.optimizer, state)

    def _resume(self) -> None:
        path = self.run / LAST
        if not path.exists():  # stopped before the first checkpoint: from the start
            return
        state = load_checkpoint(path, self.model, self.optimizer)
        before, now = state.pop("config"), self.config.model_dump(mode="json")
        for section in now:
            if before.get(section) != now[section]:
                raise UserError(
                    f"{self.run / 'config.yaml'}: {section} was changed since the checkpoint: "
                    f"it was {before.get(section)!r}, now {now[section]!r}"
                )
        self.state = RunState(**state)

    def _build_model(self, store: Store) -> Model:
        from seq2exp import Seq2Exp, Seq2ExpConfig
        from seq2exp.baselines import GeneExpBiMamba

        names = [*store.tracks, *(["contacts"] if store.has_contacts else [])]
        features = list(store.feature_names)
        config = model_config(self.config.model, tracks=len(names), gene_features=len(features))
        for name, value, held in (("tracks", config.tracks, names), ("gene_features", config.gene_features, features)):
            if value != len(held):
                raise UserError(
                    f"model.{name} is {value}, but {self.config.data.store} holds {len(held)}: "
                    f"{', '.join(held) or 'none'}"
                )
        torch.manual_seed(derive_seed(self.config.seed, "weights"))
        model: Model = Seq2Exp(config) if isinstance(config, Seq2ExpConfig) else GeneExpBiMamba(config)
        return model.to(self.device)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True, quiet=self.quiet),
        )  # fmt: skip


def train(
    config: TrainConfig | None, run: Path, *, resume: bool = False, device: str = "auto", quiet: bool = False
) -> TrainResult:
    """Train one run; with ``resume`` the configuration is the one kept in the run folder."""
    if resume:
        if not (run / "config.yaml").exists():
            raise UserError(f"{run}: no run to resume: {run / 'config.yaml'} does not exist")
        config = load_config(run / "config.yaml")
    if config is None:
        raise UserError("a configuration is needed unless a run is resumed")
    return Trainer(config, run, resume=resume, device=device, quiet=quiet).fit()
