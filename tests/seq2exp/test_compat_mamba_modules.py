"""The modules of mamba-ssm over our ops: values against float64, state dicts, initialisation, caches, files, errors."""

import inspect
import math

import mamba_reference as exact
import pytest
import torch
from memory import saved_bytes
from safetensors.torch import load_file, save_file
from scan_problems import rms_error
from torch import nn

from seq2exp.compat import mamba_ssm
from seq2exp.compat.mamba_ssm.models.config_mamba import MambaConfig
from seq2exp.compat.mamba_ssm.models.mixer_seq_simple import (
    MambaLMHeadModel,
    MixerModel,
    _init_weights,
    create_block,
)
from seq2exp.compat.mamba_ssm.modules import block as block2
from seq2exp.compat.mamba_ssm.modules.mamba_simple import Block, Mamba
from seq2exp.compat.mamba_ssm.ops.triton.layernorm import RMSNorm
from seq2exp.compat.mamba_ssm.utils.generation import InferenceParams
from seq2exp.errors import UserError


def hidden(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def mixer(**options):
    torch.manual_seed(0)
    return Mamba(16, **{"d_state": 4} | options)


# --- Mamba ------------------------------------------------------------------------------------------------------------

OPTIONS = [{}, {"conv_bias": False}, {"bias": True}, {"d_conv": 2, "expand": 1}, {"d_conv": 6}, {"dt_rank": 5}]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mamba(options, fast):
    module, h = mixer(**options, use_fast_path=fast), hidden(2, 21, 16)
    names, parameters = zip(*module.named_parameters(), strict=True)
    out = module(h)
    doubles = [exact.double(x) for x in (h, *parameters)]
    wanted = exact.mamba(module, doubles[0], dict(zip(names, doubles[1:], strict=True)))
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(y, x, g.to(y.dtype)) for y, x in ((out, (h, *parameters)), (wanted, doubles)))
    assert rms_error(out.detach(), wanted.detach()) <= 1e-5
    for name, a, b in zip(("h", *names), ours, theirs, strict=True):
        assert rms_error(a, b) <= 1e-4, name


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_mamba_in_bfloat16(fast, autocast):
    """As a bfloat16 module (A_log and D stay float32), or under autocast; gradients in the dtypes of the weights."""
    module, dtype = mixer(use_fast_path=fast), torch.float32 if autocast else torch.bfloat16
    wanted = exact.mamba(module, hidden(2, 40, 16).double(), {n: p.double() for n, p in module.named_parameters()})
    low = mixer(use_fast_path=fast, dtype=dtype)
    low.load_state_dict(module.state_dict())
    assert (low.A_log.dtype, low.D.dtype, low.in_proj.weight.dtype) == (torch.float32, torch.float32, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = low(hidden(2, 40, 16, dtype=dtype))
    assert out.dtype == torch.bfloat16
    assert rms_error(out.detach(), wanted.detach()) <= 2e-2
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in low.parameters())


def test_fast_path_saves_less():
    """The input and chunk states instead of everything that the scan reads."""
    h = hidden(1, 4096, 16)
    fast, slow = (saved_bytes(lambda f=f: mixer(use_fast_path=f)(h)) for f in (True, False))
    assert fast < slow / 5


def test_initialisation():
    module = mixer(dt_min=0.01, dt_max=0.05)
    step = nn.functional.softplus(module.dt_proj.bias)
    assert step.min() >= 0.0099 and step.max() <= 0.0501 and step.std() > 0.005
    torch.testing.assert_close(-module.A_log.exp(), -torch.arange(1.0, 5).repeat(32, 1))
    assert (module.D == 1).all()
    assert module.A_log._no_weight_decay and module.D._no_weight_decay and module.dt_proj.bias._no_reinit
    assert (mixer(dt_init="constant", dt_scale=0.5, dt_rank=4).dt_proj.weight == 0.25).all()
    with pytest.raises(NotImplementedError, match="'normal' is none of random, constant"):
        mixer(dt_init="normal")


