"""How well the predictions fit the measured expression."""

from __future__ import annotations

import warnings

import pandas as pd
import torch

METRICS = ("mse", "mae", "pearson", "spearman")


def scores(genes: pd.DataFrame) -> dict[str, float]:
    """MSE, MAE, Pearson, Spearman and mask ratio over the genes that have a target.

    Args:
        genes: what ``predict_genes`` returns. Genes without a target are left out and counted in ``without_target``.

    Returns:
        the metrics (a correlation of fewer than 2 genes, or with a constant, is NaN), ``mask_ratio`` (mean share of the
        window that the mask lets through), ``genes`` and ``without_target``.
    """
    from torchmetrics import functional as F

    measured = genes[genes["target"].notna()]
    n = len(measured)
    result = dict.fromkeys(METRICS, float("nan"))
    if n:
        prediction = torch.tensor(measured["prediction"].to_numpy(dtype="float64"))
        target = torch.tensor(measured["target"].to_numpy(dtype="float64"))
        result["mse"] = float(F.mean_squared_error(prediction, target))
        result["mae"] = float(F.mean_absolute_error(prediction, target))
        if n > 1:
            with warnings.catch_warnings():  # of a constant prediction, whose correlation is NaN
                warnings.simplefilter("ignore", UserWarning)
                result["pearson"] = float(F.pearson_corrcoef(prediction, target))
                result["spearman"] = float(F.spearman_corrcoef(prediction, target))
    mask_ratio = float(measured["selected_fraction"].mean()) if n else float("nan")
    return result | {"mask_ratio": mask_ratio, "genes": n, "without_target": len(genes) - n}


def score_splits(genes: pd.DataFrame) -> pd.DataFrame:
    """One row of ``scores`` per split."""
    rows = [{"split": split} | scores(group) for split, group in genes.groupby("split", sort=False)]
    return pd.DataFrame(rows)
