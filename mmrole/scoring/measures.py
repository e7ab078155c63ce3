"""The numbers of one model: means by metric, dimension, split, type and group; answer length; order of the answers."""

from typing import NamedTuple

import numpy as np

from mmrole.data.prompts import DIMENSIONS, METRICS
from mmrole.scoring.reviews import IN_TEST, OUT_TEST, SPLITS, ModelReviews, pair_ratios
from mmrole.scoring.significance import sign_flip_test
from mmrole.scoring.statistics import (
    Bootstrap,
    Estimate,
    cluster_sums,
    interval,
    length_controlled,
    mean_estimates,
    pearson,
    spearman,
)

POOLED = "all samples"
"""The mean over all samples of both splits."""

WEIGHTED = "0.75 / 0.25"
"""The mean of the two splits with `WEIGHTS`."""

WEIGHTS = {IN_TEST: 0.75, OUT_TEST: 0.25}
"""Of the splits in the paper's rows for both (Table 5)."""

OVERALL = "Overall"
MEASURES = (OVERALL, *DIMENSIONS, *METRICS)
"""What a mean is given for: all eight metrics together, each dimension, each metric."""

FACETS = ("character", "series", "category", "language")
"""What samples are grouped by, besides split and type."""

MIN_IMAGES = 5
"""Samples of fewer images get no interval: to resample so few tells nothing."""

Scores = dict[str, Estimate]
"""An estimate for each of `MEASURES`."""


class Length(NamedTuple):
    """How scores and answer length go together. Length is that of the answer over the reference's, in characters."""

    median_ratio: float
    pearson: Estimate
    """Of the overall score and the logarithm of the length ratio."""
    spearman: Estimate
    score: Estimate
    """The length-controlled overall score (`statistics.length_controlled`)."""


class PositionBias(NamedTuple):
    """What showing the evaluated answer first does to its overall score, on samples with all pairs in both orders."""

    first: Estimate
    """Mean when the evaluated answer is shown first, as published."""
    second: Estimate
    """Mean when it is shown second."""
    difference: Estimate
    """first - second: above 0, the judge favours what it reads first."""
    p_value: float
    """Of no difference (`significance.sign_flip_test`)."""
    agreement: float
    """Share of the metric reviews in which both orders prefer the same answer, or neither."""


def measure_values(model: ModelReviews) -> np.ndarray:
    """float64 [n, 12]: `MEASURES` of every sample, NaN unless it has all eight ratios."""
    ratios = np.where(model.complete[:, None], model.ratios, np.nan)
    dimensions = [ratios[:, [METRICS.index(name) for name in names]].mean(axis=1) for names in DIMENSIONS.values()]
    return np.column_stack([ratios.mean(axis=1), *dimensions, ratios])


def split_scores(model: ModelReviews, clusters: np.ndarray, bootstrap: Bootstrap) -> dict[str, Scores]:
    """Means by split; for a model with both splits also `WEIGHTED` and `POOLED`, in that order, before them."""
    values, split = measure_values(model), model.columns["split"]
    by_split = {name: _scores(values, split == name, clusters, bootstrap) for name in SPLITS if (split == name).any()}
    if len(by_split) < len(SPLITS):
        return by_split
    weighted = dict(zip(MEASURES, weighted_estimates(values, split, clusters, bootstrap), strict=True))
    pooled = _scores(values, np.ones(len(values), bool), clusters, bootstrap)
    return {WEIGHTED: weighted, POOLED: pooled, **by_split}