def test_weights_are_drawn_in_the_published_order():
    """in_proj, conv1d, x_proj, dt_proj twice, the step sizes, out_proj: a seed gives the same weights."""
    module = mixer()
    torch.manual_seed(0)
    linear, conv = nn.Linear(16, 64, bias=False), nn.Conv1d(32, 32, 4, groups=32)
    x_proj, dt_proj = nn.Linear(32, 1 + 8, bias=False), nn.Linear(1, 32)
    dt_proj.weight.data.uniform_(-1, 1)
    dt = torch.exp(torch.rand(32) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
    out = nn.Linear(32, 16, bias=False)
    for a, b in ((module.in_proj, linear), (module.conv1d, conv), (module.x_proj, x_proj), (module.out_proj, out)):
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=0)
    torch.testing.assert_close(module.dt_proj.weight, dt_proj.weight, rtol=0, atol=0)
    torch.testing.assert_close(nn.functional.softplus(module.dt_proj.bias), dt)


# --- state dicts as published -----------------------------------------------------------------------------------------

MAMBA = {  # d_model 16, d_state 4
    "A_log": (32, 4), "D": (32,), "in_proj.weight": (64, 16), "conv1d.weight": (32, 1, 4), "conv1d.bias": (32,),
    "x_proj.weight": (9, 32), "dt_proj.weight": (32, 1), "dt_proj.bias": (32,), "out_proj.weight": (16, 32),
}  # fmt: skip
BLOCK = {f"mixer.{key}": shape for key, shape in MAMBA.items()} | {"norm.weight": (16,)}
MIXER = {f"layers.{i}.{key}": shape for i in (0, 1) for key, shape in BLOCK.items()}
MIXER |= {"embedding.weight": (10, 16), "norm_f.weight": (16,)}
HEAD = {f"backbone.{key}": shape for key, shape in MIXER.items()}
HEAD |= {"backbone.embedding.weight": (16, 16), "lm_head.weight": (16, 16)}  # padded to 16
CONFIG = MambaConfig(16, 2, 10, {"d_state": 4})


def head(**fields):
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(**vars(CONFIG) | fields))


def test_state_dicts():
    norm = {"norm_cls": RMSNorm}
    for module, keys in (
        (mixer(), MAMBA),
        (mixer(bias=True, conv_bias=False), {k: s for k, s in MAMBA.items() if k != "conv1d.bias"}
         | {"in_proj.bias": (64,), "out_proj.bias": (16,)}),
        (Block(16, lambda d: Mamba(d, d_state=4), **norm), BLOCK),
        (Block(16, lambda d: Mamba(d, d_state=4)), BLOCK | {"norm.bias": (16,)}),
        (block2.Block(16, lambda d: Mamba(d, d_state=4), nn.Identity, **norm), BLOCK),
        (block2.Block(16, lambda d: Mamba(d, d_state=4), lambda d: nn.Linear(d, d), **norm),
         BLOCK | {"norm2.weight": (16,), "mlp.weight": (16, 16), "mlp.bias": (16,)}),
        (MixerModel(16, 2, 10, {"d_state": 4}, rms_norm=True), MIXER),
        (head(), HEAD),
    ):  # fmt: skip
        assert {key: tuple(x.shape) for key, x in module.state_dict().items()} == keys


def test_signatures():
    """Names and order of the arguments as published."""
    wanted = {
        Mamba: "d_model d_state d_conv expand dt_rank dt_min dt_max dt_init dt_scale dt_init_floor conv_bias bias "
        "use_fast_path layer_idx device dtype",
        Block: "dim mixer_cls norm_cls fused_add_norm residual_in_fp32",
        block2.Block: "dim mixer_cls mlp_cls norm_cls fused_add_norm residual_in_fp32",
        MambaLMHeadModel: "config initializer_cfg device dtype",
        MixerModel: "d_model n_layer vocab_size ssm_cfg norm_epsilon rms_norm initializer_cfg fused_add_norm "
        "residual_in_fp32 device dtype d_intermediate attn_layer_idx attn_cfg",
        create_block: "d_model ssm_cfg norm_epsilon rms_norm residual_in_fp32 fused_add_norm layer_idx device dtype "
        "d_intermediate attn_layer_idx attn_cfg",
        _init_weights: "module n_layer initializer_range rescale_prenorm_residual n_residuals_per_layer",
        mamba_ssm.selective_scan_fn: "u delta A B C D z delta_bias delta_softplus return_last_state",
        mamba_ssm.mamba_inner_fn: "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight out_proj_weight "
        "out_proj_bias A B C D delta_bias B_proj_bias C_proj_bias delta_softplus",
    }
    for function, names in wanted.items():
        assert list(inspect.signature(function).parameters) == names.split(), function


