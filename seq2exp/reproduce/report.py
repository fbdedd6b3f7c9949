"""table.md and table.csv: ours beside the published values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from seq2exp.data_tools import open_store
from seq2exp.files import atomic

from .job import Job
from .plan import TableRun, changed_settings
from .published import CITED, PUBLISHED, Published, Value
from .rows import ROWS
from .store import unlike_the_paper

SCORES = {"mse": "MSE", "mae": "MAE", "pearson": "Pearson", "mask_ratio": "mask ratio"}


def table_of(job: Job, rows: Sequence[str], cell_type: str, seeds: Sequence[int]) -> pd.DataFrame:
    """A row for each row of the table: seeds done of those asked for; mean and standard deviation over them, and the
    published ones, of every score (NaN where there is none)."""
    table = []
    for row in rows:
        asked = [run for run in job.runs if run.row == row and run.seed in seeds]
        done = [job.results[run.folder] for run in asked if run.folder in job.results]
        line: dict[str, Any] = {"row": row, "seeds": len(done), "seeds_asked": len(asked)}
        published = PUBLISHED.get(cell_type, {}).get(row)
        for score in SCORES:
            values = np.array([result[score] for result in done if result[score] is not None], dtype=float)
            theirs = _published(published, score)
            line |= {
                score: values.mean() if len(values) else np.nan,
                f"{score}_sd": values.std(ddof=1) if len(values) > 1 else np.nan,
                f"{score}_published": theirs.mean,
                f"{score}_published_sd": np.nan if theirs.sd is None else theirs.sd,
            }
        table.append(line | {"note": ROWS[row].note})
    return pd.DataFrame(table)


def write_table(job: Job, title: str, rows: Sequence[str], cell_type: str, seeds: Sequence[int]) -> str:
    """Write table.csv and table.md into the job's folder; the text of the latter."""
    table = table_of(job, rows, cell_type, seeds)
    with atomic(job.out / "table.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    asked = [run for run in job.runs if run.row in rows and run.seed in seeds]
    text = "\n\n".join(
        [
            f"# Seq2Exp, {title}, {cell_type}",
            f"Ours: test genes, mean ± standard deviation over the seeds that are done. Paper: {CITED}"
            + ("." if cell_type in PUBLISHED else f", which has nothing for {cell_type}."),
            as_markdown(table),
            _differences(asked),
            _notes(rows),
            *_failures(job, asked),
        ]
    )
    with atomic(job.out / "table.md") as partial:
        partial.write_text(text + "\n")
    return text


def as_markdown(table: pd.DataFrame) -> str:
    """The table, its columns aligned."""
    lines = [["", "seeds", *(part for title in SCORES.values() for part in (title, "paper"))]]
    for line in table.to_dict("records"):
        cells = [str(line["row"]), f"{line['seeds']} of {line['seeds_asked']}"]
        for score in SCORES:
            for which in (score, f"{score}_published"):
                cells.append(_number(line[which], line[f"{which}_sd"], percent=score == "mask_ratio"))
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |" for cells in lines
    )


def _number(mean: float, sd: float, *, percent: bool) -> str:
    if np.isnan(mean):
        return "-"
    mean, sd, digits, unit = (100 * mean, 100 * sd, 2, " %") if percent else (mean, sd, 4, "")
    spread = "" if np.isnan(sd) else f" ± {sd:.{digits}f}"
    return f"{mean:.{digits}f}{spread}{unit}"


def _published(published: Published | None, score: str) -> Value:
    value: Value | None = getattr(published, score, None)
    return value or Value(float("nan"))


def _differences(runs: Sequence[TableRun]) -> str:
    """In what the runs are not the paper's: data and settings, each said once."""
    found = unlike_the_paper(open_store(runs[0].store))
    lines: dict[str, list[str]] = {}
    for run in {run.row: run for run in runs}.values():
        for line in changed_settings(run.row, run.training):
            lines.setdefault(line, []).append(run.row)
    every = len({run.row for run in runs})
    found += [line if len(rows) == every else f"{line} ({', '.join(rows)})" for line, rows in lines.items()]
    if not found:
        return "Settings and split are the paper's."
    return "Not as in the paper, so that these figures do not compare with it:\n\n" + "\n".join(
        f"- {line}" for line in found
    )


def _notes(rows: Sequence[str]) -> str:
    return "\n".join(f"- **{row}**: {ROWS[row].note}" for row in rows)


def _failures(job: Job, runs: Sequence[TableRun]) -> list[str]:
    lines = [f"- {run.title}: {job.failed[run.folder]}" for run in runs if run.folder in job.failed]
    return ["Failed:\n\n" + "\n".join(lines)] if lines else []


def as_list(job: Job, runs: Sequence[TableRun]) -> str:
    """What is to be run: a line for each row, with what it needs."""
    lines = [["row", "seeds to do", "done", "steps", "batch", "rate", "window", "parameters", "needs"]]
    for row in dict.fromkeys(run.row for run in runs):
        of_row = [run for run in runs if run.row == row]
        settings, trial = of_row[0].training, job.trial(of_row[0])
        to_do = [str(run.seed) for run in of_row if run.folder not in job.results]
        length = settings["model"].get("length", 200_000)
        cells = [row, " ".join(to_do) or "-", str(len(of_row) - len(to_do)), f"{settings['steps']:,}"]
        cells += [str(settings["data"]["batch_size"]), f"{settings['optimizer']['lr']:g}", f"{length:,}"]
        cells += ["-" if trial.lack else f"{trial.parameters:,}", ROWS[row].needs or "-"]
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in lines]
    lacks = dict.fromkeys(job.trial(run).lack for run in runs)
    return "\n".join([*table, *(f"cannot run: {lack}" for lack in lacks if lack)])
