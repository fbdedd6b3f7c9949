"""`install` and `python -m seq2exp.compat`: names, scripts, children, refusal beside the real packages.

What can be tried inside this process is: a new one takes seconds to import torch.
"""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import textwrap

import pytest

from seq2exp.compat import __main__ as program
from seq2exp.compat import install, uninstall
from seq2exp.errors import UserError


def python(*arguments, cwd=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.fixture
def script(tmp_path):
    def write(code, name="train.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(code))
        return path

    return write


@pytest.fixture
def clean():
    """Nobody's modules under the two names, before and after."""

    def forget():
        uninstall()
        for name in [name for name in sys.modules if name.split(".")[0] in ("mamba_ssm", "causal_conv1d")]:
            del sys.modules[name]

    forget()
    yield
    forget()


@pytest.fixture
def real(tmp_path, monkeypatch, clean):
    """Packages on the path that pass for the real ones."""
    for name in ("mamba_ssm", "causal_conv1d"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("__version__ = 'real'\n")
        info = tmp_path / "site" / f"{name}-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture
def main(monkeypatch, clean, capsys):
    """The program in this process, as far as it comes without running anything: (exit code, what it says)."""
    monkeypatch.setattr(program.children, "follow", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compat", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            program.main()
        return leaving.value.code, capsys.readouterr().err

    return call


# --- names ------------------------------------------------------------------------------------------------------------

# Every import line of the published code: Caduceus (modeling_caduceus, modeling_rcps, dna_embedding), Seq2Exp
# (GeneExpformer, configuration_caduceus), transformers, and mamba-ssm's own modules among themselves.
IMPORTS = """
from mamba_ssm import Mamba, MambaLMHeadModel, selective_scan_fn, mamba_inner_fn
from mamba_ssm.modules.mamba_simple import Mamba, Block
from mamba_ssm.modules.block import Block
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, mamba_inner_ref
from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel, MixerModel
from mamba_ssm.models.mixer_seq_simple import create_block, _init_weights as _init_weights_mamba
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.utils.generation import InferenceParams
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
import mamba_ssm.ops.triton.layer_norm as norms
import mamba_ssm.modules.mamba_simple as simple
assert simple.Mamba is Mamba and norms is mamba_ssm.ops.triton.layer_norm and simple.causal_conv1d_fn is not None
"""


# As modeling_caduceus asks for the version of the block, and as Seq2Exp extends the settings.
USES = """
import importlib.metadata, importlib.util, inspect
from dataclasses import dataclass
import causal_conv1d
from mamba_ssm.modules import block

@dataclass
class ExtendedMambaConfig(MambaConfig):
    center_len: int = 2000

print(["mlp_cls" in inspect.signature(cls.__init__).parameters for cls in (simple.Block, block.Block)])
print(ExtendedMambaConfig(d_model=8, center_len=3).center_len, ExtendedMambaConfig().vocab_size)
print(importlib.metadata.version("mamba-ssm"), importlib.metadata.version("causal_conv1d"))
print(mamba_ssm.__version__, causal_conv1d.__version__, importlib.metadata.version("torch") != "")
print(importlib.util.find_spec("mamba_ssm") is not None)
try:
    from mamba_ssm.modules.mamba2 import Mamba2
except ImportError as error:
    print(error)
"""


def test_every_name(script):
    done = python("-m", "seq2exp.compat", script("import mamba_ssm\n" + IMPORTS + USES))
    assert done.returncode == 0, done.stderr
    *lines, missing = done.stdout.splitlines()
    versions = "1.2.2+seq2exp 1.4.0+seq2exp"
    assert lines == ["[False, True]", "3 50277", versions, f"{versions} True", "True"]
    assert missing.startswith("seq2exp.compat does not offer mamba_ssm.modules.mamba2; it offers causal_conv1d, mamba_")


def test_seq2exp_does_not_import_it():
    done = python("-c", "import sys, seq2exp; print([m for m in sys.modules if m.startswith('seq2exp.compat')])")
    assert done.stdout == "[]\n", done.stderr


# --- install beside the real packages ---------------------------------------------------------------------------------


def versions():
    modules = [importlib.import_module(name).__version__ for name in ("mamba_ssm", "causal_conv1d")]
    return [*modules, importlib.metadata.version("mamba-ssm")]


def test_ours_win_and_uninstall_gives_theirs_back(real):
    install()
    install()
    assert versions() == ["1.2.2+seq2exp", "1.4.0+seq2exp", "1.2.2+seq2exp"]
    uninstall()
    uninstall()
    assert versions() == ["real", "real", "9.9"]


@pytest.mark.parametrize("name", ["mamba_ssm", "causal_conv1d"])
def test_refuses_when_the_real_ones_are_imported(real, name):
    module = importlib.import_module(name)
    with pytest.raises(UserError, match="before the first import") as error:
        install()
    assert str(error.value).startswith(f"imported already: {name} ({real}")
    assert sys.modules[name] is module and len({"mamba_ssm", "causal_conv1d"} & sys.modules.keys()) == 1


def test_the_program_refuses_too(real, script, main):
    """Where something imports the real package at start-up; the script does not run."""
    importlib.import_module("mamba_ssm")
    code, said = main(script("raise SystemExit('ran')"))
    assert code == 2 and said.startswith("seq2exp.compat: imported already: mamba_ssm") and said.count("\n") == 1


# --- like `python script.py` ------------------------------------------------------------------------------------------

SHOW = """
    import atexit, pickle, sys
    import beside

    class Own:
        pass

    atexit.register(lambda: print("left", type(pickle.loads(pickle.dumps(Own()))).__module__))
    print(sys.argv, __name__, __file__, sys.path[0], __package__, sys.modules["__main__"].Own is Own)
    if sys.argv[1] == "exit":
        sys.exit(7)
    raise ValueError("boom")
"""


@pytest.mark.parametrize("how,end", [("script", "raise"), ("module", "raise"), ("package", "exit")])
def test_behaves_like_python(script, tmp_path, how, end):
    """The same output, exit code and traceback as without us."""
    (tmp_path / "package").mkdir()
    script("", "beside.py")
    script("", "package/__init__.py")
    path = script(SHOW, "package/__main__.py" if how == "package" else "train.py")
    target, cwd = ([path], None) if how == "script" else (["-m", "package" if how == "package" else "train"], tmp_path)
    bare, ours = (python(*prefix, *target, end, "-x", cwd=cwd) for prefix in ([], ["-m", "seq2exp.compat"]))
    assert (ours.stdout, ours.returncode) == (bare.stdout, bare.returncode)
    assert "left __main__" in ours.stdout
    ends = 7 if end == "exit" else 1
    assert ours.returncode == ends
    own = [line for line in bare.stderr.splitlines() if "frozen runpy" not in line]
    assert ours.stderr.splitlines() == own


def test_a_syntax_error(script, main):
    code, said = main(script("x = (", "broken.py"))
    assert code == 1 and "SyntaxError" in said and "compat" not in said


@pytest.mark.parametrize(
    "arguments,message",
    [([], "usage: "), (["-x"], "usage: "), (["nothing.py"], "there is no file nothing.py"),
     (["-m"], "usage: "), (["-m", "nothing"], "there is no module nothing that can be run")],
)  # fmt: skip
def test_mistakes_on_the_command_line(main, arguments, message):
    code, said = main(*arguments)
    assert code == 2 and message in said and said.endswith(f"{program.USAGE}\n")


def test_children_find_our_modules(script):
    """Processes started by spawn run the script's file again, and load what it defines."""
    code = """
        import multiprocessing
        import mamba_ssm

        class Job:
            def __call__(self, queue):
                queue.put(mamba_ssm.__version__)

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            child = context.Process(target=Job(), args=(queue,))
            child.start()
            print(queue.get(timeout=60))
            child.join()
            print(child.exitcode)
    """
    done = python("-m", "seq2exp.compat", script(code))
    assert done.stdout.splitlines() == ["1.2.2+seq2exp", "0"], done.stderr


# --- a training script ------------------------------------------------------------------------------------------------

TRAIN = """
    import torch
    from torch import nn
    from mamba_ssm import Mamba
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.modules.mamba_simple import Block
    from mamba_ssm.ops.triton.layernorm import RMSNorm, rms_norm_fn

    class BiMamba(nn.Module):  # as published code builds it
        def __init__(self, d):
            super().__init__()
            self.mamba_fwd, self.mamba_rev = Mamba(d_model=d), Mamba(d_model=d)
            self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
            self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight

        def forward(self, x, inference_params=None):
            return self.mamba_fwd(x) + self.mamba_rev(x.flip(dims=(1,))).flip(dims=(1,))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            config = MambaConfig(d_model=32, n_layer=1, vocab_size=8, residual_in_fp32=True)
            self.causal = MambaLMHeadModel(config)
            self.block = Block(32, BiMamba, RMSNorm, fused_add_norm=True, residual_in_fp32=True)
            self.norm_f = RMSNorm(32)

        def forward(self, ids):
            h, residual = self.block(self.causal.backbone(ids), None)
            h = rms_norm_fn(h, self.norm_f.weight, None, residual=residual, eps=1e-5)
            return self.causal.lm_head(h)

    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = Both()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.randint(0, 8, (4, 32))
        target = ids.roll(3, 1)  # what stood three tokens before
        for step in range(40):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = model(ids)
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(loss.item())
"""


def test_a_script_of_public_names_trains(script):
    """In float32 and under autocast."""
    done = python("-m", "seq2exp.compat", script(TRAIN))
    assert done.returncode == 0, done.stderr
    losses = [float(line) for line in done.stdout.split()]
    for course in (losses[:40], losses[40:]):
        assert course[0] > 1.9 and course[-1] < 0.5 * course[0]
