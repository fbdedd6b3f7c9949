"""`python -m seq2exp.compat script.py args...`: runs it as `python script.py args...` does, with `install` done."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from seq2exp.compat import children
from seq2exp.compat.aliases import install
from seq2exp.errors import UserError

USAGE = "usage: python -m seq2exp.compat script.py [arguments] | -m module [arguments]"


def main() -> None:
    arguments = sys.argv[1:]
    as_module = arguments[:1] == ["-m"]
    if as_module:
        del arguments[0]
    if not arguments or arguments[0].startswith("-"):
        _refuse(USAGE)
    target = arguments[0]
    if not as_module and not Path(target).is_file():
        _refuse(f"seq2exp.compat: there is no file {target}; {USAGE}")
    try:
        install()
    except UserError as error:
        _refuse(f"seq2exp.compat: {error}")
    sys.argv[:] = arguments
    children.follow()
    try:
        if as_module:
            _run_module(target)
        else:
            _run_script(target)
    except Exception as error:
        error = error.with_traceback(_of_the_program(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None


def _run_script(path: str) -> None:
    absolute = str(Path(path).absolute())
    if not sys.flags.safe_path:  # the interpreter has put the working folder there, for -m
        sys.path[0] = str(Path(path).resolve().parent)
    loader = SourceFileLoader("__main__", absolute)
    _execute(compile(Path(path).read_bytes(), absolute, "exec"), __file__=absolute, __loader__=loader)


def _run_module(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:  # a package
        spec = importlib.util.find_spec(f"{name}.__main__")
    code = None if spec is None or spec.loader is None else spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    if spec is None or code is None:
        _refuse(f"seq2exp.compat: there is no module {name} that can be run; {USAGE}")
    sys.argv[0] = spec.origin or name
    _execute(code, __file__=spec.origin, __loader__=spec.loader, __spec__=spec, __package__=spec.parent)


def _execute(code: CodeType, **attributes: Any) -> None:
    """In a fresh `__main__`, which stays in place: exit handlers and pickles look for it."""
    module = ModuleType("__main__")
    vars(module).update(attributes)
    sys.modules["__main__"] = module
    exec(code, vars(module))


def _of_the_program(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames that lead to the program."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
