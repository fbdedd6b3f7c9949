"""The published classes: constructor, signature, names, outputs; numbers as of the golden files and of our models."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import MutableMapping
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from seq2exp import UserError, load_official, seq2exp_loss
from seq2exp.compat import official
from seq2exp.compat.official import CaduceusConfig, GeneBiMambaMIRNP, GeneExpBiMamba, GeneExpMamba

LENGTH = 96
SMALL = dict(
    d_model=16, gen_n_layer=1, enc_n_layer=1, n_layer=1, center_len=16, seq_range=LENGTH, rna_feat_dim=2,
    ssm_cfg={"d_state": 4},
)  # fmt: skip
HARD = SMALL | dict(
    post_hard_dist=True, test_hard=True, test_soft=False, enc_prd_ps=True, pos_enc=True, prior_scale_factor=1.0,
    beta_min=0, marginal_mean=0.45, marginal_scale=0.1,
)  # fmt: skip
KINDS = {
    "soft": (GeneBiMambaMIRNP, SMALL),
    "hard": (GeneBiMambaMIRNP, HARD),
    "baseline": (GeneExpBiMamba, SMALL),
    "mamba": (GeneExpMamba, SMALL),
    "baseline without signals": (GeneExpBiMamba, SMALL | {"interact": "no_signal"}),
}


def built(kind, **fields):
    torch.manual_seed(0)
    cls, settings = KINDS[kind]
    return cls(CaduceusConfig(**settings | fields))


def batch(size=2, length=LENGTH, seed=1):
    """By the names of the published training code, all of them."""
    g = torch.Generator().manual_seed(seed)
    letters = torch.eye(5, 4)[torch.randint(0, 5, (size, length), generator=g)]
    regions = torch.rand(size, length, 2, generator=g) < 0.1
    return dict(
        seqs=letters, signals=2 * torch.rand(size, length, 3, generator=g), mask_regions=regions, bio_mask=None,
        peak_mask=None, rna_feat=torch.rand(size, 2, generator=g),
    )  # fmt: skip


def tokens(x):
    """The same bases as the published tokenizer numbers them: A C G T N = 7..11."""
    return x | {"seqs": torch.where(x["seqs"].sum(-1) > 0, x["seqs"].argmax(-1), 4) + 7}


def logits_of(out):
    return out if isinstance(out, torch.Tensor) else out[0]


def training_loss(out, target):
    aux = {} if isinstance(out, torch.Tensor) else out[1]
    return F.smooth_l1_loss(logits_of(out), target) + 0.01 * aux.get("kl_loss", 0.0)


GOLDEN = ["official_soft", "official_hard", "official_top10", "official_caduceus_signals"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files(golden, name):
    """Constructor, strict load, bit for bit back again, outputs, and the gradient of every parameter."""
    with safe_open(golden / f"{name}.safetensors", "pt") as f:
        tensors, metadata = {key: f.get_tensor(key) for key in f.keys()}, f.metadata()  # noqa: SIM118
    groups = [
        {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(g)} for g in ("w.", "in.", "out.", "g.")
    ]
    w, x, y, grads = groups
    model = getattr(official, metadata["model"])(json.loads(metadata["config"])).eval()
    model.load_state_dict(w, strict=True)
    state = model.state_dict()
    assert state.keys() == w.keys() and all(torch.equal(state[key], value) for key, value in w.items())
    out = model(
        seqs=x["seqs"], signals=x["signals"], mask_regions=x["mask_regions"], bio_mask=None, peak_mask=None,
        rna_feat=x["rna_feat"],
    )  # fmt: skip
    assert logits_of(out).shape == y["prediction"].shape
    found = {"prediction": logits_of(out), "loss": training_loss(out, x["target"])}
    if not isinstance(out, torch.Tensor):
        _, aux, mask = out
        assert list(aux) == ["kl_loss", "continuity_loss", "mask"] and aux["mask"] is mask
        found |= {"mask": mask, "kl": aux["kl_loss"], "continuity": aux["continuity_loss"]}
    for key, ours in found.items():
        assert (ours - y[key]).norm() <= 1e-4 * y[key].norm(), key
    found["loss"].backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named = {id(parameters[key]) for key in grads}
    for key, theirs in grads.items():
        ours = parameters[key].grad
        assert ours is not None or theirs.norm() == 0, key
        assert ours is None or (ours - theirs).norm() <= 1e-3 * theirs.norm() + 1e-9, key
    silent = [p for p in parameters.values() if id(p) not in named]
    assert all(p.grad is None or p.grad.norm() == 0 for p in silent), "a gradient that the published model has not"


@pytest.mark.parametrize("kind", ["soft", "hard", "baseline", "mamba"])
def test_fifty_training_steps_follow_our_model(kind):
    """The loss of each step; both draw their masks from torch's generator."""
    theirs = built(kind)
    ours = load_official(theirs.state_dict(), vars(theirs.config) | {"_class": type(theirs).__name__}).train()
    theirs.train()
    losses = []
    for model in (theirs, ours):
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=1e-6, betas=(0.9, 0.95))
        losses.append([])
        for step in range(50):
            x, target = batch(seed=step % 5), torch.linspace(0, 1, 2)
            torch.manual_seed(step)
            if model is theirs:
                loss = training_loss(model(**tokens(x) if kind == "mamba" else x), target[:, None])
            else:
                out = model(x["seqs"], x["signals"], x["rna_feat"], exclude=x["mask_regions"][..., 1])
                loss = seq2exp_loss(out, target, 0.01)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=1e-4)
    assert losses[0][0] - losses[0][45] > 0.02, "nothing was learned: the test shows little"


