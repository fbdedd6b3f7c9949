"""What a run writes down: metrics.csv (the same bytes for the same run, resumed or not) and TensorBoard scalars."""

from __future__ import annotations

import csv
from pathlib import Path

COLUMNS = (
    "step", "lr", "kl_weight", "loss", "train_mse", "kl", "selected_fraction", "gradient_norm",
    "valid_mse", "valid_pearson",
)  # fmt: skip


class MetricsLog:
    """Appends one row per logged step; opening it again after a kill drops the rows past the checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.csv"
        kept = []
        if step and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]  # None: cut off in mid-row
            kept = [row for row in rows if int(row["step"]) <= step]
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        partial.replace(self.path)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float], **board_only: float) -> None:
        """One row; ``board_only`` (times) goes to TensorBoard alone."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow({"step": step, **values})
        for name, value in (values | board_only).items():
            group = "valid/" + name.removeprefix("valid_") if name.startswith("valid_") else "train/" + name
            self.board.add_scalar(group, value, step)

    def close(self) -> None:
        self.board.close()
