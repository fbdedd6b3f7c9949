"""The published model classes: their constructor, forward signature, parameter names and outputs, our computation.

    from seq2exp.compat.official import CaduceusConfig, GeneBiMambaMIRNP, GeneExpBiMamba

in place of `caduceus.configuration_caduceus` and `src.models.sequence.GeneExpformer`. Source: Seq2Exp (Su et al. 2025)
and the published code of it and of Caduceus.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from seq2exp.baselines import GeneExpBiMamba as OurGeneExpBiMamba
from seq2exp.baselines import GeneExpBiMambaConfig, GeneExpMambaConfig
from seq2exp.baselines import GeneExpMamba as OurGeneExpMamba
from seq2exp.compat import parameters
from seq2exp.compat.settings import CaduceusConfig, check, in_the_name_of
from seq2exp.config import BackboneFields, Seq2ExpConfig, first_problem
from seq2exp.errors import UserError
from seq2exp.model import Seq2Exp
from seq2exp.official import official_name
from seq2exp.official.reading import read_checkpoint
from seq2exp.official.settings import mask_fields, selection_fields
from seq2exp.strands import one_hot

__all__ = [
    "CaduceusConfig", "ExtendedMambaConfig", "GeneBiMambaMIRNP", "GeneExpBiMamba", "GeneExpMamba", "ModelMask",
    "entropy",
]  # fmt: skip

ExtendedMambaConfig = CaduceusConfig

Config = TypeVar("Config", bound=BackboneFields)


class _Published(nn.Module):
    """A tree of modules with the published parameters, which a model of ours shares and computes with.

    The model of ours is no submodule: parameters, their names and their order are the published ones, each once. The
    settings are read at every forward, as published.
    """

    _ours: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = CaduceusConfig.of(config)

    def _share(self, kind: type[nn.Module], config: BackboneFields) -> None:
        """Make the model of ours, without memory of its own."""
        with torch.device("meta"):
            ours = kind(config)
        wanted = dict(ours.named_parameters(remove_duplicate=False)).keys()
        self._links = []
        for key, _ in self.named_parameters(remove_duplicate=False):
            name = official_name(key)
            if name in wanted and key != "pos_emb":  # which is shaped otherwise
                (path, leaf), (our_path, our_leaf) = (x.rpartition(".")[::2] for x in (key, name))
                self._links.append((self.get_submodule(path), leaf, ours.get_submodule(our_path), our_leaf))
        object.__setattr__(self, "_ours", ours)

    def _computing(self, config: BackboneFields) -> Any:
        """The model of ours with these settings and the parameters as they are now: what moves a module, or loads a
        state dict, may have put new ones in their place."""
        for module, leaf, ours, our_leaf in self._links:
            ours._parameters[our_leaf] = module._parameters[leaf]
        self._ours.config, self._ours.training = config, self.training
        return self._ours

    def _checked(self, kind: type[Config], fields: dict[str, Any]) -> Config:
        try:
            return kind(**fields)
        except ValidationError as error:
            raise UserError(f"{type(self).__name__}: the config does not fit: {first_problem(error)}") from None


class _Masked(_Published):
    """What `GeneBiMambaMIRNP` and `ModelMask` have in common: the input layers, and the numbers of the Beta mask."""

    _priors: dict[str, Tensor] | None = None
    generator: parameters.Caduceus
    prior_weights: nn.Parameter
    signal_betas: nn.Parameter

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        c = self.config
        check("GeneBiMambaMIRNP", c)
        if not c.center_len:
            raise UserError("GeneBiMambaMIRNP: center_len=0 must be at least 1: the centre is always selected")
        self.seq_input_layer = parameters.linear(c.base_size, c.d_model)
        self.signal_input_layer = parameters.linear(c.signal_size, c.d_model)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._priors = None

    def _mask_fields(self, selection: dict[str, Any]) -> dict[str, Any]:
        """Of our configuration, what makes the mask."""
        c = self.config
        if self._priors is None:  # once: one waits for a GPU to give them
            self._priors = {name: self.get_parameter(name).detach().cpu() for name in ("prior_weights", "signal_betas")}
        with in_the_name_of("GeneBiMambaMIRNP"):
            fields = mask_fields(self._priors | {"signal_input_layer.weight": self.signal_input_layer.weight}, vars(c))
        return fields | selection | {
            "generator_layers": c.gen_n_layer,
            "generator_input": "sequence+signals" if c.gen_signal or c.enc_prd_ps else "sequence",
        }  # fmt: skip

    def _regions(self, mask_regions: Tensor | None) -> dict[str, Tensor]:
        """exclude and include, of mask_regions (batch, L, 2): include list, exclude list."""
        if mask_regions is None:
            return {}
        if mask_regions.dim() != 3 or mask_regions.shape[2] != 2:
            raise ValueError(
                f"mask_regions must be (batch, L, 2), include list and exclude list, got {tuple(mask_regions.shape)}"
            )
        include, exclude = mask_regions.bool().unbind(-1)
        return {"exclude": exclude} | ({"include": include} if self.config.use_include_list else {})


class GeneBiMambaMIRNP(_Masked):
    """Seq2Exp. config: `CaduceusConfig`, or a mapping or object with the published fields; further arguments are taken
    and not used, as published.

    Raises
    ------
    UserError: settings that are not supported, out of range or that contradict each other.
    """

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        c = self.config
        if c.pos_enc:
            if not c.seq_range:
                raise UserError("GeneBiMambaMIRNP: pos_enc=True needs seq_range, the length of the windows")
            self.pos_emb = nn.Parameter(torch.zeros(1, c.seq_range, c.d_model))
        self._given = _given_mask(c)
        if self._given or c.use_mask_model:
            if c.use_mask_model:
                self.mask_model = ModelMask.frozen(c)
            self.encoder = parameters.Caduceus(c, c.enc_n_layer)
        else:
            parameters.add_generator(self, c)
            self.encoder = self.generator if c.enc_prd_ps else parameters.Caduceus(c, c.enc_n_layer)
        self.pToExpr = parameters.head(c)
        for training in (False, True):  # both now, so that neither fails later
            ours = self._our_config(c.seq_range or c.center_len, training)
        self._share(Seq2Exp, ours)
        if c.pos_enc:  # no parameter of ours, but a view of pos_emb while it computes
            del self._ours.position_embedding
            self._ours.position_embedding = None

    def forward(
        self,
        seqs: Tensor,
        signals: Tensor,
        mask_regions: Tensor | None = None,
        bio_mask: Tensor | None = None,
        peak_mask: Tensor | None = None,
        rna_feat: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor | None], Tensor]:
        """Predict expression.

        Parameters
        ----------
        seqs: one-hot (batch, L, 4), N all zero. signals: (batch, L, signal_size), >= 0. mask_regions: (batch, L, 2),
            include list and exclude list. rna_feat: (batch, rna_feat_dim). bio_mask: (batch, L, 2), of which the second
            is the mask with use_bio_mask. peak_mask: (batch, L), the mask with use_peak_mask. Else they are not used.

        Returns
        -------
        logits (batch, 1); aux_infor, a dict of kl_loss and continuity_loss (scalars, None where the setting aux_loss_kl
        or aux_loss_con is off) and mask, alone where the mask is not learned; and the mask (batch, L) again. In
        training a mask that is learned is drawn from torch's generator.
        """
        c = self.config
        if c.pos_enc and seqs.shape[1] != c.seq_range:
            raise UserError(
                f"GeneBiMambaMIRNP: seqs are {seqs.shape[1]} bases long, pos_emb has seq_range={c.seq_range}"
            )
        ours = self._computing(self._our_config(seqs.shape[1], self.training))
        features = rna_feat if c.useRNAFeat else None
        bases, signals = _bases(seqs), signals[..., : c.signal_size]
        if c.pos_enc:
            ours.position_embedding = self.pos_emb[0]
        if self._given:
            mask = peak_mask if self._given == "peak_mask" else None if bio_mask is None else bio_mask[..., 1]
            if mask is None:
                raise UserError(f"GeneBiMambaMIRNP: use_{self._given}=True needs {self._given} in forward")
            return ours.predict(bases, signals, mask.to(signals), features)[:, None], {"mask": mask}, mask
        try:
            if c.use_mask_model:
                mask = _largest(self.mask_model(seqs, signals, mask_regions), c.top_mask_percent)
                return ours.predict(bases, signals, mask, features)[:, None], {"mask": mask}, mask
            out = ours(bases, signals, features, **self._regions(mask_regions))
        finally:
            if c.pos_enc:
                ours.position_embedding = None  # so that the model can be copied
        losses = {
            "kl_loss": out.kl if c.aux_loss_kl else None,
            "continuity_loss": out.continuity if c.aux_loss_con else None,
        }
        return out.expression[:, None], losses | {"mask": out.mask}, out.mask

    def _our_config(self, length: int, training: bool) -> Seq2ExpConfig:
        c = self.config
        fields = c.shared_fields(length) | {"predictor_layers": c.enc_n_layer, "position_embedding": c.pos_enc}
        if self._given or c.use_mask_model:  # the predictor alone: of a shared backbone nothing else is made
            fields |= {"generator_layers": c.enc_n_layer, "share_backbone": True, "hard": True, "packed": c.pos_enc}
        else:
            fields |= self._mask_fields(self._selection(training)) | {"share_backbone": c.enc_prd_ps}
            if c.enc_prd_ps:
                fields["predictor_layers"] = c.gen_n_layer
        return self._checked(Seq2ExpConfig, fields)

    def _selection(self, training: bool) -> dict[str, Any]:
        """How the mask selects. A binary mask that multiplies has a gradient in training, one that packs has none."""
        c = self.config
        if not training:
            with in_the_name_of("GeneBiMambaMIRNP"):
                return selection_fields({"pos_emb": self.pos_emb} if c.pos_enc else {}, vars(c))
        for name in ("pos_enc", "pool_mask"):
            if getattr(c, name) and not c.post_hard_dist:
                raise UserError(
                    f"GeneBiMambaMIRNP: {name}={getattr(c, name)!r} with a soft mask in training is not supported "
                    "(supported: post_hard_dist=True)"
                )
        return {
            "hard": c.post_hard_dist, "packed": c.pos_enc, "task_gradient": not c.pos_enc, "smooth": c.pool_mask or 1,
        }  # fmt: skip


class ModelMask(_Masked):
    """The mask of a trained `GeneBiMambaMIRNP`: the inputs of its forward -> mask (batch, L), as in evaluation."""

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        parameters.add_generator(self, self.config)
        self._share(Seq2Exp, self._our_config(self.config.seq_range or self.config.center_len))

    @classmethod
    def frozen(cls, config: CaduceusConfig) -> ModelMask:
        """That of the checkpoint `config.mask_model`; without one the parameters are left to a state dict."""
        model = cls(config)
        if config.mask_model:
            weights = read_checkpoint(Path(config.mask_model)).weights
            wanted = model.state_dict().keys()
            missing = sorted(wanted - weights.keys())
            if missing:
                raise UserError(
                    f"{config.mask_model}: lacks {missing[0]}; mask_model must be a checkpoint of GeneBiMambaMIRNP"
                )
            model.load_state_dict({key: weights[key] for key in wanted})
        return model.requires_grad_(False)

    def forward(
        self,
        seqs: Tensor,
        signals: Tensor,
        mask_regions: Tensor | None = None,
        bio_mask: Tensor | None = None,
        peak_mask: Tensor | None = None,
        rna_feat: Tensor | None = None,
    ) -> Tensor:
        ours = self._computing(self._our_config(seqs.shape[1]))
        ours.training = False  # whatever the mode of the predictor
        signals = signals[..., : self.config.signal_size]
        return ours.mask(_bases(seqs), signals, **self._regions(mask_regions)).mask

    def _our_config(self, length: int) -> Seq2ExpConfig:
        c = vars(self.config)
        tested = c["test_soft"] or c["test_top"]
        with in_the_name_of("GeneBiMambaMIRNP"):
            selection = selection_fields({}, c if tested else c | {"test_hard": True})
        fields = self.config.shared_fields(length) | self._mask_fields(selection)
        fields |= {"predictor_layers": c["gen_n_layer"], "share_backbone": True}  # nothing but the generator is made
        if not c["gen_signal"]:
            fields["generator_input"] = "sequence"
        return self._checked(Seq2ExpConfig, fields)


class GeneExpBiMamba(_Published):
    """The Caduceus baseline of Seq2Exp, without a mask. config and errors as of `GeneBiMambaMIRNP`."""

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        c = self.config
        check("GeneExpBiMamba", c)
        self.caduceus = parameters.Caduceus(c, c.n_layer)
        self.input_layer = parameters.linear(c.base_size + (c.signal_size if c.interact == "concat" else 0), c.d_model)
        self.pToExpr = parameters.head(c)
        self._share(OurGeneExpBiMamba, self._our_config(c.seq_range or c.center_len or 1))

    def forward(
        self,
        seqs: Tensor,
        signals: Tensor,
        rna_feat: Tensor | None = None,
        bio_mask: Tensor | None = None,
        mask_regions: Tensor | None = None,
        peak_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = False,
    ) -> Tensor:
        """Logits (batch, 1). Inputs as of `GeneBiMambaMIRNP`; the last five have no effect, nor have the signals with
        interact="no_signal"."""
        c = self.config
        ours = self._computing(self._our_config(seqs.shape[1]))
        tracks = signals[..., : c.signal_size] if c.interact == "concat" else None
        return ours(_bases(seqs), tracks, rna_feat if c.useRNAFeat else None).expression[:, None]

    def _our_config(self, length: int) -> GeneExpBiMambaConfig:
        c = self.config
        interact = "signal" if c.interact == "concat" else "no_signal"
        return self._checked(
            GeneExpBiMambaConfig, c.shared_fields(length) | {"layers": c.n_layer, "interact": interact}
        )


class GeneExpMamba(_Published):
    """The Mamba baseline of Seq2Exp, one direction, on tokens. config and errors as of `GeneBiMambaMIRNP`."""

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        c = self.config
        check("GeneExpMamba", c)
        self.model = parameters.MixerModel(c, c.n_layer, parameters.Mamba, c.vocab_size)
        self.pToExpr = parameters.head(c, nn.Linear)
        self._share(OurGeneExpMamba, self._our_config(c.seq_range or c.center_len or 1))

    def forward(
        self,
        seqs: Tensor,
        signals: Tensor | None = None,
        rna_feat: Tensor | None = None,
        bio_mask: Tensor | None = None,
        mask_regions: Tensor | None = None,
        peak_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = False,
    ) -> Tensor:
        """Logits (batch, 1). seqs: token ids (batch, L), below vocab_size. rna_feat: (batch, rna_feat_dim). The others
        have no effect."""
        if seqs.is_floating_point():
            raise TypeError(
                f"GeneExpMamba: seqs are {seqs.dtype}; give token ids (batch, L), as of the tokenizer 'char'"
            )
        ours = self._computing(self._our_config(seqs.shape[1]))
        return ours(seqs, None, rna_feat if self.config.useRNAFeat else None).expression[:, None]

    def _our_config(self, length: int) -> GeneExpMambaConfig:
        c = self.config
        fields = {"layers": c.n_layer, "vocabulary": c.vocab_size, "first_base": 0}  # ids as they are
        return self._checked(GeneExpMambaConfig, c.shared_fields(length) | fields)


def entropy(mask: Tensor, eps: float = 1e-10) -> Tensor:
    """Mean entropy, in nats, of the bases' being selected; mask: (batch, L). What the published training logs."""
    return -(torch.xlogy(mask, mask + eps) + torch.xlogy(1 - mask, 1 - mask + eps)).mean()