def test_names_and_order_of_the_parameters():
    """Those of the published modules: optimizer states are saved by order."""
    direction = [
        "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight",
        "dt_proj.bias", "out_proj.weight",
    ]  # fmt: skip
    tied = ("in_proj.weight", "out_proj.weight")

    layer = "model.layers.0."
    mamba = ["model.embedding.weight", *(f"{layer}mixer.{name}" for name in direction), f"{layer}norm.weight"]

    def backbone(prefix):
        mixer = f"{prefix}.backbone.layers.0.mixer."
        yield from (f"{mixer}mamba_fwd.{name}" for name in direction)
        yield from (f"{mixer}mamba_rev.{name}" for name in direction if name not in tied)
        yield from (f"{prefix}.backbone.layers.0.norm.weight", f"{prefix}.backbone.norm_f.weight")

    def linear(*names):
        yield from (f"{name}.{part}" for name in names for part in ("weight", "bias"))

    inputs = list(linear("seq_input_layer", "signal_input_layer"))
    head = list(linear("pToExpr.0", "pToExpr.2", "pToExpr.4"))
    masked = [*inputs, *backbone("generator"), *linear("mask_output")]
    expected = {
        "soft": ["prior_weights", "signal_betas", *masked, *backbone("encoder"), *head],
        "hard": ["pos_emb", "prior_weights", "signal_betas", *masked, *head],
        "baseline": [*backbone("caduceus"), *linear("input_layer"), *head],
        "mamba": [*mamba, "model.norm_f.weight", *head],
    }
    for kind, names in expected.items():
        assert [name for name, _ in built(kind).named_parameters()] == names
    assert built("hard").state_dict().keys() - set(expected["hard"]) >= set(backbone("encoder"))  # shared: there twice


def test_what_the_published_training_code_reads_on_parameters():
    model = built("soft")
    mamba = model.encoder.backbone.layers[0].mixer.mamba_rev
    assert mamba.A_log._no_weight_decay and mamba.D._no_weight_decay and mamba.dt_proj.bias._no_reinit
    assert not model.prior_weights.requires_grad and not model.signal_betas.requires_grad
    assert model.config.d_model == 16 and model.config.beta_min == 1.0


def test_initialised_as_published():
    model = built("hard", gen_n_layer=4)
    for layer in (model.mask_output, model.pToExpr[0], model.seq_input_layer):
        assert (layer.bias == 0).all()
    assert (model.pos_emb == 0).all()
    out_proj = model.generator.backbone.layers[0].mixer.mamba_fwd.out_proj.weight
    assert out_proj.abs().max().item() == pytest.approx(32**-0.5 / 2, rel=0.05)
    torch.testing.assert_close(torch.softmax(model.prior_weights, 0), torch.tensor([0.4, 0.4, 0.2]))


class Omega(MutableMapping):
    """Like OmegaConf's DictConfig: a mapping that is no dict, with attributes."""

    def __init__(self, fields):
        self.__dict__["fields"] = {k: Omega(v) if isinstance(v, dict) else v for k, v in fields.items()}

    def __getitem__(self, name):
        return self.fields[name]

    def __getattr__(self, name):
        return self.fields[name]

    def __iter__(self):
        return iter(self.fields)

    def __len__(self):
        return len(self.fields)

    __setitem__ = __delitem__ = None


@pytest.mark.parametrize(
    "config", [SMALL, Omega(SMALL), SimpleNamespace(**SMALL), CaduceusConfig(**SMALL, beta_step=200)],
    ids=["dict", "omegaconf", "attributes", "ours"],
)  # fmt: skip
def test_config_objects(config):
    torch.manual_seed(0)
    out = GeneBiMambaMIRNP(config).eval()(**batch())
    assert torch.equal(out[0], built("soft").eval()(**batch())[0])


