"""The agreement of two sets of reviews as tables, for people and for programs."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from mmrole.scoring.agreement import Agreement
from mmrole.scoring.statistics import Estimate

_TITLES = {
    "score_mae": "score MAE",
    "score_difference": "score difference",
    "ratio_mae": "ratio MAE",
    "ratio_difference": "ratio difference",
    "ratio_pearson": "ratio Pearson",
    "ratio_spearman": "ratio Spearman",
    "score_pearson": "score Pearson",
    "score_spearman": "score Spearman",
}


def agreement_text(rows: Sequence[Agreement]) -> str:
    """The agreement as an aligned table; below each number its interval."""
    lines = [["", "n", *_TITLES.values()]]
    for row in rows:
        estimates = [getattr(row, name) for name in _TITLES]
        lines.append([row.name, f"{row.n:,}", *(_shown(estimate.value) for estimate in estimates)])
        lines.append(["", "", *(_interval(estimate) for estimate in estimates)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def harsher_text(rows: Sequence[Agreement], first: str, second: str) -> str:
    """Who is harsher, line by line: the judge whose ratios are lower, and by how much.

    Args:
        rows: the agreement.
        first: what the judge of the first set is called.
        second: that of the second.
    """
    width = max(len(row.name) for row in rows)
    lines = ["Who is harsher: whose ratios of evaluated answer to reference are lower, and by how much"]
    for row in rows:
        value, low, high, n = row.ratio_difference
        if row.harsher == "first":
            said = f"{first}, by {_number(Estimate(-value, -high, -low, n))}"
        elif row.harsher == "second":
            said = f"{second}, by {_number(row.ratio_difference)}"
        else:
            said = f"not decided: first minus second {_number(row.ratio_difference)}"
        lines.append(f"  {row.name.ljust(width)}  {said}")
    return "\n".join(lines)


def agreement_csv(rows: Sequence[Agreement]) -> str:
    """The agreement as CSV: each number, then the ends of its interval; an empty field where there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["reviews", "n", *(f"{name}{end}" for name in _TITLES for end in ("", "_low", "_high")), "harsher"])
    for row in rows:
        numbers = [number for name in _TITLES for number in getattr(row, name)[:3]]
        cells = ["" if np.isnan(number) else round(number, 6) for number in numbers]
        writer.writerow([row.name, row.n, *cells, row.harsher])
    return file.getvalue()


def _shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return "" if np.isnan(estimate.low) else f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def _number(estimate: Estimate) -> str:
    return f"{_shown(estimate.value)} {_interval(estimate)}".rstrip()
