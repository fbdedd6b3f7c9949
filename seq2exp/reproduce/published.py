"""The published values.

Source: Su, Yu, Zhi and Ji, "Learning to Discover Regulatory Elements for Gene Expression Prediction" (Seq2Exp), ICLR
2025, arXiv:2502.13991: Tables 4 (K562) and 5 (GM12878) for what has a standard deviation, over five seeds; Table 2 for
Seq2Exp-retrain and the mask ratios.

Nobody has compared them with the paper: they were read from a machine-written summary page of February 2025 that
transcribes Tables 1, 2, 4 and 5. In it the means of Tables 1 and 2 are those of Tables 4 and 5 wherever a row is in
both, so that every mean but those of Seq2Exp-retrain was transcribed twice. The same was found, independently of it:

- MSE and Pearson of Enformer, Caduceus and Seq2Exp-soft, both cell types, in accounts of arXiv:2602.21550 (ICLR 2026),
  which takes its baselines from this paper;
- the standard deviations of Seq2Exp-soft's MSE on K562 and of its Pearson on GM12878, in another account of that;
- MSE of Seq2Exp-soft, both cell types, in a public listing of results (wizwand.com; it also has 0.2784 for the cell
  type H1, which no table that we have seen has).

Found once only, in the transcript: every MAE and mask ratio, the other standard deviations, and all of HyenaDNA, Mamba,
Caduceus w/ signals, EPInformer, MACS3, Seq2Exp-hard and Seq2Exp-retrain. The README of the published code and its model
page give no figures. A review that speaks of a test on chrX alone, so of an earlier version, quotes other MSEs on K562
(Caduceus 0.2217, with signals 0.2411).

Not found, and None here: standard deviations of Seq2Exp-retrain, a mask ratio of Seq2Exp-soft, other cell types.
"""

from __future__ import annotations

from typing import NamedTuple

CITED = (
    "Su et al., ICLR 2025, arXiv:2502.13991 (from a transcript; a few values confirmed elsewhere, none in the paper)"
)


class Value(NamedTuple):
    mean: float
    sd: float | None = None


class Published(NamedTuple):
    """On the test genes. mask_ratio: share of the window that is selected."""

    mse: Value
    mae: Value
    pearson: Value
    mask_ratio: Value | None = None


def _values(*numbers: float, mask_ratio: float | None = None) -> Published:
    """Mean and standard deviation of MSE, MAE and Pearson, or the three means."""
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True)) if len(numbers) == 6 else [(x, None) for x in numbers]
    mse, mae, pearson = (Value(*pair) for pair in pairs)
    return Published(mse, mae, pearson, None if mask_ratio is None else Value(mask_ratio))


PUBLISHED: dict[str, dict[str, Published]] = {
    "K562": {
        "Enformer": _values(0.2920, 0.0050, 0.4056, 0.0040, 0.7961, 0.0019),
        "HyenaDNA": _values(0.2265, 0.0013, 0.3497, 0.0012, 0.8425, 0.0008),
        "Mamba": _values(0.2241, 0.0027, 0.3416, 0.0026, 0.8412, 0.0021),
        "Caduceus": _values(0.2197, 0.0038, 0.3327, 0.0070, 0.8475, 0.0014),
        "Caduceus w/ signals": _values(0.1959, 0.0036, 0.3187, 0.0036, 0.8630, 0.0008),
        "EPInformer": _values(0.2140, 0.0042, 0.3291, 0.0031, 0.8473, 0.0017),
        "MACS3": _values(0.2195, 0.0023, 0.3455, 0.0018, 0.8435, 0.0013, mask_ratio=0.1361),
        "Seq2Exp-hard": _values(0.1863, 0.0051, 0.3074, 0.0036, 0.8682, 0.0045, mask_ratio=0.0688),
        "Seq2Exp-soft": _values(0.1856, 0.0032, 0.3054, 0.0024, 0.8723, 0.0012),
        "Seq2Exp-retrain": _values(0.1979, 0.3168, 0.8623, mask_ratio=0.10),
    },
    "GM12878": {
        "Enformer": _values(0.2889, 0.0009, 0.4185, 0.0013, 0.8327, 0.0025),
        "HyenaDNA": _values(0.2217, 0.0018, 0.3562, 0.0012, 0.8729, 0.0010),
        "Mamba": _values(0.2145, 0.0021, 0.3446, 0.0022, 0.8788, 0.0011),
        "Caduceus": _values(0.2124, 0.0037, 0.3436, 0.0031, 0.8819, 0.0009),
        "Caduceus w/ signals": _values(0.1942, 0.0058, 0.3269, 0.0048, 0.8928, 0.0017),
        "EPInformer": _values(0.1975, 0.0031, 0.3246, 0.0025, 0.8907, 0.0011),
        "MACS3": _values(0.2340, 0.0028, 0.3654, 0.0017, 0.8634, 0.0020, mask_ratio=0.1595),
        "Seq2Exp-hard": _values(0.1890, 0.0045, 0.3199, 0.0040, 0.8916, 0.0027, mask_ratio=0.0632),
        "Seq2Exp-soft": _values(0.1873, 0.0044, 0.3137, 0.0028, 0.8951, 0.0038),
        "Seq2Exp-retrain": _values(0.1887, 0.3177, 0.8941, mask_ratio=0.10),
    },
}