def test_positional_arguments_in_the_published_order():
    x = batch()
    model, baseline = built("soft").eval(), built("baseline").eval()
    positional = model(x["seqs"], x["signals"], x["mask_regions"], None, None, x["rna_feat"])
    assert torch.equal(positional[0], model(**x)[0])
    assert torch.equal(baseline(x["seqs"], x["signals"], x["rna_feat"]), baseline(**x))


def test_the_mask_is_drawn_from_torchs_generator():
    model = built("soft").train()
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(model(**batch())[2])
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert masks[0].requires_grad and not torch.equal(model(**batch())[2], model(**batch())[2])


def test_regions():
    x = batch()
    include, exclude = x["mask_regions"].clone().unbind(-1)
    for listed in (False, True):
        mask = built("soft", use_include_list=listed).eval()(**x)[2]
        outside = torch.ones(LENGTH, dtype=torch.bool)
        outside[40:56] = False
        assert (mask[:, ~outside] == 1).all()
        assert (mask[:, outside][exclude[:, outside] & ~(include[:, outside] & listed)] == 0).all()
        assert ((mask[:, outside][include[:, outside]] == 1).all()) == listed
    assert torch.equal(built("soft").eval()(**x | {"mask_regions": torch.zeros_like(x["mask_regions"])})[2],
                       built("soft").eval()(**x | {"mask_regions": None})[2])  # fmt: skip


def test_training_and_evaluation_select_as_their_settings_say():
    """A soft mask in training, the top tenth in evaluation; changed on the fly, as the published code reads it."""
    model = built("soft", test_soft=False, test_top=True, test_top_percent=0.25)
    assert model.train()(**batch())[2].unique().numel() > 2
    x = batch() | {"mask_regions": None}
    top = model.eval()(**x)[2]
    assert set(top.unique().tolist()) == {0.0, 1.0} and (top.sum(1) >= 24).all() and (top.sum(1) <= 24 + 16).all()
    model.config.test_top, model.config.test_soft = False, True
    assert model(**x)[2].unique().numel() > 2


def test_a_binary_mask_that_multiplies_has_a_task_gradient_in_training():
    """Without pos_enc; with it the mask only packs, as published."""
    for kind, fields, has in (("soft", {"post_hard_dist": True}, True), ("hard", {}, False)):
        model = built(kind, **fields).train()
        logits, _, mask = model(**batch())
        assert set(mask.detach().unique().tolist()) == {0.0, 1.0}
        (gradient,) = torch.autograd.grad(logits.sum(), model.mask_output.weight, allow_unused=True)
        assert (gradient is not None and gradient.norm() > 0) == has


def test_windows_of_any_length_without_positions():
    model = built("soft", seq_range=0).eval()
    for length in (64, 96):
        assert model(**batch(length=length))[2].shape == (2, length)
    with pytest.raises(UserError, match="seqs are 64 bases long, pos_emb has seq_range=96"):
        built("hard")(**batch(length=64))


def test_the_whole_window_as_centre_and_no_features():
    model = built("baseline", center_len=0, useRNAFeat=False).eval()
    other = load_official(model.state_dict(), vars(model.config) | {"_class": "GeneExpBiMamba", "center_len": LENGTH})
    x = batch()
    torch.testing.assert_close(model(**x)[:, 0], other(x["seqs"], x["signals"]).expression)


def test_tokens_of_the_mamba_baseline():
    """Also those that are no bases; a one-hot sequence is refused."""
    model, x = built("mamba").eval(), tokens(batch())
    ours = load_official(model.state_dict(), vars(model.config) | {"_class": "GeneExpMamba"})
    codes = (x["seqs"] - 7).to(torch.uint8)
    torch.testing.assert_close(model(**x)[:, 0], ours(codes, gene_features=x["rna_feat"]).expression)
    padded = x["seqs"].clone()
    padded[:, 50:60] = 4
    assert not torch.allclose(model(**x | {"seqs": padded}), model(**x))
    with pytest.raises(TypeError, match=r"GeneExpMamba: seqs are torch\.float32; give token ids"):
        model(**batch())


