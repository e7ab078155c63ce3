"""The report's tables for people: `leaderboard.md`."""

import math
from collections.abc import Iterable, Sequence

from mmrole.data.prompts import DIMENSIONS, METRICS
from mmrole.scoring.coverage import Coverage
from mmrole.scoring.measures import FACETS, OVERALL, POOLED, WEIGHTED, WEIGHTS
from mmrole.scoring.pairs import Pair
from mmrole.scoring.report import PaperRow, Report
from mmrole.scoring.reviews import SPLITS
from mmrole.scoring.statistics import LEVEL, Estimate

SPLIT_KEYS = (WEIGHTED, POOLED, *SPLITS)
"""What a leaderboard is made for, in order."""

TITLES = {
    WEIGHTED: f"Both test sets, {WEIGHTS[SPLITS[0]]} {SPLITS[0]} + {WEIGHTS[SPLITS[1]]} {SPLITS[1]} (the paper's mean)",
    POOLED: "Both test sets, mean over all samples",
} | {split: split for split in SPLITS}
"""Headings of the leaderboards."""

MANY = 30
"""With more models, text names the pairs of neighbours in rank only, and figures show the best."""

NEIGHBOURS = 5
"""Ranks apart, at most."""

COUNTS = [name for name in Coverage._fields if name not in ("split", "type", "n_per_metric", "unanswered")]
"""The counts of `Coverage`, in order."""

_MARKDOWN = {character: f"\\{character}" for character in "\\`*_[]<>|~#"} | {"&": "&amp;"}


def leaderboard_markdown(report: Report) -> str:
    """All tables of the report."""
    sections = ["# Results on MMRole-Eval", _notes(report)]
    for key in shown_splits(report):
        sections.append(_section(TITLES[key], *_dimensions(report, key)))
        sections.append(_section(f"By metric: {TITLES[key]}", *_metrics(report, key)))
    sections.append(_section("Every two models", *_pairs(report)))
    sections.append(_section("Coverage", *_coverage(report)))
    if any(model.position for model in report.models):
        sections.append(_section("Order of the answers", *_positions(report)))
    sections.append(_section("Answer length", *_lengths(report)))
    sections.append(_section("By type", *_types(report)))
    sections += [_section(f"By {facet}", *_groups(report, facet)) for facet in reversed(FACETS)]
    if other := [row for row in report.paper if row.split not in shown_splits(report)]:
        sections.append(_section("Rows of the paper for other test sets (Table 5)", *_paper(other)))
    return "\n\n".join(sections) + "\n"


def shown_splits(report: Report) -> list[str]:
    """Those of `SPLIT_KEYS` that any model has."""
    return [key for key in SPLIT_KEYS if any(key in model.scores for model in report.models)]


def shown_pairs(report: Report) -> list[Pair]:
    """Every two models; of more than `MANY` those that are at most `NEIGHBOURS` ranks apart."""
    if len(report.models) <= MANY:
        return list(report.pairs)
    rank = {model.model: place for place, model in enumerate(report.models)}
    return [pair for pair in report.pairs if abs(rank[pair.first] - rank[pair.second]) <= NEIGHBOURS]


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it; a dash for what is not known."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def estimate(value: Estimate, digits: int = 3) -> str:
    """A number and, if it has one, its interval: `0.999 [0.993, 1.004]`."""
    if math.isnan(value.low):
        return number(value.value, digits)
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def p_value(value: float) -> str:
    """A p-value as people read it."""
    return "–" if math.isnan(value) else f"{value:.2g}"


def total_coverage(coverage: Sequence[Coverage]) -> Coverage:
    """The sum over files."""
    counts = {name: sum(getattr(file, name) for file in coverage) for name in COUNTS}
    n_per_metric = {metric: sum(file.n_per_metric[metric] for file in coverage) for metric in METRICS}
    unanswered = sum(file.unanswered for file in coverage)
    return Coverage("all", "all", **counts, unanswered=unanswered, n_per_metric=n_per_metric)


def printable(text: str) -> str:
    """Text without characters that steer a terminal or that no font and no file has: they become `�`."""
    return "".join(character if character.isprintable() else "�" for character in text)


def escape_markdown(text: str) -> str:
    """Text as a line or a cell of a table shows it, whatever it holds."""
    return "".join(_MARKDOWN.get(character, character) for character in printable(" ".join(text.split())))


def _notes(report: Report) -> str:
    ranked = f"Models are ranked by {OVERALL} on {report.ranked_by}." if report.ranked_by else ""
    return (
        f"Reviews by {escape_markdown(report.judge)}. "
        "A score is the mean of the evaluated answer's score over the reference's; 1 is as good as the reference. "
        f"Brackets hold {LEVEL:.0%} bootstrap intervals: {report.draws:,} resamples of the {report.n_images} images, "
        f"seed {report.seed}. {ranked} How each number is computed: docs/evaluation.md."
    )


def _section(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A Markdown table under a heading, of escaped cells; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"## {title}", *([note] if note else []), table])


_Table = tuple[list[str], list[list[str]], str]
"""Header, rows, note."""