# --- blocks and models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("in_fp32", [True, False])
def test_blocks(rms, in_fp32):
    """Fused or not, 1.x or 2.x: the same output and stream; the MLP comes behind a second add and norm."""
    norm = RMSNorm if rms else nn.LayerNorm
    h, residual = hidden(2, 9, 16), hidden(2, 9, 16, seed=1)
    torch.manual_seed(3)
    old = Block(16, Mamba, norm, True, in_fp32)
    new = block2.Block(16, Mamba, nn.Identity, norm, False, in_fp32)
    new.load_state_dict(old.state_dict())
    for before in (None, residual):
        out, stream = old(h, before)
        torch.testing.assert_close(stream, h if before is None else h + before)
        torch.testing.assert_close(out, old.mixer(old.norm(stream)))
        for a, b in zip(new(h, before), (out, stream), strict=True):
            torch.testing.assert_close(a, b)
    with_mlp = block2.Block(16, Mamba, lambda d: nn.Linear(d, d), norm, True, in_fp32)
    with_mlp.load_state_dict(old.state_dict(), strict=False)
    out2, stream2 = with_mlp(h, residual)
    torch.testing.assert_close(stream2, stream + out)
    torch.testing.assert_close(out2, with_mlp.mlp(with_mlp.norm2(stream2)))


def test_stream_dtype_of_a_bfloat16_block():
    for in_fp32, wanted in ((True, torch.float32), (False, torch.bfloat16)):
        for fused in (True, False):
            block = create_block(16, {"d_state": 4}, 1e-5, True, in_fp32, fused, 0, dtype=torch.bfloat16)
            out, stream = block(hidden(1, 5, 16, dtype=torch.bfloat16))
            assert (out.dtype, stream.dtype) == (torch.bfloat16, wanted)
            out, stream = block(out, stream)
            assert (out.dtype, stream.dtype) == (torch.bfloat16, wanted)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rms", [True, False])
def test_model_is_its_blocks(fused, rms):
    model = head(fused_add_norm=fused, rms_norm=rms)
    ids = torch.randint(0, 10, (2, 13), generator=torch.Generator().manual_seed(0))
    x = model.backbone.embedding(ids)
    for layer in model.backbone.layers:
        x = x + layer.mixer(layer.norm(x))
    logits = model.backbone.norm_f(x) @ model.backbone.embedding.weight.t()
    torch.testing.assert_close(model(ids).logits, logits)
    torch.testing.assert_close(model(ids, num_last_tokens=2)[0], logits[:, -2:])
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_model_initialisation():
    """Residual branches scaled by the number of layers, embeddings normal; weights of the head tied or not."""
    model = head(d_model=64, n_layer=4)
    weight = model.backbone.layers[0].mixer.out_proj.weight
    assert math.isclose(weight.detach().std(), 1 / math.sqrt(3 * 128 * 4), rel_tol=0.05)
    assert math.isclose(model.backbone.embedding.weight.detach().std(), 0.02, rel_tol=0.1)
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert model.backbone.layers[2].layer_idx == model.backbone.layers[2].mixer.layer_idx == 2
    assert (model.backbone.layers[0].mixer.dt_proj.bias != 0).all()  # _no_reinit
    untied = head(tie_embeddings=False)
    assert untied.lm_head.weight is not untied.backbone.embedding.weight


# --- reading with a cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_cache(prompt, dtype):
    """A prompt and then token by token gives what the whole gives."""
    model = head().to(dtype)
    ids = torch.randint(0, 10, (2, 16), generator=torch.Generator().manual_seed(0))
    params = InferenceParams(max_seqlen=16, max_batch_size=2)
    if prompt == 3:
        params.key_value_memory_dict = model.allocate_inference_cache(2, 16)
    outs = [model(ids[:, :prompt], inference_params=params).logits]
    for t in range(prompt, 16):
        params.seqlen_offset = t
        outs.append(model(ids[:, t : t + 1], inference_params=params).logits)
    whole = model(ids).logits
    assert rms_error(torch.cat(outs, 1), whole) <= (1e-5 if dtype == torch.float32 else 3e-2)
    conv, scan = params.key_value_memory_dict[1]
    assert (conv.shape, scan.shape, conv.dtype, scan.dtype) == ((2, 32, 4), (2, 32, 4), dtype, dtype)


