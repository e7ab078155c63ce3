"""Paired comparison of every two models of the report, on the samples of both."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmrole.scoring.measures import WEIGHTS, image_estimates, weighted_estimates
from mmrole.scoring.reviews import SPLITS, ModelReviews
from mmrole.scoring.significance import holm, known_sums, sign_flip_tests
from mmrole.scoring.statistics import Bootstrap, Estimate

SIGNIFICANCE = 0.05
"""A corrected p-value below it tells two models apart."""

FLIPS_PER_PAIR = 100
"""Least flips of each test by the number of pairs, so that the correction leaves p-values well below `SIGNIFICANCE`."""


class Pair(NamedTuple):
    """Two models on the complete samples of both; if they share both splits, by the `measures.WEIGHTED` mean."""

    first: str
    """The model with the higher mean."""
    second: str
    difference: Estimate
    """Of the overall score, first - second, and the number of samples."""
    p_value: float
    """Of the hypothesis that they are the same (`significance.sign_flip_test`); NaN without a common sample."""
    corrected: float
    """The p-value by Holm's correction for all pairs."""

    @property
    def verdict(self) -> str:
        """In plain words."""
        if np.isnan(self.p_value):
            return "no sample in common"
        return f"{self.first} is better" if self.corrected < SIGNIFICANCE else "not distinguishable"


def compare_pairs(
    models: Sequence[ModelReviews], clusters: Mapping[str, np.ndarray], bootstrap: Bootstrap, seed: int
) -> tuple[Pair, ...]:
    """Every two models, in the order of the models.

    Args:
        models: the best first.
        clusters: of the samples of each model, by its name.
        bootstrap: for the intervals.
        seed: of the flips, which are as many as the draws of the bootstrap or `FLIPS_PER_PAIR` for each pair.
    """
    compared: list[tuple[str, str, Estimate]] = []
    sums: list[np.ndarray] = []
    for place, one in enumerate(models):
        others = models[place + 1 :]
        estimates, own_sums = _compare(one, others, clusters[one.model], bootstrap)
        compared += [(one.model, other.model, value) for other, value in zip(others, estimates, strict=True)]
        sums += own_sums
    # A p-value is not below 1 / (flips + 1), nor a corrected one below that times the number of pairs.
    p_values = sign_flip_tests(sums, max(len(bootstrap.counts), FLIPS_PER_PAIR * len(sums)), seed)
    return tuple(
        _pair(*names_and_value, p_value, corrected)
        for names_and_value, p_value, corrected in zip(compared, p_values, holm(p_values), strict=True)
    )


def _compare(
    one: ModelReviews, others: Sequence[ModelReviews], clusters: np.ndarray, bootstrap: Bootstrap
) -> tuple[list[Estimate], list[np.ndarray]]:
    """The mean difference from each of the others, and its sums over images, whose signs the test flips."""
    differences, split = _differences(one, others), one.columns["split"]
    common = {name: np.count_nonzero(~np.isnan(differences[split == name]), axis=0) for name in SPLITS}
    both = np.all(list(common.values()), axis=0)
    of_both = iter(weighted_estimates(differences[:, both], split, clusters, bootstrap))
    of_one = iter(image_estimates(differences[:, ~both], clusters, bootstrap))
    weights = np.ones(differences.shape)
    for name in SPLITS:
        weights[np.ix_(split == name, both)] = WEIGHTS[name] / common[name][both]
    sums = [known_sums(column, clusters) for column in (weights * differences).T]
    return [next(of_both if is_both else of_one) for is_both in both], sums


def _differences(one: ModelReviews, others: Sequence[ModelReviews]) -> np.ndarray:
    """float64 [n, others]: the overall scores of a model's samples, less those of the others on the same samples."""
    scores = [dict(zip(other.keys, other.overall, strict=True)) for other in others]
    theirs = [[by_key.get(key, np.nan) for by_key in scores] for key in one.keys]
    return one.overall[:, None] - np.array(theirs, np.float64).reshape(len(one.keys), len(others))


def _pair(first: str, second: str, difference: Estimate, p_value: float, corrected: float) -> Pair:
    if difference.value < 0:
        first, second = second, first
        difference = Estimate(-difference.value, -difference.high, -difference.low, difference.n)
    return Pair(first, second, difference, p_value, corrected)