def enough_images(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """bool [k]: whether the known values of each column of values [n, k] are of at least `MIN_IMAGES` images."""
    own, places = np.unique(clusters, return_inverse=True)
    known = cluster_sums(~np.isnan(values), places, len(own))
    return np.count_nonzero(known, axis=0) >= MIN_IMAGES


def image_estimates(values: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap) -> list[Estimate]:
    """The mean of each column of values [n, k]; with its interval if there are enough images."""
    enough = enough_images(values, clusters)
    estimates = mean_estimates(values, clusters, bootstrap if enough.any() else None)
    return [
        own if known else own._replace(low=float("nan"), high=float("nan"))
        for own, known in zip(estimates, enough, strict=True)
    ]


def weighted_estimates(
    values: np.ndarray, split: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap
) -> list[Estimate]:
    """The mean of both splits with `WEIGHTS`, of each column of values [n, k]; `split` and `clusters` are [n]."""
    parts = [(WEIGHTS[name], values[split == name], clusters[split == name]) for name in SPLITS]
    means = [mean_estimates(own, images, None) for _, own, images in parts]
    low = high = np.full(values.shape[1], np.nan)
    enough = np.all([enough_images(own, images) for _, own, images in parts], axis=0)
    if enough.any():
        ends = interval(np.sum([weight * bootstrap.means(own, images) for weight, own, images in parts], axis=0))
        low, high = (np.where(enough, end, np.nan) for end in ends)
    return [
        Estimate(
            sum(weight * mean.value for (weight, *_), mean in zip(parts, of_splits, strict=True)),
            float(low[column]),
            float(high[column]),
            sum(mean.n for mean in of_splits),
        )
        for column, of_splits in enumerate(zip(*means, strict=True))
    ]


def type_scores(model: ModelReviews, clusters: np.ndarray, bootstrap: Bootstrap) -> dict[tuple[str, str], Scores]:
    """Means by (split, type)."""
    values, columns = measure_values(model), model.columns
    return {
        (file.split, file.type): _scores(
            values, (columns["split"] == file.split) & (columns["type"] == file.type), clusters, bootstrap
        )
        for file in model.files
    }


def group_scores(model: ModelReviews, clusters: np.ndarray, bootstrap: Bootstrap) -> dict[str, dict[str, Scores]]:
    """Means by facet and value, over all samples; the values in the order of the samples."""
    values = measure_values(model)
    return {
        facet: {
            name: _scores(values, model.columns[facet] == name, clusters, bootstrap)
            for name in dict.fromkeys(model.columns[facet])
        }
        for facet in FACETS
    }


def measure_length(model: ModelReviews, clusters: np.ndarray, bootstrap: Bootstrap) -> dict[str, Length]:
    """How scores and answer length go together, by the keys of `split_scores`.

    Under `WEIGHTED` the samples of each split weigh `WEIGHTS` in the fit of the length-controlled score; the rest is
    that of `POOLED`.
    """
    split = model.columns["split"]
    lengths = {
        name: _length(model.overall[mask], model.length_ratios[mask], clusters[mask], bootstrap)
        for name in SPLITS
        if (mask := split == name).any()
    }
    if len(lengths) < len(SPLITS):
        return lengths
    pooled = _length(model.overall, model.length_ratios, clusters, bootstrap)
    weights = np.zeros(len(split))
    for name in SPLITS:
        used = (split == name) & model.complete & (model.length_ratios > 0)
        weights[used] = WEIGHTS[name] / max(used.sum(), 1)
    enough = all(enough_images(model.overall[split == name, None], clusters[split == name])[0] for name in SPLITS)
    weighted = length_controlled(model.overall, model.length_ratios, clusters, bootstrap if enough else None, weights)
    return {WEIGHTED: pooled._replace(score=weighted), POOLED: pooled, **lengths}


def measure_position_bias(
    model: ModelReviews, clusters: np.ndarray, bootstrap: Bootstrap, seed: int
) -> PositionBias | None:
    """What the order of the answers does; None without samples that have all pairs in both orders."""
    first, second = pair_ratios(model.scores), pair_ratios(model.swapped_scores)
    both = ~np.isnan(first + second).any(axis=1)
    if not both.any():
        return None
    first, second = first[both], second[both]
    means = np.column_stack([first.mean(axis=1), second.mean(axis=1)])
    difference = means[:, 0] - means[:, 1]
    estimates = image_estimates(np.column_stack([means, difference]), clusters[both], bootstrap)
    p_value = sign_flip_test(difference, clusters[both], len(bootstrap.counts), seed)
    agreement = float((np.sign(first - 1) == np.sign(second - 1)).mean())
    return PositionBias(*estimates, p_value=p_value, agreement=agreement)


def score_histogram(model: ModelReviews) -> np.ndarray:
    """int64 [8, 11, 2]: how often each metric has the score 0 … 10 (rounded), of the answer and of the reference.

    Of the reviews in the published order, and all usable pairs.
    """
    steps = np.arange(11)[None, None, :, None]
    return (model.scores.round()[:, :, None, :] == steps).sum(axis=0)  # NaN equals nothing


def _scores(values: np.ndarray, mask: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap) -> Scores:
    estimates = image_estimates(values[mask], clusters[mask], bootstrap)
    return dict(zip(MEASURES, estimates, strict=True))


def _length(overall: np.ndarray, ratios: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap) -> Length:
    scored = ~np.isnan(overall) & (ratios > 0)
    overall, ratios, clusters = overall[scored], ratios[scored], clusters[scored]
    if not len(overall):
        nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
        return Length(float("nan"), nothing, nothing, nothing)
    logarithms = np.log(ratios)
    resamples = bootstrap if enough_images(overall[:, None], clusters)[0] else None
    return Length(
        float(np.median(ratios)),
        pearson(overall, logarithms, clusters, resamples),
        spearman(overall, logarithms, clusters, resamples),
        length_controlled(overall, ratios, clusters, resamples),
    )
