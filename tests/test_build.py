"""The build: what it does without a compiler, without nvcc, without torch, and after a header changes."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("csrc", "kernels", "data_tools", "seq2exp")


@pytest.fixture
def build() -> SimpleNamespace:
    """The names of setup.py, without running setup()."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py"), run_name="setup_module"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a build needs, without anything built."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def setup(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture
def compiler(build: SimpleNamespace) -> str:
    """The command of a C++ compiler that works; skips without one."""
    if (found := build.compiler()) is None:
        pytest.skip(f"no working C++ compiler ({build.cxx()})")
    return found


def test_every_package_is_in_the_list(build):
    found = {"seq2exp": "seq2exp", "kernels": "seq2exp.kernels", "data_tools": "seq2exp.data_tools"}
    wanted = set()
    for folder, name in found.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            wanted.add(".".join([name, *init.parent.relative_to(ROOT / folder).parts]))
    assert set(build.packages()) == wanted and "seq2exp.kernels.selective_scan" in wanted


def test_flags_of_the_ninja_file(build, tmp_path):
    text = build.ninja_file(tmp_path / "torch", tmp_path / "_C.so", None)
    assert "-ffast-math" not in text and "-march=native" not in text
    assert ".cu" not in text and "build_info_nocuda.cpp" in text
    if build.X86:
        lines = text.splitlines()
        assert "avx512f" in lines[next(i for i, line in enumerate(lines) if "scan_avx512.cpp.o" in line) + 1]
    with_cuda = build.ninja_file(tmp_path / "torch", tmp_path / "_C.so", "/opt/nvcc")
    assert "build_info.cu" in with_cuda and "build_info_nocuda.cpp" not in with_cuda
    assert "arch=compute_90,code=compute_90" in with_cuda


def test_no_compiler_makes_a_pure_wheel_and_says_so(checkout):
    (checkout / "seq2exp" / "_C.so").write_bytes(b"left by an earlier build")
    run = setup(checkout, "bdist_wheel", CXX="/bin/false")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("seq2exp: no working C++ compiler (/bin/false), so the compiled kernels are left out") == 1
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "seq2exp/kernels/selective_scan/ops.py" in names and not any(name.endswith(".so") for name in names)


def test_no_torch_ends_in_one_sentence(checkout, tmp_path, compiler):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    tools = tmp_path / "tools"  # setuptools and no torch
    tools.mkdir()
    site = Path(importlib.util.find_spec("setuptools").origin).parents[1]
    for name in ("setuptools", "_distutils_hack"):
        (tools / name).symlink_to(site / name)
    program = (
        "import runpy, sys; sys.base_prefix = sys.prefix; sys.argv = ['setup.py', 'build_ext']; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    run = subprocess.run(
        [str(bare / "bin" / "python"), "-c", program],
        cwd=checkout, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(tools)},
    )  # fmt: skip
    assert run.returncode != 0 and "Traceback" not in run.stderr
    sentence = run.stderr.strip().splitlines()[-1]
    assert sentence.startswith("seq2exp: the kernels are compiled against the PyTorch of this environment")
    assert 'run "pip install torch setuptools ninja" first' in sentence and "--no-build-isolation" in sentence


def test_old_torch_counts_as_none(build, tmp_path, monkeypatch):
    folder = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "torch"
    folder.mkdir(parents=True)
    (folder / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(SystemExit, match=r"none from 2\.10 on was found"):
        build.find_torch()
    (folder / "version.py").write_text("__version__ = '2.10.0'\n")
    assert build.find_torch() == folder


def test_failing_nvcc_leaves_the_cpu_kernels_and_headers_rebuild(checkout, compiler):
    run = setup(checkout, "build_ext", "--inplace", NVCC="/bin/false")
    assert run.returncode == 0, run.stderr
    assert "nvcc (/bin/false) failed, see above, so the CUDA kernels are left out" in run.stderr
    extension = checkout / "seq2exp" / "_C.so"
    program = (
        f"import torch; torch.ops.load_library({str(extension)!r}); "
        "print(torch.ops.seq2exp_native.cpu_instruction_sets(), torch.ops.seq2exp_native.cuda_build())"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.stdout.startswith("['portable'") and loaded.stdout.strip().endswith("[]"), loaded.stderr

    nothing = setup(checkout, "build_ext", "--inplace", NVCC="/bin/false")
    assert "ninja: no work to do" in nothing.stdout
    header = checkout / "csrc" / "common" / "math.h"
    header.write_text(header.read_text() + "\n#error changed\n")
    changed = setup(checkout, "build_ext", "--inplace", NVCC="/bin/false")
    assert changed.returncode != 0 and "#error changed" in changed.stdout + changed.stderr
    assert "could not compile the CPU kernels, see above" in changed.stderr and "Traceback" not in changed.stderr


@pytest.mark.slow
def test_wheel_has_no_python_tag(checkout, compiler):
    run = setup(checkout, "bdist_wheel")
    assert run.returncode == 0, run.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert "-py3-none-linux_" in wheel.name and "seq2exp/_C.so" in zipfile.ZipFile(wheel).namelist()