def _dimensions(report: Report, key: str) -> _Table:
    columns = (OVERALL, *DIMENSIONS)
    rows = []
    for model in report.models:
        if scores := model.scores.get(key):
            cells = [*(estimate(scores[name]) for name in columns), estimate(model.length[key].score)]
            rows.append([escape_markdown(model.model), str(scores[OVERALL].n), *cells])
    for row in report.paper:
        if row.split == key:
            rows.append([f"{row.model} (paper)", "–", number(row.scores[OVERALL]), *["–"] * (len(columns))])
    return ["model", "n", *columns, "length-controlled"], rows, ""


def _metrics(report: Report, key: str) -> _Table:
    rows = []
    for model in report.models:
        if scores := model.scores.get(key):
            rows.append([escape_markdown(model.model), *(estimate(scores[name]) for name in METRICS)])
    for row in report.paper:
        if row.split == key:
            rows.append([f"{row.model} (paper)", *(number(row.scores[name]) for name in METRICS)])
    return ["model", *METRICS], rows, ""


def _paper(rows: Sequence[PaperRow]) -> _Table:
    columns = (OVERALL, *METRICS)
    cells = [[row.model, row.split, *(number(row.scores[name]) for name in columns)] for row in rows]
    return ["model", "split", *columns], cells, ""


def _pairs(report: Report) -> _Table:
    header = ["models", "n", "difference", "p", "p (Holm)", "verdict"]
    rows = []
    for pair in shown_pairs(report):
        values = [p_value(pair.p_value), p_value(pair.corrected)]
        names = escape_markdown(f"{pair.first} – {pair.second}")
        rows.append([names, str(pair.difference.n), estimate(pair.difference), *values, escape_markdown(pair.verdict)])
    note = (
        f"Difference of the {OVERALL} means on the samples of both models, {WEIGHTED} where these are of both test "
        f"sets; two-sided sign-flip test by image; p (Holm) is corrected for all {len(report.pairs)} pairs."
    )
    if len(rows) < len(report.pairs):
        note += f" Shown are models at most {NEIGHBOURS} ranks apart; pairs.csv has all."
    return header, rows, note if rows else "There is only one model."


def _coverage(report: Report) -> _Table:
    header = ["model", "file", *COUNTS, "fewest per metric"]
    rows = []
    for model in report.models:
        for file in [*model.coverage, *([total_coverage(model.coverage)] if model.coverage[1:] else [])]:
            counts = [str(getattr(file, name)) for name in COUNTS]
            fewest = min(METRICS, key=file.n_per_metric.__getitem__)
            n = file.n_per_metric[fewest]
            shown = f"{n}" if n == max(file.n_per_metric.values()) else f"{n} ({fewest})"
            place = "all" if file.type == "all" else escape_markdown(f"{file.split} {file.type}")
            rows.append([escape_markdown(model.model), place, *counts, shown])
    note = "Means are taken over the scored samples, those with all eight pairs. Empty answers get no review."
    return header, rows, note


def _positions(report: Report) -> _Table:
    header = ["model", "n", "shown first", "shown second", "difference", "p", "same preference"]
    rows = []
    for model in report.models:
        if bias := model.position:
            numbers = [estimate(value) for value in (bias.first, bias.second, bias.difference)]
            values = [p_value(bias.p_value), f"{bias.agreement:.1%}"]
            rows.append([escape_markdown(model.model), str(bias.first.n), *numbers, *values])
    note = (
        f"{OVERALL} mean by the place of the evaluated answer in the prompt. Above 0, the difference favours what is "
        "read first. Same preference: reviews in which both orders prefer the same answer, or neither."
    )
    return header, rows, note


def _lengths(report: Report) -> _Table:
    header = ["model", "split", "median length ratio", "Pearson", "Spearman", OVERALL, "length-controlled"]
    rows = []
    for model in report.models:
        for key, length in model.length.items():
            numbers = [estimate(length.pearson, 2), estimate(length.spearman, 2)]
            numbers += [estimate(model.scores[key][OVERALL]), estimate(length.score)]
            rows.append([escape_markdown(model.model), key, number(length.median_ratio, 2), *numbers])
    note = (
        "Length: characters of the answer over those of the reference. Correlations are between its logarithm and the "
        f"{OVERALL} score of a sample. Length-controlled: the score at equal length on the model's own regression line."
    )
    return header, rows, note


def _types(report: Report) -> _Table:
    columns = (OVERALL, *DIMENSIONS)
    rows = []
    for model in report.models:
        for (split, kind), scores in model.types.items():
            names = [escape_markdown(name) for name in (model.model, split, kind)]
            rows.append([*names, str(scores[OVERALL].n), *(estimate(scores[name]) for name in columns)])
    return ["model", "split", "type", "n", *columns], rows, ""


def _groups(report: Report, facet: str) -> _Table:
    names = dict.fromkeys(name for model in report.models for name in model.groups[facet])
    rows = []
    for name in names:
        scores = [model.groups[facet].get(name) for model in report.models]
        n = max(score[OVERALL].n for score in scores if score)
        rows.append([escape_markdown(name), str(n), *(estimate(score[OVERALL]) if score else "–" for score in scores)])
    note = f"{OVERALL} means over all samples. n: samples of the model that has most."
    return [facet, "n", *(escape_markdown(model.model) for model in report.models)], rows, note
