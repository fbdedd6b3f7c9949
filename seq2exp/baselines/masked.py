"""Predictors under a mask that is given, not learned: peaks, the ABC score, or a frozen Seq2Exp (retrain).

Each is the predictor and the head of Seq2Exp on the bases of its mask. Their outputs have mask and soft_mask, no KL.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.backbone import CaduceusBackbone
from seq2exp.baselines.base import Baseline, Inputs
from seq2exp.config import BackboneFields, Fraction, Seq2ExpConfig, Size
from seq2exp.embedding import SequenceEmbedding
from seq2exp.kernels.beta_mask.reference import top_mask
from seq2exp.model import ExpressionHead, Seq2Exp, Seq2ExpOutput

ACTIVITY = ("H3K27ac", "DNase")
CONTACTS = "contacts"


class MaskedConfig(BackboneFields):
    """predictor_layers: of the backbone. packed: it reads the selected bases alone, one behind the other; False: every
    base of the window, those that are not selected as zeros, as published, so that distances are kept."""

    predictor_layers: Size = 4
    packed: bool = True

    # What others read of the configuration of a model with a mask.
    hard: ClassVar = True
    threshold: ClassVar = 0.5
    mask_placement: ClassVar = "input"
    rc_equivariant: ClassVar = False
    keep_threshold: ClassVar = 0.0
    capacity: ClassVar = None

    @property
    def packs(self) -> bool:
        return self.packed

    @property
    def top_fraction(self) -> float | None:
        return None


class MaskedPredictor(Baseline, Seq2Exp):
    """The predictor and the head of Seq2Exp under `given_mask`, and no generator."""

    config_class = MaskedConfig  # type: ignore[assignment]
    reads_signals = True
    config: MaskedConfig  # type: ignore[assignment]

    def __init__(self, config: MaskedConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.sequence_embedding = SequenceEmbedding(config.d_model)
        self.signal_embedding = nn.Linear(config.tracks, config.d_model)
        self.register_parameter("position_embedding", None)
        self.predictor = CaduceusBackbone(
            config.d_model, config.predictor_layers, d_state=config.d_state, d_conv=config.d_conv,
            expand=config.expand, recompute=config.recompute,
        )  # fmt: skip
        self.head = ExpressionHead(config.d_model, config.gene_features)

    def output(self, batch: Inputs) -> Seq2ExpOutput:
        with torch.no_grad():
            soft, mask = self.given_mask(batch)
        expression = self.predict(batch.sequence, batch.signals, mask, batch.gene_features)
        return Seq2ExpOutput(expression, mask=mask, soft_mask=soft, selected_fraction=mask.mean())

    def given_mask(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        """The scores that the mask is made of, 0 to 1, and the mask, 0 or 1, whose centre is 1: (batch, L) each."""
        raise NotImplementedError

    def _in_regions(self, selected: Tensor, batch: Inputs) -> Tensor:
        """The mask of selected bases, bool (batch, L): excluded bases 0, included ones 1, the centre 1."""
        if batch.exclude is not None:
            selected = selected & ~batch.exclude
        if batch.include is not None:
            selected = selected | batch.include
        mask = selected.float()
        mask[:, self.centre] = 1.0
        return mask


class PeakMasked(MaskedPredictor):
    """The mask is the peaks of the store, called by MACS3 (Zhang et al. 2008) or taken from any narrowPeak file.

    The published baseline reads its peaks only; here, as in the other models, excluded bases are 0 and the centre is 1.
    """

    reads_peaks = True

    def given_mask(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        return batch.peaks.float(), self._in_regions(batch.peaks, batch)


class AbcMaskedConfig(MaskedConfig):
    """fraction: share of the window that is selected, the highest scores. width: bases that the tracks are averaged
    over. signal_names: the columns of signals, in order."""

    fraction: Fraction = 0.10
    width: Size = 500
    signal_names: tuple[str, ...] = (*ACTIVITY, CONTACTS)

    @model_validator(mode="after")
    def _has_its_signals(self) -> Self:
        require_signals("the ABC mask", self.signal_names)
        return self

    @property
    def top_fraction(self) -> float:
        """Of the scores, which is what `discover` calls elements by."""
        return self.fraction


class AbcMasked(MaskedPredictor):
    """The mask is the bases of highest Activity-by-Contact score (Fulco et al. 2019): sqrt(H3K27ac * DNase) * contact.

    The score of a base is that of an element of `width` bases around it, about that of ABC's candidates. ABC divides by
    the sum over the gene's candidates, which changes no order.
    """

    config_class = AbcMaskedConfig  # type: ignore[assignment]
    config: AbcMaskedConfig  # type: ignore[assignment]

    def given_mask(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        c = self.config
        score = abc_score(batch.signals, c.signal_names, c.width)
        selected = top_mask(score, math.floor(c.fraction * c.length))
        highest = score.amax(1, keepdim=True).clamp_min(torch.finfo(score.dtype).tiny)
        return score / highest, self._in_regions(selected, batch)


class RetrainedConfig(MaskedConfig):
    """source: a run folder or a saved Seq2Exp, whose mask is taken. fraction: share of the window that is selected.

    centre_counts: the regions and the centre are set before the fraction is chosen, so that the centre is part of it.
    frozen: the configuration of that model; with a source it is read there, as are the fields above that are not given.
    """

    source: str | None = None
    fraction: Fraction = 0.10
    centre_counts: bool = False
    frozen: Seq2ExpConfig = Field(default_factory=Seq2ExpConfig)

    @model_validator(mode="before")
    @classmethod
    def _from_source(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not fields.get("source"):
            return fields
        frozen = source_model(fields["source"]).config
        shared = {name: getattr(frozen, name) for name in cls.model_fields if name in Seq2ExpConfig.model_fields}
        return shared | {"packed": True} | fields | {"frozen": frozen}

    @model_validator(mode="after")
    def _same_window(self) -> Self:
        for name in ("length", "center", "tracks"):
            ours, theirs = getattr(self, name), getattr(self.frozen, name)
            if ours != theirs:
                raise ValueError(f"{name} is {ours}, the frozen model has {theirs}")
        if self.centre_counts and math.floor(self.fraction * self.length) < self.center:
            raise ValueError(f"fraction is {self.fraction:g}, less than the centre, which counts in it")
        return self

    @property
    def top_fraction(self) -> float:
        """Of the scores, which is what `discover` calls elements by."""
        return self.fraction


class Retrained(MaskedPredictor):
    """Seq2Exp-retrain (Seq2Exp, ICLR 2025): a trained Seq2Exp is frozen, its `fraction` of largest mask means is the
    mask, 0 or 1, and a new predictor with embeddings and head of its own is trained on it.

    Where the published code differs: its predictor reads every base, those not selected as zeros (here
    `packed=False`; packed, it is faster and does not know the distances between what was selected); it counts the
    centre among the fraction (here `centre_counts=True`; else the centre comes on top, as with
    `Seq2ExpConfig.top_fraction`); and the bases of the include list are not forced to 1 in it.

    The frozen model is part of this one: it is saved and loaded with it, and gets no gradient.
    """

    config_class = RetrainedConfig  # type: ignore[assignment]
    config: RetrainedConfig  # type: ignore[assignment]

    def __init__(self, config: RetrainedConfig) -> None:
        super().__init__(config.replace(source=None) if config.source else config)
        top = {"hard": False} if config.centre_counts else {"hard": True, "top_fraction": config.fraction}
        dense = {"top_fraction": None, "smooth": 1, "packed": False, "keep_threshold": 0.0, "capacity": None}
        self.frozen = Seq2Exp(config.frozen.replace(**dense | top)).requires_grad_(False).eval()
        if config.source:
            self.frozen.load_state_dict(source_model(config.source).state_dict())

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.frozen.eval()  # the mean of the mask, not a sample
        return self

    def given_mask(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        found = self.frozen.mask(batch.sequence, batch.signals, batch.exclude, batch.include)
        if not self.config.centre_counts:
            return found.soft_mask, found.mask
        return found.soft_mask, top_mask(found.mask, math.floor(self.config.fraction * self.config.length)).float()


def source_model(path: str) -> Seq2Exp:
    """The Seq2Exp of a run folder or of a folder of save_pretrained. Raises UserError where there is none."""
    from seq2exp.inference.windows import model_folder

    return Seq2Exp.from_pretrained(model_folder(path))


def require_signals(what: str, names: tuple[str, ...]) -> None:
    """ValueError unless the signals that ABC is made of are there."""
    missing = [name for name in (*ACTIVITY, CONTACTS) if name not in names]
    if missing:
        raise ValueError(
            f"{what} needs the signals {', '.join(ACTIVITY)} and {CONTACTS}; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not among {', '.join(names) or 'none'}: build the store with "
            "--track H3K27ac=..., --track DNase=... and --contacts"
        )


def abc_score(signals: Tensor, names: tuple[str, ...], width: int) -> Tensor:
    """Activity times contact of every base, (batch, L) float32. signals: (batch, L, tracks), contacts as
    log10(1 + contact); activity: the geometric mean of the tracks' means over `width` bases around it."""
    columns = {name: signals[..., i].float() for i, name in enumerate(names)}
    first, second = (smoothed(columns[name], width) for name in ACTIVITY)
    return torch.sqrt(first * second) * torch.expm1(math.log(10) * columns[CONTACTS])


def smoothed(track: Tensor, width: int) -> Tensor:
    """Mean over `width` bases around each (one more if even), fewer at the ends: (batch, L) -> the same."""
    width |= 1
    return F.avg_pool1d(track[:, None], width, stride=1, padding=width // 2, count_include_pad=False)[:, 0]
