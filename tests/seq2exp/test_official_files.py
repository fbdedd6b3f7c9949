"""Published checkpoint files: every kind is read, nothing in one is executed, what is none is refused in a sentence."""

import copy
import json
import os
import pickle
import zipfile

import pytest
import torch
from published_models import (
    CASES,
    SETTINGS,
    Canary,
    inputs,
    lightning,
    omegaconf,
    published,
    run_settings,
    small,
)
from safetensors.torch import save_file

from seq2exp import UserError, load_official
from seq2exp.official.plain import plain, resolved
from seq2exp.official.reading import read_checkpoint, read_settings
from seq2exp.official.unpickle import read_torch_file


def equal(loaded, model):
    x = inputs()
    return torch.equal(loaded(*x).expression, model(*x).expression)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", CASES)
def test_lightning_checkpoint(case, legacy, tmp_path, monkeypatch):
    model, path = small(case), tmp_path / "last.ckpt"
    hyper_parameters = omegaconf(monkeypatch)(run_settings(CASES[case]))
    file = lightning(published(model), hyper_parameters, hparams_type=type(hyper_parameters))
    torch.save(file, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()  # the names in the file lead to nothing from here on
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    assert equal(load_official(path), model)


def test_plain_hyper_parameters_and_config_that_goes_before_them(tmp_path):
    model, path = small("top_fraction"), tmp_path / "last.ckpt"
    torch.save(lightning(published(model), run_settings(SETTINGS | {"test_soft": True})), path)
    assert load_official(path).config.top_fraction is None
    assert equal(load_official(path, {"test_soft": False, "test_top": True, "test_top_percent": 0.1}), model)


def test_state_dicts_and_folders(tmp_path):
    model = small("soft")
    weights = published(model)
    save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    torch.save({"state_dict": weights}, tmp_path / "nested.pt")
    torch.save({f"module.model._orig_mod.{k}": v for k, v in weights.items()}, tmp_path / "wrapped.pt")
    for name in ("model.safetensors", "pytorch_model.bin", "nested.pt", "wrapped.pt"):
        assert equal(load_official(str(tmp_path / name), SETTINGS), model), name
    config = {k: v for k, v in SETTINGS.items() if k != "_class"} | {"architectures": ["GeneBiMambaMIRNP"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert equal(load_official(tmp_path), model)
    (tmp_path / "model.safetensors").unlink()
    assert equal(load_official(tmp_path), model)


def test_tensors_that_share_a_storage_or_lie_across_it(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "a": base,
        "b": base.t()[1:3, ::2],
        "c": torch.nn.Parameter(base[2:]),
        "e": torch.empty(0),
        "f": base[0, 0],
    }
    for legacy in (False, True):
        torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
        found = read_torch_file(tmp_path / "x.pt")
        for name, tensor in tensors.items():
            assert torch.equal(found[name].read(), tensor), name


def test_half_precision_is_widened_and_other_numbers_refused(tmp_path):
    weights = published(small("soft"))
    torch.save({k: v.bfloat16() for k, v in weights.items()}, tmp_path / "half.pt")
    found = read_checkpoint(tmp_path / "half.pt").weights
    assert all(torch.equal(found[k], v.bfloat16().float()) for k, v in weights.items())
    for dtype in (torch.float64, torch.int64):
        torch.save(weights | {"mask_output.bias": torch.zeros(2, dtype=dtype)}, tmp_path / "other.pt")
        with pytest.raises(UserError, match=f"other.pt: mask_output.bias is {dtype}; parameters must be float32"):
            load_official(tmp_path / "other.pt", SETTINGS)


# --- nothing runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nest(tmp_path):
    """The folder that a canary makes; it is shown to sing."""
    nest = tmp_path / "nest"
    pickle.loads(pickle.dumps(Canary(nest)))
    assert nest.is_dir(), "the canary does not sing: the test shows nothing"
    nest.rmdir()
    yield nest
    assert not nest.exists(), "code in the file was run"


class Printing:
    def __reduce__(self):
        return os.system, ("touch nest",)


class Opening:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_among_the_hyper_parameters_is_not_run(nest, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, path = small("soft"), tmp_path / "last.ckpt"
    settings = run_settings(SETTINGS) | {"a": Canary(nest), "b": Printing(), "c": [Opening(nest)], Canary(nest): 1}
    torch.save(
        lightning(published(model), settings, more=Canary(nest)), path, _use_new_zipfile_serialization=not legacy
    )
    assert equal(load_official(path), model)
    assert plain(read_torch_file(path)["hyper_parameters"])["b"] == f"<{os.system.__module__}.system>"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_among_the_parameters_is_refused_unrun(nest, legacy, tmp_path):
    path = tmp_path / "model.bin"
    for content, words in (
        (
            published(small("soft")) | {"canary": Canary(nest)},
            r"canary is a posix.mkdir, not a tensor; nothing .* was run",
        ),
        (Canary(nest), "holds a whole object, posix.mkdir, which was not run; save its state_dict"),
        ({"state_dict": Canary(nest)}, "state_dict is a posix.mkdir"),
        ({"state_dict": published(small("soft")) | {Canary(nest): 1}}, "not a tensor"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=words) as caught:
            load_official(path, SETTINGS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_with_code_is_refused_unrun(nest, protocol, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Canary(nest), protocol=protocol))
    with pytest.raises(UserError, match=r"not a file of torch\.save"):
        load_official(path, SETTINGS)


@pytest.mark.parametrize(
    "name",
    ["torch._utils _rebuild_tensor_v2", "torch Size", "collections OrderedDict", "os system", "torch FloatStorage"],
)
@pytest.mark.parametrize(
    "state", [{"__call__": 1, "x": 2}, (None, {"__call__": 1, "__new__": 2}), (None, {"_call": 1})]
)
def test_what_a_file_names_cannot_be_changed_by_it(name, state, tmp_path):
    """A pickle that names something and sets its attributes: refused or without effect, and the next file is read."""
    module, _, attribute = name.partition(" ")
    named = f"c{module}\n{attribute}\n".encode()
    built = b"\x80\x02" + named + pickle.dumps(state, protocol=2)[2:-1] + b"b."
    torch.save({"x": torch.ones(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("archive/data.pkl", built)
    with pytest.raises(UserError, match=r"bad\.pt"):
        read_checkpoint(tmp_path / "bad.pt")
    assert torch.equal(read_torch_file(tmp_path / "good.pt")["x"].read(), torch.ones(2))


def test_a_setting_that_is_code_is_named(nest, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(lightning(published(small("soft")), run_settings(SETTINGS | {"z_scale": Canary(nest)})), path)
    with pytest.raises(UserError, match="z_scale"):
        load_official(path)


def test_a_torchscript_archive_is_not_compiled(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "model.pt"))
    with pytest.raises(UserError, match="a TorchScript archive, whose code is not run"):
        load_official(tmp_path / "model.pt", SETTINGS)


# --- what is no checkpoint --------------------------------------------------------------------------------------------


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"absent.pt: no such file"):
        load_official(tmp_path / "absent.pt", SETTINGS)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({}, tmp_path / "empty.pt")
    torch.save({"lr": 0.1}, tmp_path / "settings.pt")
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    for name, content in {"a.pt": b"", "b.pt": b"text", "c.safetensors": b"text", "d.safetensors": b""}.items():
        (tmp_path / name).write_bytes(content)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(
            UserError, match=r"state dict lacks" if path.name.startswith("other") else path.name
        ) as caught:
            load_official(path, SETTINGS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere(kind, tmp_path):
    weights = published(small("soft"))
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.ckpt")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(lightning(weights, run_settings(SETTINGS)), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for share in (0.001, 0.02, 0.3, 0.7, 0.95, 0.9999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=path.name) as caught:
            load_official(path, SETTINGS)
        assert "\n" not in str(caught.value)


def test_a_damaged_tensor_is_named(tmp_path):
    path = tmp_path / "model.pt"
    weights = {"pToExpr.0.bias": torch.full((999,), 1.5)}
    torch.save(weights, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((9,), 1.5).numpy().tobytes()) + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"pToExpr\.0\.bias cannot be read, the file is damaged"):
        load_official(path, SETTINGS)


def test_folders(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in it; expected model\.safetensors or pytorch_model\.bin"):
        load_official(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="its parameters are in several files"):
        load_official(tmp_path)
    save_file(published(small("soft")), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"config.json: no such file"):
        load_official(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not a JSON object"):
        load_official(tmp_path)
    small("soft").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a Seq2Exp of ours already; load it with from_pretrained"):
        load_official(tmp_path)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_references_between_settings():
    found = resolved(
        {"a": {"x": "${b.y}", "z": "${.x}", "list": ["${..x}", 1], "up": {"v": "${..z}"}, "gone": "${nowhere}"},
         "b": {"y": 3, "call": "${eval:1+1}", "mixed": "v${.y}", "absent": "???"}, "loop": "${loop}"}
    )  # fmt: skip
    assert found == {"a": {"x": 3, "z": 3, "list": [3, 1], "up": {"v": 3}}, "b": {"y": 3}}


def test_settings_that_explode_or_contain_themselves(tmp_path):
    bomb = {f"a{i}": {"x": f"${{a{i + 1}}}", "y": f"${{a{i + 1}}}"} for i in range(60)} | {"a60": 1}
    resolved(bomb)
    laughs: list = []
    for _ in range(60):
        laughs = [laughs, laughs]
    plain(copy.copy(laughs))
    loop: dict = {}
    loop["self"] = loop
    assert plain(loop) == {"self": None}
    deep: list = []
    for _ in range(400):
        deep = [deep]
    torch.save(lightning(published(small("soft")), {"deep": deep}), tmp_path / "deep.ckpt")
    assert equal(load_official(tmp_path / "deep.ckpt", SETTINGS), small("soft"))


def test_settings_from_files(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "_name_: BiMambaMIRNP\nconfig:\n  d_model: 8\n  marginal_mean: 0.2\n  top: ${.d_model}\n"
    )
    assert read_settings(tmp_path / "a.yaml") == {
        "d_model": 8, "marginal_mean": 0.2, "top": 8, "_class": "GeneBiMambaMIRNP",
    }  # fmt: skip
    (tmp_path / "b.json").write_text('{"d_model": 8, "_class": "GeneExpBiMamba"}')
    assert read_settings(tmp_path / "b.json") == {"d_model": 8, "_class": "GeneExpBiMamba"}
    for name, content in {"c.yaml": b"- 1", "d.yaml": b"a: [", "e.yaml": b"\x80\x81"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_settings(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_settings(tmp_path / "f.yaml")
