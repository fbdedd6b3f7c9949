"""Running a model over gene windows: the part that training, evaluation, prediction and discovery share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch.utils.data import DataLoader, Subset

from seq2exp.data_tools import GeneWindows, expand, stack
from seq2exp.errors import UserError
from seq2exp.strands import reverse_complement

REGIONS = ("exclude", "include", "peaks")  # the last only where the model reads peaks
Model: TypeAlias = Any  # a module of `seq2exp.registry`


def resolve_device(name: str) -> torch.device:
    """``auto``: the GPU when there is one. Raises UserError when a GPU is asked for and absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {name!r} is unknown: one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch finds no GPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def call_model(model: Model, batch: dict[str, Any], device: torch.device, seed: int | None = None) -> Any:
    """Move one collated batch to the device and run the model on it."""
    names = ("sequence", "signals", "gene_features", *REGIONS)
    moved = {name: batch[name].to(device, non_blocking=True) for name in names if name in batch}
    return model(
        moved["sequence"],
        moved["signals"],
        moved["gene_features"] if moved["gene_features"].shape[1] else None,
        **{name: moved[name] for name in REGIONS if name in moved},
        seed=seed,
        rows=torch.as_tensor(batch["row"], dtype=torch.int64, device=device),
    )


def run_windows(
    model: Model,
    windows: GeneWindows,
    *,
    batch_size: int = 1,
    workers: int = 0,
    device: torch.device | None = None,
    precision: str = "fp32",
    order: Sequence[int] | None = None,
    rc_average: bool = False,
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(batch, output) in evaluation mode for all windows, or for those of ``order`` in that order.

    Args:
        rc_average: run each window and its reverse complement and give the mean of both, what belongs to a base put
            back in its place (Caduceus-Ph); a binary mask becomes 0, 0.5 or 1. Twice the work.

    Raises:
        UserError: rc_average where the centre of a reversed window is another one.
    """
    length, center = model.config.length, model.config.center
    if rc_average and (length - center) % 2:
        raise UserError(f"rc_average needs a model whose length - center is even, got {length} - {center}")
    device = device or next(model.parameters()).device
    dataset = windows if order is None else Subset(windows, order)
    model.eval()
    batches = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=stack)
    for batch in map(expand, batches):
        with torch.inference_mode(), autocast(device, precision):
            out = call_model(model, batch, device)
            if rc_average:
                out = _strand_mean(out, call_model(model, reverse_complement(batch), device))
            yield batch, out


def _strand_mean(out: Any, reversed_out: Any) -> Any:
    """The mean of two outputs, the second of the reverse-complemented windows."""
    placed = (x.flip(1) if x is not None and x.ndim == 2 else x for x in reversed_out)  # (batch, L): base by base
    return type(out)(*(None if x is None else (x + y) / 2 for x, y in zip(out, placed, strict=True)))


def predict_genes(model: Model, windows: GeneWindows, **settings: Any) -> pd.DataFrame:
    """One row per gene: gene_id, gene_name (where the store has it), chrom, tss (0-based), strand, split, target (NaN
    without), prediction, selected_fraction."""
    rows: list[pd.DataFrame] = []
    for batch, out in run_windows(model, windows, **settings):
        values = {"prediction": out.expression.float().cpu().numpy(), "selected_fraction": selected_fraction(out)}
        rows.append(pd.DataFrame(values, index=list(map(int, batch["row"]))))
    genes = windows.genes
    columns = ["gene_id", *(["gene_name"] if "gene_name" in genes else []), "chrom", "tss", "strand", "split", "target"]
    return genes.loc[:, columns].join(pd.concat(rows))


def selected_fraction(out: Any) -> Any:
    """Share of the window that the mask lets through, per gene: mean of the mask, NaN for a model without one."""
    if out.mask is None:
        return float("nan")
    return out.mask.float().mean(1).cpu().numpy()


def load_model(path: str | Path, device: str = "auto") -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """A trained model from a run folder (its best/) or from a folder of ``save_pretrained``.

    Returns:
        the model in evaluation mode, the names of its inputs ({} when the folder does not say), and the settings of
        its run ({} when it is not a run folder).

    Raises:
        UserError: no model there, or a damaged one.
    """
    path, folder = Path(path), model_folder(path)
    import yaml

    from seq2exp.registry import MODELS, model_class

    try:
        kind = json.loads((folder / "config.json").read_text()).get("model")
        inputs = json.loads(text) if (text := _text(folder / "inputs.json")) else {}
        run = yaml.safe_load(text) if folder != path and (text := _text(path / "config.yaml")) else {}
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: cannot be read as a saved model: {' '.join(str(error).split())}") from None
    found = model_class(kind or "Seq2Exp")
    if found is None:
        known = sorted({known.model.__name__ for known in MODELS.values()})
        raise UserError(f"{folder / 'config.json'}: model {kind!r} is unknown: one of {', '.join(known)}")
    model: Model = found.from_pretrained(folder)
    return model.to(resolve_device(device)).eval(), inputs, run


def model_folder(path: str | Path) -> Path:
    """Where the model of a run folder is (its best/), or that of a folder of ``save_pretrained``. Raises UserError when
    there is none."""
    path = Path(path)
    folder = path / "best" if (path / "best").is_dir() else path
    if (folder / "config.json").is_file():
        return folder
    if (path / "config.yaml").is_file():
        raise UserError(f"{path}: this run has no best model yet; train it to its first evaluation at full KL weight")
    raise UserError(f"{path}: neither a run folder nor a saved model: {folder / 'config.json'} does not exist")


def input_names(windows: GeneWindows) -> dict[str, list[str]]:
    """Names of a window's signals and gene features, in order."""
    return {"signals": windows.signal_names, "gene_features": list(windows.store.feature_names)}


def check_inputs(model: Model, inputs: dict[str, Any], windows: GeneWindows) -> None:
    """Raise UserError unless the store's signals and gene features are those that the model was trained on."""
    held, path = input_names(windows), windows.store.path
    counts = {"signals": model.config.tracks, "gene_features": model.config.gene_features}
    for name, names in held.items():
        if name in inputs and inputs[name] != names:
            raise UserError(
                f"{path}: the model was trained on the {name.replace('_', ' ')} {', '.join(inputs[name]) or '(none)'}, "
                f"this store has {', '.join(names) or '(none)'}"
            )
        if len(names) != counts[name]:
            what = name.replace("_", " ")
            raise UserError(f"{path}: the model takes {counts[name]} {what}, this store has {len(names)}")


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
