"""The `seq2exp` program. A mistake of the user ends with one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import sys

import typer

from seq2exp.errors import UserError

from .bench import bench
from .common import echo
from .convert import convert
from .demo import demo
from .discover import discover
from .evaluate import evaluate
from .predict import predict
from .profile import profile
from .reproduce import reproduce
from .study import study
from .train import train

app = typer.Typer(
    help="Gene expression and its regulatory elements from DNA and epigenomic signals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
for command in (train, evaluate, predict, discover, convert, profile, bench, study, reproduce):
    app.command()(command)


@app.command(
    "data",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def data(context: typer.Context) -> None:
    """Simulate input, build a store, say what a store holds."""
    from .data import app as data_app  # reads with numpy, pandas, zarr: loaded when used, so that --help is quick

    code = data_app(context.args, prog_name="seq2exp data", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


@app.command()
def info() -> None:
    """Versions, backends with the reason why one is unavailable, compiled architectures, devices."""
    from seq2exp.info import main as show

    show()


# Mistakes on the command line itself (click's exception, wherever typer keeps it).
UsageMistake: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit: 0 done, 2 a mistake of the user, 130 interrupted."""
    # torch reads this at its first allocation; at 200 kb most of a CPU step is otherwise spent on page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which counts memory, says when it starts
    try:
        code = app(arguments, prog_name="seq2exp", standalone_mode=False)
    except UserError as error:
        _stop(str(error))
    except UsageMistake as error:
        _stop(error.format_message())  # type: ignore[attr-defined]
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (KeyboardInterrupt, typer.Abort):
        echo("interrupted", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(sentence: str) -> None:
    if sentence:  # empty without arguments: the help has been printed instead
        echo(f"seq2exp: {' '.join(sentence.split())}", err=True)
    sys.exit(2)
