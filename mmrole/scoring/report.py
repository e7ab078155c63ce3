"""Everything that the report shows, computed from the reviews of any number of models: numbers only, no layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmrole.scoring.coverage import Coverage, measure_coverage
from mmrole.scoring.judges import PUBLISHED
from mmrole.scoring.measures import (
    OVERALL,
    WEIGHTED,
    Length,
    PositionBias,
    Scores,
    group_scores,
    measure_length,
    measure_position_bias,
    score_histogram,
    split_scores,
    type_scores,
)
from mmrole.scoring.pairs import Pair, compare_pairs
from mmrole.scoring.reviews import SPLITS, ModelReviews
from mmrole.scoring.statistics import DRAWS, Bootstrap, number_clusters


@dataclass(frozen=True, eq=False)
class ModelReport:
    """All numbers of one model.

    Attributes:
        model: the name.
        scores: means by split, In-Test or Out-Test; a model with both also has `measures.WEIGHTED` (the paper's mean of
            both) and `measures.POOLED` (the mean over all samples), before them.
        types: means by (split, type).
        groups: means by facet (`measures.FACETS`) and value.
        coverage: of each file.
        length: by the keys of `scores`.
        position: None without swapped reviews.
        histogram: int64 [8, 11, 2]: how often each metric has the score 0 … 10, of the answer and of the reference.
    """

    model: str
    scores: dict[str, Scores]
    types: dict[tuple[str, str], Scores]
    groups: dict[str, dict[str, Scores]]
    coverage: tuple[Coverage, ...]
    length: dict[str, Length]
    position: PositionBias | None
    histogram: np.ndarray


class PaperRow(NamedTuple):
    """A row of the paper's Table 5."""

    model: str
    split: str
    """In-Test, Out-Test, or `WEIGHTED` for the rows of both."""
    scores: dict[str, float]
    """By "Overall" and metric."""


@dataclass(frozen=True, eq=False)
class Report:
    """What the report shows.

    Attributes:
        models: the best first, by the overall mean (`ranked_by`).
        ranked_by: the key of `ModelReport.scores` that ranks: of `WEIGHTED`, In-Test and Out-Test the first one that
            all models have; None if there is none, and each is ranked by what it has.
        pairs: every two models.
        paper: the rows of the paper's Table 5; empty if switched off.
        n_images: distinct images, the clusters of the bootstrap.
        draws: of the bootstrap.
        seed: of the draws.
        judge: what the judge is called.
    """

    models: tuple[ModelReport, ...]
    ranked_by: str | None
    pairs: tuple[Pair, ...]
    paper: tuple[PaperRow, ...]
    n_images: int
    draws: int
    seed: int
    judge: str


def make_report(
    models: Sequence[ModelReviews],
    paper: Sequence[PaperRow] = (),
    *,
    draws: int = DRAWS,
    seed: int = 1234,
    judge: str = PUBLISHED,
) -> Report:
    """Computes everything.

    Args:
        models: at least one, of distinct names, each with at least one sample.
        paper: rows to show as a reference.
        draws: of the bootstrap, and flips of the tests (or `pairs.FLIPS_PER_PAIR` for each pair, if that is more).
        seed: of the draws.
        judge: what the judge is called.
    """
    clusters, n_images = number_clusters([image for model in models for image in model.columns["image"]])
    bootstrap = Bootstrap.make(n_images, draws, seed)
    ends = np.cumsum([len(model.records) for model in models])[:-1]
    of_model = {model.model: own for model, own in zip(models, np.split(clusters, ends), strict=True)}
    reports = [_model_report(model, of_model[model.model], bootstrap, seed) for model in models]
    ranked_by = next((key for key in (WEIGHTED, *SPLITS) if all(key in report.scores for report in reports)), None)
    reports.sort(key=lambda report: _rank(report, ranked_by))
    order = {report.model: place for place, report in enumerate(reports)}
    ranked = sorted(models, key=lambda model: order[model.model])
    pairs = compare_pairs(ranked, of_model, bootstrap, seed)
    return Report(tuple(reports), ranked_by, pairs, tuple(paper), n_images, draws, seed, judge)


def _model_report(model: ModelReviews, clusters: np.ndarray, bootstrap: Bootstrap, seed: int) -> ModelReport:
    return ModelReport(
        model.model,
        scores=split_scores(model, clusters, bootstrap),
        types=type_scores(model, clusters, bootstrap),
        groups=group_scores(model, clusters, bootstrap),
        coverage=tuple(measure_coverage(file.split, file) for file in model.files),
        length=measure_length(model, clusters, bootstrap),
        position=measure_position_bias(model, clusters, bootstrap, seed),
        histogram=score_histogram(model),
    )


def _rank(report: ModelReport, ranked_by: str | None) -> tuple[float, str]:
    """A key to sort by: high scores first, models without any last."""
    score = report.scores[ranked_by or next(iter(report.scores))][OVERALL].value
    return (np.inf if np.isnan(score) else -score), report.model
