"""`seq2exp profile`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Device, echo

if TYPE_CHECKING:
    from seq2exp.profiling import StepSettings


def profile(
    length: Annotated[list[str] | None, typer.Option(help="bases; several: 20000,200000; default: 200000")] = None,
    batch: Annotated[int, typer.Option(min=1, help="windows a step")] = 1,
    mode: Annotated[str, typer.Option(help="preset of the model: soft, hard, top-fraction or discovery")] = "soft",
    d_model: Annotated[int, typer.Option(min=1, help="width of the model")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="of the generator, and of the predictor")] = 4,
    recompute: Annotated[str, typer.Option(help="none, or layer: recompute each layer in the backward")] = "none",
    precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    device: Device = "auto",
    store: Annotated[Path | None, typer.Option(help="read windows from this store; default: random ones")] = None,
    compare: Annotated[str | None, typer.Option(help="published: the composed published form beside ours")] = None,
    max_length: Annotated[bool, typer.Option("--max-length", help="find the longest window for the batch")] = False,
    max_batch: Annotated[bool, typer.Option("--max-batch", help="find the largest batch for each length")] = False,
    budget: Annotated[str | None, typer.Option(help="memory to use, as 10GB; default: all that is free")] = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("seq2exp-profile"),
) -> None:
    """Time and memory of a training step by part, or the largest window or batch that fits into the memory.

    Prints tables and writes profile.json, profile.csv and memory.png; on a GPU also memory snapshots for
    pytorch.org/memory_viz. A step runs in a process of its own: one that runs out of memory is a line in the report.
    On the CPU the budget is for the resident set. Columns: "peak", the most that torch has allocated while a part runs;
    "kept", allocated by the part and alive when the backward begins; "resident", the resident set of the process.
    """
    from seq2exp.errors import UserError
    from seq2exp.profiling.isolate import memory_size

    if compare not in (None, "published"):
        raise UserError(f"--compare {compare!r} is unknown: it can be published")
    if compare and mode not in ("soft", "hard"):
        raise UserError(f"--compare published: the published form has --mode soft and hard, not {mode}")
    fields = {"d_model": d_model, "generator_layers": layers, "predictor_layers": layers, "recompute": recompute}
    sizes = _settings(_lengths(length), batch, mode, fields, precision, device, store)
    forms = ["ours", *([compare] if compare else [])]
    if not (max_length or max_batch):
        _profile(sizes, forms, memory_size(budget), out)
    else:
        _search(sizes, forms, memory_size(budget), out, max_length, max_batch)


def _lengths(given: list[str] | None) -> list[int]:
    from seq2exp.errors import UserError

    texts = [text for several in given or ["200000"] for text in several.split(",")]
    try:
        lengths = [int(text.replace("_", "")) for text in texts]
    except ValueError:
        lengths = [0]
    if min(lengths) < 1:
        raise UserError(f"--length {','.join(texts)}: give numbers of bases above 0, as 20000,200000")
    return lengths


def _settings(
    lengths: list[int], batch: int, mode: str, fields: dict[str, Any], precision: str, device: str, store: Path | None
) -> list[StepSettings]:
    """One for each length. A store says how many tracks and gene features there are."""
    from seq2exp.data_tools import GeneWindows
    from seq2exp.errors import UserError
    from seq2exp.inference.windows import resolve_device
    from seq2exp.profiling import StepSettings, with_length
    from seq2exp.training.config import model_config

    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision!r} is unknown: one of fp32, bf16")
    fields = {"preset": mode.replace("-", "_"), "center": 1} | fields
    if store is not None:
        windows = GeneWindows(store, max(lengths))
        tracks = len(windows.signal_names)
        fields |= {"tracks": tracks, "gene_features": len(windows.store.feature_names)}
        if tracks != 3:  # the defaults are for three; what they are costs nothing
            fields |= {"signal_weights": [1 / tracks] * tracks, "signal_betas": [1.0] * tracks}
    settings = StepSettings(model_config(fields), batch, precision, resolve_device(device).type, store)
    return [with_length(settings, length) for length in lengths]


def _profile(sizes: list[StepSettings], forms: list[Any], budget: int | None, out: Path) -> None:
    """Measure every size in every form; print as it goes, then write."""
    from seq2exp.profiling.isolate import check_budget
    from seq2exp.profiling.plot import plot_memory
    from seq2exp.profiling.report import profile_step, remarks, step_table, write_report

    budget = check_budget(budget, sizes[0].device)
    out.mkdir(parents=True, exist_ok=True)
    profiles = []
    for size in sizes:
        profiles.append([profile_step(replace(size, form=form), budget, out) for form in forms])
        _print(step_table(profiles[-1]))
        for profiled in profiles[-1]:
            echo(remarks(profiled))
    write_report(out, budget, [profiled for size in profiles for profiled in size], [])
    files = ["profile.json", "profile.csv"]
    if any(profiled.cost for size in profiles for profiled in size):
        plot_memory(out / "memory.png", profiles)
        files.append("memory.png")
    echo(f"\n{out}: {', '.join(files)}")


def _search(
    sizes: list[StepSettings], forms: list[Any], budget: int | None, out: Path, max_length: bool, max_batch: bool
) -> None:
    """Find the largest; print each answer as it is known, then write."""
    from seq2exp.profiling import search_batch, search_length
    from seq2exp.profiling.isolate import check_budget
    from seq2exp.profiling.report import search_table, write_report

    budget = check_budget(budget, sizes[0].device)
    searches = []
    tasks = [(search_length, sizes[0])] * max_length + [(search_batch, size) for size in sizes] * max_batch
    for search, size in tasks:
        for form in forms:
            searches.append(search(replace(size, form=form), budget))
            _print(search_table(searches[-1]))
            echo(searches[-1].sentence())
    write_report(out, budget, [], searches)
    echo(f"\n{out}: profile.json, search.csv")


def _print(table: Any) -> None:
    from rich.console import Console

    Console(width=160).print(table)
