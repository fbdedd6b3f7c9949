"""`python -m seq2exp.compat script.py args...`: runs it as `python script.py args...` does, with `install` done."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from seq2exp.compat.aliases import install
from seq2exp.errors import UserError

_USAGE = "usage: python -m seq2exp.compat script.py [arguments] | -m module [arguments]"


def main() -> None:
    arguments = sys.argv[1:]
    as_module = arguments[:1] == ["-m"]
    if as_module:
        del arguments[0]
    if not arguments or arguments[0].startswith("-"):
        print(_USAGE, file=sys.stderr)
        raise SystemExit(2)
    target = arguments[0]
    if not as_module and not Path(target).exists():
        print(f"seq2exp.compat: {target} is not a file; {_USAGE}", file=sys.stderr)
        raise SystemExit(2)
    try:
        install()
    except UserError as error:
        print(f"seq2exp.compat: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.argv[:] = arguments
    # `-m` of the interpreter has put the working folder first; a script has its own folder there.
    if as_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
        return
    if not Path(target).is_dir():
        sys.path[0] = str(Path(target).resolve().parent)
    runpy.run_path(target, run_name="__main__")


main()