def _given_mask(config: CaduceusConfig) -> str | None:
    """The argument of forward that is the mask, where it is not made by a model."""
    given = [name for name in ("bio_mask", "peak_mask") if getattr(config, f"use_{name}")]
    for other in (*(f"use_{name}" for name in given[1:]), "use_mask_model", "enc_prd_ps", "pos_enc"):
        if given and getattr(config, other):
            raise UserError(
                f"GeneBiMambaMIRNP: {other}=True together with use_{given[0]}=True is not supported "
                f"(supported: {other}=False)"
            )
    return given[0] if given else None


def _bases(seqs: Tensor) -> Tensor:
    """Codes, a byte a base, where seqs is one-hot, which our kernels embed without another tensor; else seqs."""
    if seqs.dim() != 3 or seqs.shape[-1] != 4 or seqs.requires_grad:
        return seqs
    codes = torch.where(seqs.sum(-1) > 0, seqs.argmax(-1), 4).to(torch.uint8)
    return codes if torch.equal(one_hot(codes, seqs.dtype), seqs) else seqs


def _largest(mask: Tensor, fraction: float) -> Tensor:
    """1 for that fraction of the bases of each row, 0 elsewhere."""
    kept = torch.topk(mask, int(fraction * mask.shape[1]), dim=1).indices
    return torch.zeros_like(mask).scatter_(1, kept, 1.0)