def test_cache_errors():
    params = InferenceParams(8, 2)
    with pytest.raises(UserError, match="layer_idx"):
        mixer()(hidden(2, 3, 16), params)
    module = mixer(layer_idx=0)
    module(hidden(2, 3, 16), params)
    with pytest.raises(UserError, match="the cache is of batch 2, the input of batch 1"):
        module(hidden(1, 3, 16), params)
    params.seqlen_offset = 3
    with pytest.raises(UserError, match="one position at a time, got 2"):
        module(hidden(2, 2, 16), params)


# --- files and what is not supported ----------------------------------------------------------------------------------


@pytest.mark.parametrize("safetensors", [False, True])
def test_saved_model_loads(tmp_path, safetensors):
    model, ids = head(), torch.arange(8)[None]
    model.save_pretrained(tmp_path / "m")
    if safetensors:
        (tmp_path / "m" / "pytorch_model.bin").unlink()
        state = {k: x.contiguous() for k, x in model.state_dict().items() if k != "lm_head.weight"}
        save_file(state, tmp_path / "m" / "model.safetensors")
    again = MambaLMHeadModel.from_pretrained(str(tmp_path / "m"), dtype=torch.float32)
    assert again.config == model.config
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_file_errors(tmp_path):
    with pytest.raises(UserError, match=r"state-spaces/mamba-130m is no folder with config\.json"):
        MambaLMHeadModel.from_pretrained("state-spaces/mamba-130m")
    head().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"d_model": 16, "rope": 1}')
    with pytest.raises(UserError, match=r"rope not supported; .*d_model.* are"):
        MambaLMHeadModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"d_intermediate": 64}, "d_intermediate=64 is not supported"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx=\[1\] is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "'Mamba2' in ssm_cfg is not supported; 'Mamba1' is"),
    ],
)
def test_what_is_not_supported_is_named(options, message):
    with pytest.raises(UserError, match=message):
        MixerModel(16, 2, 10, **options)
    with pytest.raises(UserError, match=message):
        MambaLMHeadModel(MambaConfig(**vars(CONFIG) | options))


def test_fused_add_norm_needs_a_norm_that_it_knows():
    for build in (lambda n: Block(16, Mamba, n, True), lambda n: block2.Block(16, Mamba, nn.Identity, n, True)):
        with pytest.raises(UserError, match="not with Identity"):
            build(nn.Identity)


# --- a published model on these modules -------------------------------------------------------------------------------


class BiMamba(nn.Module):
    """As the published Caduceus builds its mixer."""

    def __init__(self, d_model, **options):
        super().__init__()
        self.mamba_fwd, self.mamba_rev = Mamba(d_model, **options), Mamba(d_model, **options)
        self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
        self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight

    def forward(self, x, inference_params=None):
        return self.mamba_fwd(x) + self.mamba_rev(x.flip(dims=(1,))).flip(dims=(1,))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_golden_caduceus(golden, fused, fast):
    """The published Caduceus on our modules: its state dict loads, its hidden states, logits and gradients come out."""
    file = load_file(golden / "caduceus_ph.safetensors")
    w, g = ({k[2:]: x for k, x in file.items() if k.startswith(f"{group}.")} for group in "wg")
    model = MixerModel(32, 2, 16, {"use_fast_path": fast}, rms_norm=True, fused_add_norm=fused)
    for layer in model.layers:
        layer.mixer = BiMamba(32, use_fast_path=fast)
    names = {name: f"caduceus.backbone.{name}" for name in model.state_dict()}
    names["embedding.weight"] = "caduceus.backbone.embeddings.word_embeddings.weight"
    model.load_state_dict({name: w[key] for name, key in names.items()})
    head = w["lm_head.weight"].requires_grad_()
    hidden = model(file["in.input_ids"].long())
    logits = hidden @ head.t()
    assert rms_error(hidden.detach(), file["out.hidden"].double()) <= 1e-5
    assert rms_error(logits.detach(), file["out.logits"].double()) <= 1e-5
    logits.square().mean().backward()
    found = {names[name]: p.grad for name, p in model.named_parameters()} | {"lm_head.weight": head.grad}
    assert found.keys() == g.keys()
    for key, grad in found.items():
        assert rms_error(grad, g[key].double()) <= 1e-4, key
