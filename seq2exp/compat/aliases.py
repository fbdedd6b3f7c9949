"""`mamba_ssm` and `causal_conv1d` in `sys.modules`: modules of ours under the names that published code imports."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from seq2exp.errors import UserError

PACKAGES = ("mamba_ssm", "causal_conv1d")


def install() -> None:
    """Puts our modules under the names of mamba-ssm and causal-conv1d; what is installed under them is not looked at.

    A second call does nothing.

    Raises
    ------
    UserError: the real packages are imported already, so part of the program would use theirs, part ours.
    """
    if _finder in sys.meta_path:
        return
    imported = [name for name in PACKAGES if name in sys.modules]
    if imported:
        places = ", ".join(f"{name} ({getattr(sys.modules[name], '__file__', 'built in')})" for name in imported)
        raise UserError(
            f"imported already: {places}; call seq2exp.compat.install() before the first import of mamba_ssm or "
            "causal_conv1d, or run the script with python -m seq2exp.compat"
        )
    sys.modules.update({_published(module.__name__): module for module in _ours()})
    sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """The names are again those of the real packages, if there are any; objects made meanwhile stay ours."""
    if _finder not in sys.meta_path:
        return
    sys.meta_path.remove(_finder)
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


def _ours() -> Iterator[ModuleType]:
    """Our modules, all imported."""
    for package in PACKAGES:
        module = importlib.import_module(f"{__package__}.{package}")
        yield module
        for found in pkgutil.walk_packages(getattr(module, "__path__", ()), module.__name__ + "."):
            yield importlib.import_module(found.name)


def _published(name: str) -> str:
    """seq2exp.compat.mamba_ssm.ops -> mamba_ssm.ops"""
    return name.removeprefix(f"{__package__}.")


class _Distribution(importlib.metadata.Distribution):
    """What `importlib.metadata` says of mamba-ssm and causal-conv1d: the version whose interface is offered."""

    def __init__(self, package: str) -> None:
        self.package = package

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        version = importlib.import_module(f"{__package__}.{self.package}").__version__
        return f"Metadata-Version: 2.1\nName: {self.package}\nVersion: {version}\n"

    def locate_file(self, path):  # type: ignore[no-untyped-def]
        raise FileNotFoundError(f"{self.package} is offered by seq2exp.compat and has no files of its own")


class _Finder:
    """Before all other finders: no real module under our names, and a clear error where ours lack one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.split(".")[0] not in PACKAGES:
            return None
        offered = ", ".join(sorted(known for known in sys.modules if known.split(".")[0] in PACKAGES))
        raise ModuleNotFoundError(f"seq2exp.compat does not offer {name}; it offers {offered}", name=name)

    def find_distributions(self, context: importlib.metadata.DistributionFinder.Context) -> Iterator[_Distribution]:
        for package in PACKAGES:
            if context.name is None or context.name.lower().replace("-", "_") == package:
                yield _Distribution(package)


_finder = _Finder()
