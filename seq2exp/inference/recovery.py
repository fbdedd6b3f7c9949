"""Where elements are known: how well the mask finds them, beside the scores that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from seq2exp.config import Seq2ExpConfig
from seq2exp.data_tools import GeneWindows
from seq2exp.errors import UserError

from .plot import KnownElement, read_elements
from .scores import Element, Recovery
from .windows import Model, run_windows

CAUSAL = "causal"
LEARNED = 1.3  # times the average precision of the best rival, over bases

Curve = NDArray[np.float32]
Inputs = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Found:
    """What ``recover`` measured. Bases of the centre, excluded ones and those past chromosome ends are not counted.

    Attributes:
        genes: a row each: target, prediction.
        precision: average precision (over bases, over elements) of every score of the model: "soft mask", "sequence
            part" (alpha_seq / (alpha_seq + beta_seq)) and "mask x gradient" (mask * |d expression / d mask|).
        rivals: the same of the tracks and their products, which need no model.
        prevalence: the same of a constant.
        top_precision, top_recall: of the bases in the top fraction of each window's soft mask.
        selected: share of bases that the mask lets through: ones of a binary mask, means over 0.5 of a soft one.
        mean_mask: mean of the soft mask.
        profile: by kind of element the mean soft mask around it, three element widths long.

    What belongs to the mask is {} or NaN for a model without one.
    """

    genes: pd.DataFrame
    precision: dict[str, tuple[float, float]]
    rivals: dict[str, tuple[float, float]]
    prevalence: tuple[float, float]
    top_precision: float
    top_recall: float
    selected: float
    mean_mask: float
    profile: dict[str, list[float]]

    @property
    def best_rival(self) -> float:
        """Average precision over bases of the best track or product of tracks."""
        return max(bases for bases, _ in self.rivals.values())

    @property
    def learned(self) -> bool:
        """Whether the mask finds more than its input shows."""
        return bool(self.precision) and self.precision["soft mask"][0] >= LEARNED * self.best_rival


class KnownElements:
    """The elements of a BED file whose fifth column is a kind; those of kind "causal" are the true ones.

    Raises:
        UserError: the file cannot be read, says no kinds, or has no causal element in a window.
    """

    def __init__(self, path: Path, windows: GeneWindows) -> None:
        elements = read_elements(path)
        if not any(element.kind == CAUSAL for element in elements):
            raise UserError(
                f"{path}: no truth to compare with: no element is of kind {CAUSAL!r}, the fifth column of such a file "
                "(elements.bed of `seq2exp data simulate`)"
            )
        self._by_chromosome: dict[str, list[KnownElement]] = {}
        for element in elements:
            self._by_chromosome.setdefault(element.chrom, []).append(element)
        starts = windows.genes["tss"] - windows.length // 2
        places = zip(windows.genes["chrom"], starts, strict=True)
        if not any(e.kind == CAUSAL for chrom, start in places for e in self.within(chrom, start, windows.length)):
            raise UserError(
                f"{path}: no causal element lies in a window of {windows.store.path}; is it the truth of another store?"
            )

    def within(self, chrom: str, start: int, length: int) -> list[KnownElement]:
        """Elements that overlap [start, start + length)."""
        here = self._by_chromosome.get(chrom, [])
        return [element for element in here if element.start < start + length and element.end > start]


def rivals(signals: Curve, names: Sequence[str]) -> dict[str, Curve]:
    """Scores (L,) that need no model: each track, their product, and these times contact where there is one."""
    by_name = dict(zip(names, signals.T, strict=True))
    contact = by_name.pop("contacts", None)
    scores: dict[str, Curve] = dict(by_name)
    if len(by_name) > 1:
        scores[" x ".join(by_name)] = np.prod(list(by_name.values()), axis=0)
    if contact is not None:
        scores |= {f"{name} x contact": values * contact for name, values in scores.items()}
    return scores


def recover(model: Model, windows: GeneWindows, truth: Path, *, top_fraction: float = 0.10, **settings: Any) -> Found:
    """Run a model over windows whose causal elements are known.

    Args:
        truth: BED file of the elements, as of ``KnownElements``.
        top_fraction: of each window, for top_precision and top_recall.
        settings: of ``run_windows``.
    """
    known, chromosomes = KnownElements(truth, windows), windows.store.chromosomes
    ours, given = Recovery(), Recovery()
    genes: list[dict[str, float]] = []
    counts = {name: 0.0 for name in ("bases", "causal", "top", "hits", "selected", "mask")}
    profiles: dict[str, list[Curve]] = {}
    for batch, out in run_windows(model, windows, **settings):
        scores = _model_scores(model, batch, out) if out.mask is not None else {}
        signals, expression = batch["signals"].cpu().numpy(), out.expression.float().cpu().numpy()
        open_bases = (selected_bases(model.config, out) if scores else torch.zeros(0)).cpu().numpy()
        for i, (chrom, start) in enumerate(zip(batch["chrom"], batch["start"].tolist(), strict=True)):
            counted = _counted(model.config, start, chromosomes[chrom]) & ~batch["exclude"][i].cpu().numpy()
            here = known.within(chrom, start, windows.length)
            elements = [Element(e.start - start, e.end - start, e.kind == CAUSAL) for e in here]
            given.add(rivals(signals[i], windows.signal_names), elements, counted)
            genes.append({"target": float(batch["target"][i]), "prediction": float(expression[i])})
            if not scores:
                continue
            ours.add({name: values[i] for name, values in scores.items()}, elements, counted)
            mask, true = scores["soft mask"][i][counted], _truth(elements, windows.length)[counted]
            top = np.argsort(-mask, kind="stable")[: max(1, int(top_fraction * len(mask)))]
            counts["bases"] += len(mask)
            counts["causal"] += true.sum()
            counts["top"] += len(top)
            counts["hits"] += true[top].sum()
            counts["selected"] += open_bases[i][counted].sum()
            counts["mask"] += mask.sum()
            for element, place in zip(here, elements, strict=True):
                width = element.end - element.start
                around = slice(place.start - width, place.end + width)
                if around.start >= 0 and around.stop <= windows.length and counted[around].all():
                    profiles.setdefault(element.kind, []).append(scores["soft mask"][i][around])
    return Found(
        genes=pd.DataFrame(genes),
        precision=ours.average_precision(),
        rivals=given.average_precision(),
        prevalence=given.prevalence(),
        top_precision=_ratio(counts["hits"], counts["top"]),
        top_recall=_ratio(counts["hits"], counts["causal"]),
        selected=_ratio(counts["selected"], counts["bases"]),
        mean_mask=_ratio(counts["mask"], counts["bases"]),
        profile={kind: np.mean(_same_length(curves), axis=0).tolist() for kind, curves in sorted(profiles.items())},
    )


def recovery_of_splits(
    model: Model, windows: GeneWindows, splits: Sequence[str], truth: Path, **settings: Any
) -> pd.DataFrame:
    """A row per split: mask_auprc and rival_auprc (the best one's) over bases and over elements, and ``learned``.

    Raises:
        UserError: a model without a mask, or no truth for a split.
    """
    if not model.has_mask:
        raise UserError(
            f"{truth}: this model has no mask (it is a baseline) that could be compared with known elements: evaluate "
            "it without --truth"
        )
    rows = []
    for split in splits:
        of_split = GeneWindows(windows.store, windows.length, split, False, peaks=model.reads_peaks)
        found = recover(model, of_split, truth, **settings)
        values = {
            "mask_auprc": found.precision["soft mask"],
            "rival_auprc": np.max(list(found.rivals.values()), axis=0),
        }
        over = {
            f"{name}_{of}": float(pair[i])
            for name, pair in values.items()
            for i, of in enumerate(("bases", "elements"))
        }
        rows.append({"split": split, **over, "learned": found.learned})
    return pd.DataFrame(rows)


def selected_bases(config: Any, out: Any) -> Tensor:
    """bool (batch, L): the ones of a binary mask; of a soft one, where its mean is over 0.5."""
    return out.mask > 0.5 if config.hard else out.soft_mask > 0.5  # type: ignore[no-any-return]


def generator_part(config: Seq2ExpConfig, signals: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha_seq / (alpha_seq + beta_seq), (batch, L): the mask that the generator says (rule "sum").

    The concentrations of a model's output, less what the signals (batch, L, tracks) added to them.
    """
    weights = signals.new_tensor(config.signal_weights, dtype=torch.float64)
    betas = signals.new_tensor(config.signal_betas, dtype=torch.float64)
    scale, low = config.signal_scale, config.beta_min
    select = alpha.double() / config.z_scale - ((signals.double() + low) * scale) @ weights
    reject = beta.double() / config.z_scale - ((betas + low) * scale) @ weights
    select, reject = select.clamp_min(1e-8), reject.clamp_min(1e-8)  # float32 rounds
    return (select / (select + reject)).float()


def mask_gradient(model: Any, inputs: Inputs, mask: Tensor) -> Tensor:
    """mask * |d expression / d mask|, (batch, L): what the predictor makes of each selected base."""
    with torch.inference_mode(False), torch.enable_grad():
        sequence, signals, features = (None if x is None else x.clone() for x in inputs)
        mask = mask.clone().requires_grad_()
        expression = model.predict(sequence, signals, mask, features)
        (slope,) = torch.autograd.grad(expression.sum(), mask)
        return (mask * slope.abs()).detach().float()


def _model_scores(model: Any, batch: dict[str, Any], out: Any) -> dict[str, Curve]:
    """(batch, L) by name."""
    device = out.mask.device
    features = batch["gene_features"].to(device) if batch["gene_features"].shape[1] else None
    inputs = (batch["sequence"].to(device), batch["signals"].to(device), features)
    scores = {
        "soft mask": out.soft_mask.float(),
        "mask x gradient": mask_gradient(model, inputs, out.mask),
    }
    if out.alpha is not None:  # absent where the mask is given, not learned
        scores["generator part"] = generator_part(model.config, inputs[1], out.alpha, out.beta)
    return {name: values.cpu().numpy() for name, values in scores.items()}


def _counted(config: Any, start: int, chromosome: int) -> NDArray[np.bool_]:
    """(L,): inside the chromosome, outside the centre, which the mask always lets through."""
    position = np.arange(start, start + config.length)
    counted = (position >= 0) & (position < chromosome)
    first = (config.length - config.center) // 2
    counted[first : first + config.center] = False
    return counted


def _truth(elements: Sequence[Element], length: int) -> NDArray[np.bool_]:
    truth = np.zeros(length, dtype=bool)
    for element in elements:
        truth[max(0, element.start) : max(0, element.end)] |= element.true
    return truth


def _same_length(curves: list[Curve]) -> list[Curve]:
    """Those as long as most of them."""
    sizes = [len(curve) for curve in curves]
    usual = max(set(sizes), key=sizes.count)
    return [curve for curve in curves if len(curve) == usual]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
