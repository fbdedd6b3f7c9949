"""An importable tree without installing: FOLDER/seq2exp holds the ops, the models and the extension, nothing else.

`python bench/gpu_build.py FOLDER ARCHITECTURE` compiles the extension into it, for one architecture of GPU (80, 90).
All of it needs only torch: what checks configurations and writes models stands aside (`standins`). The data tools and
the command line need packages that a bare machine lacks.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
STANDINS = ROOT / "bench" / "standins"
MODEL = ("backbone", "config", "embedding", "errors", "loss", "model", "parts", "strands")
COMPARED = ("baselines/published", "baselines/published_layer", "baselines/published_mask", "benchmark/step")
LINKED = {
    "kernels": ROOT / "kernels",
    **{f"{name}.py": ROOT / "seq2exp" / f"{name}.py" for name in (*MODEL, *COMPARED)},
    "pretrained.py": STANDINS / "pretrained.py",
}


def make_tree(folder: Path) -> Path:
    """FOLDER for PYTHONPATH. A package, not a namespace, so that it hides an installed seq2exp."""
    package = folder / "seq2exp"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text('"""The ops and models of seq2exp, for a machine with torch only."""\n')
    links = {package / name: target for name, target in LINKED.items()}
    if not has_pydantic():
        links[folder / "pydantic.py"] = STANDINS / "pydantic.py"
    for link, target in links.items():
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return folder


def has_pydantic() -> bool:
    return importlib.util.find_spec("pydantic") is not None


def extension(folder: Path) -> Path:
    return folder / "seq2exp" / "_C.so"


def build(folder: Path, architecture: str) -> str:
    """Compiles as setup.py does, in FOLDER/native. architecture: 80, 90, ...; "cpu" leaves the CUDA kernels out.

    SystemExit says what is missing or went wrong.
    """
    if importlib.util.find_spec("setuptools") is None:
        sys.exit("no build: this Python has no setuptools")
    setup = load_setup()
    setup.CUDA_ARCHITECTURES = (architecture,)
    if setup.compiler() is None:
        sys.exit(f"no build: no working C++ compiler ({setup.cxx()})")
    nvcc = None if architecture == "cpu" else setup.find_nvcc()
    if nvcc is None and architecture != "cpu":
        sys.exit("no build: nvcc was not found")
    native = folder / "native"
    native.mkdir(parents=True, exist_ok=True)
    built = native / "_C.so"
    (native / "build.ninja").write_text(setup.ninja_file(setup.find_torch(), built, nvcc))
    jobs = os.environ.get("MAX_JOBS")
    command = [setup.find_ninja(), "-C", str(native), *(["-j", jobs] if jobs else [])]
    if code := subprocess.run(command).returncode:
        sys.exit(f"no build: ninja ended with {code}, see above")
    arrived = native / "arrived.so"
    shutil.copy2(built, arrived)
    arrived.replace(extension(folder))  # at once: another process may be about to load it
    return f"built for sm_{architecture} by {nvcc}" if nvcc else "built for the CPU only"


def load_setup() -> ModuleType:
    """setup.py as a module: how the extension is built is written there once."""
    spec = importlib.util.spec_from_file_location("seq2exp_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), sys.argv[2]))
