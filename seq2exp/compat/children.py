"""Processes that a program starts by `multiprocessing`'s spawn or forkserver find our modules too.

Such a child runs the program's file again, as `__mp_main__`. It is told to run this module instead, which does so after
`install`.
"""

from __future__ import annotations

import os
import runpy
from multiprocessing import spawn
from typing import Any

from seq2exp.compat.aliases import install

SCRIPT = "SEQ2EXP_COMPAT_SCRIPT"  # in the child's environment: the file to run
MODULE = "SEQ2EXP_COMPAT_MODULE"  # or the module


def follow() -> None:
    """From now on children of this process are told so."""
    preparation = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data = preparation(name)
        for key, variable in (("init_main_from_path", SCRIPT), ("init_main_from_name", MODULE)):
            if key in data:
                os.environ[variable] = data.pop(key)
                data["init_main_from_name"] = __name__
                break
        return data

    spawn.get_preparation_data = get_preparation_data


if __name__ == "__mp_main__":
    install()
    follow()
    if SCRIPT in os.environ:
        globals().update(runpy.run_path(os.environ[SCRIPT], run_name="__mp_main__"))
    else:
        globals().update(runpy.run_module(os.environ[MODULE], run_name="__mp_main__", alter_sys=True))
