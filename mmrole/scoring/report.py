"""Everything that the report shows, computed from the reviews of any number of models: numbers only, no layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mmrole.scoring.coverage import Coverage, measure_coverage
from mmrole.scoring.measures import (
    OVERALL,
    WEIGHTED,
    WEIGHTS,
    Length,
    PositionBias,
    Scores,
    group_scores,
    image_estimates,
    measure_length,
    measure_position_bias,
    score_histogram,
    split_scores,
    type_scores,
    weighted_estimates,
)
from mmrole.scoring.reviews import SPLITS, ModelReviews
from mmrole.scoring.statistics import (
    DRAWS,
    Bootstrap,
    Estimate,
    holm,
    number_clusters,
    sign_flip_test,
)

SIGNIFICANCE = 0.05
"""A corrected p-value below it tells two models apart."""

FLIPS_PER_PAIR = 100
"""Least flips of each test by the number of pairs, so that the correction leaves p-values well below `SIGNIFICANCE`."""


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


class Pair(NamedTuple):
    """Two models on the complete samples of both; if they share both splits, by the `measures.WEIGHTED` mean."""

    first: str
    """The model with the higher mean."""
    second: str
    difference: Estimate
    """Of the overall score, first - second, and the number of samples."""
    p_value: float
    """Of the hypothesis that they are the same (`statistics.sign_flip_test`); NaN without a common sample."""
    corrected: float
    """The p-value by Holm's correction for all pairs."""

    @property
    def verdict(self) -> str:
        """In plain words."""
        if np.isnan(self.p_value):
            return "no sample in common"
        return f"{self.first} is better" if self.corrected < SIGNIFICANCE else "not distinguishable"


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
    """

    models: tuple[ModelReport, ...]
    ranked_by: str | None
    pairs: tuple[Pair, ...]
    paper: tuple[PaperRow, ...]
    n_images: int
    draws: int
    seed: int


def make_report(
    models: Sequence[ModelReviews], paper: Sequence[PaperRow] = (), *, draws: int = DRAWS, seed: int = 1234
) -> Report:
    """Computes everything.

    Args:
        models: at least one, of distinct names, each with at least one sample.
        paper: rows to show as a reference.
        draws: of the bootstrap, and flips of the tests (or `FLIPS_PER_PAIR` for each pair, if that is more).
        seed: of the draws.
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
    return Report(
        tuple(reports), ranked_by, _pairs(ranked, of_model, bootstrap, seed), tuple(paper), n_images, draws, seed
    )


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


def _pairs(
    models: Sequence[ModelReviews], clusters: Mapping[str, np.ndarray], bootstrap: Bootstrap, seed: int
) -> tuple[Pair, ...]:
    chosen = list(combinations(models, 2))
    # A p-value is not below 1 / (flips + 1), nor a corrected one below that times the number of pairs.
    flips = max(len(bootstrap.counts), FLIPS_PER_PAIR * len(chosen))
    pairs = [_compare(one, other, clusters[one.model], bootstrap, flips, seed) for one, other in chosen]
    corrected = holm([pair.p_value for pair in pairs])
    return tuple(pair._replace(corrected=value) for pair, value in zip(pairs, corrected, strict=True))


def _compare(
    one: ModelReviews, other: ModelReviews, clusters: np.ndarray, bootstrap: Bootstrap, flips: int, seed: int
) -> Pair:
    """The pair, not yet corrected. `clusters` are those of the first model's samples."""
    theirs = dict(zip(other.keys, other.overall, strict=True))
    differences = one.overall - np.array([theirs.get(key, np.nan) for key in one.keys])
    split = one.columns["split"]
    common = {name: int((~np.isnan(differences[split == name])).sum()) for name in SPLITS}
    weights = np.ones(len(differences))
    if all(common.values()):
        (difference,) = weighted_estimates(differences[:, None], split, clusters, bootstrap)
        for name in SPLITS:
            weights[split == name] = WEIGHTS[name] / common[name]
    else:
        (difference,) = image_estimates(differences[:, None], clusters, bootstrap)
    p_value = sign_flip_test(weights * differences, clusters, flips, seed)
    first, second = one.model, other.model
    if difference.value < 0:
        first, second = second, first
        difference = Estimate(-difference.value, -difference.high, -difference.low, difference.n)
    return Pair(first, second, difference, p_value, p_value)