def test_letters_that_are_not_one_hot():
    """Mixtures, and gradients of the sequence: what codes cannot say."""
    model, x = built("soft").eval(), batch()
    letters = x["seqs"].clone().requires_grad_()
    logits = model(**x | {"seqs": letters})[0]
    torch.testing.assert_close(logits, model(**x)[0], rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(logits.sum(), letters)[0].norm() > 0
    assert not torch.allclose(model(**x | {"seqs": x["seqs"] * 0.5})[0], logits, rtol=1e-4)


def test_fewer_signals_than_the_data_has():
    x = batch()
    for kind in ("soft", "baseline"):
        model = built(kind, signal_size=2).eval()
        other = x | {"signals": torch.cat([x["signals"][..., :2], torch.rand(2, LENGTH, 1)], -1)}
        assert torch.equal(logits_of(model(**x)), logits_of(model(**other)))


def test_losses_that_are_switched_off():
    _, aux, mask = built("soft", aux_loss_kl=False, aux_loss_con=False).eval()(**batch())
    assert aux["kl_loss"] is None and aux["continuity_loss"] is None and aux["mask"] is mask


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_copies_share_nothing(kind, copied):
    model = built(kind).eval()
    training_loss(model(**batch()), torch.ones(2, 1)).backward()
    other = copied(model)
    before = model(**batch())[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(other(**batch())[0], before)
    assert not torch.equal(model(**batch())[0], before)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_replaces_everything(assign):
    """Also with new parameter objects, and the numbers of each track."""
    model, other = built("hard"), built("hard", prior_beta="3,1,2", prior_weight="1,1,1")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    model(**batch())
    model.load_state_dict(other.state_dict(), assign=assign)
    for ours, theirs in zip(model.eval()(**batch())[0::2], other.eval()(**batch())[0::2], strict=True):
        assert torch.equal(ours, theirs)


def test_other_dtypes():
    model, x = built("hard").eval(), batch()
    expected = model(**x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(**x)[0] - expected).norm() < 3e-2 * expected.norm()
    double = model.double()(**x | {"rna_feat": x["rna_feat"].double()})[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_mask_model(tmp_path):
    """Retraining: the largest means of a trained model are the mask, and only the predictor learns."""
    trained = built("soft").eval()
    torch.save({"state_dict": {f"model.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "soft.ckpt")
    fields = SMALL | {"use_mask_model": True, "mask_model": str(tmp_path / "soft.ckpt"), "top_mask_percent": 0.25}
    model = GeneBiMambaMIRNP(fields).train()
    x = batch()
    logits, aux, mask = model(**x)
    assert list(aux) == ["mask"] and logits.shape == (2, 1)
    assert (mask.sum(1) == 24).all() and (mask[:, 40:56] == 1).all()
    means = trained(**x)[2]
    assert (means.where(mask == 1, 2.0).min(1).values >= means.where(mask == 0, -1.0).max(1).values).all()
    logits.sum().backward()
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {"seq_input_layer", "signal_input_layer", "encoder", "pToExpr"}
    assert "mask_model.generator.backbone.norm_f.weight" in model.state_dict()
    again = GeneBiMambaMIRNP(fields | {"mask_model": ""})
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(**x)[0], logits)
    with pytest.raises(UserError, match=r"absent\.ckpt: no such file"):
        GeneBiMambaMIRNP(fields | {"mask_model": str(tmp_path / "absent.ckpt")})
    torch.save(built("baseline").state_dict(), tmp_path / "baseline.pt")
    with pytest.raises(UserError, match=r"lacks generator.*mask_model must be a checkpoint of GeneBiMambaMIRNP"):
        GeneBiMambaMIRNP(fields | {"mask_model": str(tmp_path / "baseline.pt")})


@pytest.mark.parametrize("name", ["bio_mask", "peak_mask"])
def test_a_mask_that_is_given(name):
    """The mask that a soft model makes, given to another of the same weights, gives the same expression."""
    soft, x = built("soft").eval(), batch()
    logits, _, mask = soft(**x)
    model = built("soft", **{f"use_{name}": True})
    assert {key.partition(".")[0] for key in model.state_dict()} == {
        "seq_input_layer", "signal_input_layer", "encoder", "pToExpr"
    }  # fmt: skip
    model.load_state_dict({key: soft.state_dict()[key] for key in model.state_dict()})
    x[name] = mask.detach() if name == "peak_mask" else torch.stack([torch.zeros_like(mask), mask.detach()], -1)
    found, aux, used = model.train()(**x)
    assert list(aux) == ["mask"] and torch.equal(used, mask)
    torch.testing.assert_close(found, logits)
    outside = torch.rand_like(mask) < 0.5  # of the mask: nothing there is read, the centre included
    x[name] = torch.where(outside[..., None] if name == "bio_mask" else outside, 0.0, x[name])
    elsewhere = x | {"signals": x["signals"] + outside[..., None], "seqs": x["seqs"].flip(1) * outside[..., None]}
    elsewhere["seqs"] += x["seqs"] * ~outside[..., None]
    torch.testing.assert_close(model(**elsewhere)[0], model(**x)[0])
    with pytest.raises(UserError, match=f"use_{name}=True needs {name} in forward"):
        model(**x | {name: None})


def test_entropy():
    assert official.entropy(torch.tensor([[0.5, 0.5]])).item() == pytest.approx(0.693147, rel=1e-5)
    assert official.entropy(torch.tensor([[0.0, 1.0]])).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "kind,fields,words",
    [
        ("soft", {"post_dist": "kuma"}, r"post_dist='kuma' .* is not supported \(supported: 'beta'\)"),
        ("soft", {"post_sample": False}, "post_sample=False .* is not supported"),
        ("soft", {"use_bio_mask": True, "use_peak_mask": True}, "use_peak_mask=True together with use_bio_mask=True"),
        ("hard", {"use_peak_mask": True}, r"enc_prd_ps=True together with .* \(supported: enc_prd_ps=False\)"),
        ("baseline", {"use_bio_mask": True}, "use_bio_mask=True"),
        ("soft", {"rcps": True}, "rcps=True"),
        ("soft", {"ssm_cfg": {"bias": True}}, r"ssm_cfg.bias=True .* is not supported \(supported: False\)"),
        (
            "soft",
            {"ssm_cfg": {"dt_rank": 7}},
            r"ssm_cfg.dt_rank=7 .* is not supported \(supported: 'auto', which is 1 here\)",
        ),
        ("soft", {"use_include_list": True, "mask_region_hard": False}, "mask_region_hard=False"),
        ("soft", {"test_hard": True, "test_soft": True}, "test_soft and test_hard .* at most one may be"),
        ("soft", {"center_len": 0}, "center_len=0 must be at least 1"),
        ("soft", {"pool_mask": 5}, "pool_mask=5 with a soft mask in training .* post_hard_dist=True"),
        ("soft", {"dist_param_grad": True}, r"dist_param_grad=True is not supported \(supported: False\)"),
        ("soft", {"ssm_cfg": {"dt_min": 0.01}}, "ssm_cfg.dt_min=0.01 is not supported"),
        ("soft", {"prior_weight": "2,two,1"}, "prior_weight='2,two,1' is not a list of numbers like '2,2,1'"),
        ("soft", {"prior_beta": "1.5,0.2"}, "prior_beta='1.5,0.2' is not .* one for each of the 3 tracks"),
        ("soft", {"marginal_mean": 1.5}, "the config does not fit: prior_mean"),
        ("soft", {"center_len": LENGTH + 2}, "center is 98, longer than length"),
        ("soft", {"d_model": "wide"}, "d_model='wide' must be a whole number"),
        ("soft", {"gen_n_layer": 0}, "gen_n_layer=0 must be a whole number, at least 1"),
        ("hard", {"seq_range": 0}, "pos_enc=True needs seq_range"),
        ("hard", {"post_hard_dist": False}, "pos_enc=True with a soft mask in training .* post_hard_dist=True"),
        ("baseline", {"interact": "cross"}, "GeneExpBiMamba: interact='cross' .* 'concat', 'no_signal'"),
        ("baseline", {"pretrained_model": True}, "pretrained_model=True"),
    ],
)
def test_refused_in_one_sentence(kind, fields, words):
    with pytest.raises(UserError, match=words) as caught:
        built(kind, **fields)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_none():
    with pytest.raises(UserError, match="config is a int without any of the published fields"):
        GeneBiMambaMIRNP(3)


def test_inputs_that_do_not_fit():
    model, x = built("soft").eval(), batch()
    for name, value, words in (
        ("mask_regions", x["mask_regions"][..., 0], r"mask_regions must be \(batch, L, 2\)"),
        ("signals", x["signals"][..., :2], r"signals must be \(2, 96, 3\), got \(2, 96, 2\)"),
        ("signals", -x["signals"], "signals"),
        ("rna_feat", None, r"must be \(2, 2\), got None"),
        ("seqs", x["seqs"][..., :3], r"one-hot \(batch, 96, 4\)"),
    ):
        with pytest.raises(ValueError, match=words):
            model(**x | {name: value})


def test_numbers_of_published_yaml_files():
    """Where "1e-5" is read as a string."""
    built("baseline", norm_epsilon="1e-5", ssm_cfg={"dt_init_floor": "1e-4", "d_state": 4})


def test_a_state_dict_that_does_not_fit():
    with pytest.raises(RuntimeError, match="Missing key"):
        built("soft").load_state_dict(built("baseline").state_dict())
