"""The report's tables for spreadsheets and programs: leaderboard, scores, distributions and pairs, as CSV.

The last column of each names the judge.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from mmrole.base.tables import spreadsheet_text
from mmrole.data.prompts import METRICS
from mmrole.scoring.judges import PUBLISHED
from mmrole.scoring.measures import MEASURES, OVERALL
from mmrole.scoring.report import ModelReport, Report
from mmrole.scoring.reviews import SPLITS
from mmrole.scoring.tables import COUNTS, SPLIT_KEYS, total_coverage


def leaderboard_csv(report: Report) -> str:
    """One row for each model and split, and for each of the paper's rows, with plain numbers.

    A mean is followed by the ends of its interval; what is not known is empty. Columns of coverage count the files of
    the row's split.
    """
    header = ["source", "model", "split", "n"]
    header += [f"{name}{end}" for name in MEASURES for end in ("", " low", " high")]
    header += [f"length-controlled {OVERALL}{end}" for end in ("", " low", " high")]
    header += ["median length ratio", "length Pearson", "length Spearman"]
    header += COUNTS
    header += [f"n {metric}" for metric in METRICS]
    rows = [_csv_row(model, key) for key in SPLIT_KEYS for model in report.models if key in model.scores]
    judges = [report.judge] * len(rows) + [PUBLISHED] * len(report.paper)
    for row in report.paper:
        scores = [number for name in MEASURES for number in (row.scores.get(name), None, None)]
        rows.append(["paper", row.model, row.split, None, *scores])
    filled = ([*row, *[None] * (len(header) - len(row)), judge] for row, judge in zip(rows, judges, strict=True))
    return _csv([*header, "judge"], filled)


def scores_csv(report: Report) -> str:
    """All means in long form: a row for each model, group of samples and measure.

    The column `by` tells what `group` is a value of: split (or mean of splits), type (`In-Test comment`), character,
    series, category, language.
    """
    rows = []
    for model in report.models:
        types = {f"{split} {kind}": scores for (split, kind), scores in model.types.items()}
        for facet, groups in {"split": model.scores, "type": types, **model.groups}.items():
            for group, scores in groups.items():
                for measure, (*numbers, n) in scores.items():
                    rows.append([model.model, facet, group, measure, n, *map(_plain, numbers), report.judge])
    return _csv(["model", "by", "group", "measure", "n", "mean", "low", "high", "judge"], rows)


def distributions_csv(report: Report) -> str:
    """How many reviews give each score from 0 to 10, rounded: a row for each model, metric and score.

    The columns `answer` and `reference` count the scores of the evaluated answers and of the references.
    """
    rows = [
        [model.model, metric, score, *pair, report.judge]
        for model in report.models
        for metric, counts in zip(METRICS, model.histogram.tolist(), strict=True)
        for score, pair in enumerate(counts)
    ]
    return _csv(["model", "metric", "score", "answer", "reference", "judge"], rows)


def pairs_csv(report: Report) -> str:
    """Every two models, with the difference of their means, its interval, and the p-values of `pairs.Pair`."""
    rows = [
        [
            *(pair.first, pair.second, pair.difference.n),
            *map(_plain, (*pair.difference[:3], *pair[3:])),
            *(pair.verdict, report.judge),
        ]
        for pair in report.pairs
    ]
    header = ["first", "second", "n", "difference", "low", "high", "p", "p (Holm)", "verdict", "judge"]
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV; None is an empty field, and no text a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return file.getvalue()


def _csv_row(model: ModelReport, key: str) -> list[str | float | None]:
    scores = model.scores[key]
    row: list[str | float | None] = ["reviews", model.model, key, scores[OVERALL].n]
    row += [_plain(number) for name in MEASURES for number in scores[name][:3]]
    length = model.length[key]
    row += [_plain(number) for number in length.score[:3]]
    row += [_plain(number) for number in (length.median_ratio, length.pearson.value, length.spearman.value)]
    covered = total_coverage([file for file in model.coverage if key not in SPLITS or file.split == key])
    return [*row, *(getattr(covered, name) for name in COUNTS), *covered.n_per_metric.values()]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
