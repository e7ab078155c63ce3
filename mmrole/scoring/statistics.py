"""Statistics of samples that share images: bootstrap intervals, correlations, length control.

Samples of one image are not independent, so whole images are drawn: an image is a cluster. Each function takes
`clusters`, int [n], the number of every sample's cluster. NaN values are left out.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

LEVEL = 0.95
"""Probability of the intervals."""

DRAWS = 10_000
"""Draws of a bootstrap or a permutation test."""

# Numbers at once where an array of all draws is not kept: as many as a cache holds.
_IN_CACHE = 50_000


class Estimate(NamedTuple):
    """A number with its interval."""

    value: float
    """NaN if there is nothing to compute it from."""
    low: float
    """Lower end of the 95 % interval; NaN if none was computed."""
    high: float
    n: int
    """Samples behind it."""


class Bootstrap(NamedTuple):
    """Resamples of whole clusters, made once and shared by all statistics, which are then dependent as they should be.

    A resample draws as many clusters as there are, with replacement (the pairs cluster bootstrap: Cameron, Gelbach and
    Miller, "Bootstrap-based improvements for inference with clustered errors", 2008). Statistics that are functions of
    sums over samples need only the sums over each cluster: `counts @ sums`.
    """

    counts: np.ndarray
    """float64 [draws, clusters]: how often a resample has a cluster."""

    @classmethod
    def make(cls, n_clusters: int, draws: int = DRAWS, seed: int = 1234) -> Self:
        """Draws the resamples."""
        shares = np.full(n_clusters, 1 / n_clusters)
        counts = np.random.default_rng(seed).multinomial(n_clusters, shares, size=draws)
        return cls(counts.astype(np.float64, order="F"))  # a cluster's counts side by side: few clusters are often used

    def sums(self, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """float64 [draws, …]: the sums of values [n, …] in every resample."""
        sums = cluster_sums(values, clusters, self.counts.shape[1])
        own = np.unique(clusters)
        if 2 * len(own) > len(sums):
            return np.tensordot(self.counts, sums, 1)
        return np.tensordot(self.counts[:, own], sums[own], 1)

    def means(self, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """float64 [draws, …]: the means of values [n, …] in every resample, NaN where it has none of them."""
        known = ~np.isnan(values)
        alike = known[:, :1] if (known == known[:, :1]).all() else known  # one count for columns known together
        return _divide(self.sums(np.where(known, values, 0), clusters), self.sums(alike.astype(np.float64), clusters))


def number_clusters(names: Sequence[str]) -> tuple[np.ndarray, int]:
    """The cluster of every sample by its name, int [n], and how many there are."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], int), len(numbers)


def cluster_sums(values: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """float64 [clusters, …]: the sums of values [n, …] over each cluster."""
    sums = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(sums, clusters, values)
    return sums


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end [...] of the percentile interval of draws [draws, ...]; NaN draws are left out."""
    ordered = np.sort(np.moveaxis(draws, 0, -1), axis=-1)  # NaN last
    n = np.count_nonzero(~np.isnan(ordered), axis=-1)
    return _quantile(ordered, n, (1 - level) / 2), _quantile(ordered, n, (1 + level) / 2)


def mean_estimates(values: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap | None) -> list[Estimate]:
    """The mean of each column of values [n, k], with its interval; without a bootstrap, or values, there is none."""
    n = (~np.isnan(values)).sum(axis=0)
    means = _divide(np.nansum(values, axis=0), n)
    low = high = np.full(len(n), np.nan)
    if bootstrap is not None and len(values):
        low, high = interval(bootstrap.means(values, clusters))
    return [Estimate(*map(float, row[:3]), n=int(row[3])) for row in zip(means, low, high, n, strict=True)]


def pearson(x: np.ndarray, y: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap | None = None) -> Estimate:
    """Pearson's correlation of x and y [n]; NaN if one of them does not vary. The interval leaves such draws out."""
    x, y, clusters = _known(x, y, clusters)
    if len(x) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), len(x))
    x, y = x - x.mean(), y - y.mean()  # a correlation does not change, and its rounding errors become small
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    value = float(_correlation(moments.sum(axis=0)))
    low, high = _ends(None if bootstrap is None else _correlation(bootstrap.sums(moments, clusters)))
    return Estimate(value, low, high, len(x))


def spearman(x: np.ndarray, y: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap | None = None) -> Estimate:
    """Spearman's correlation of x and y [n]: Pearson's of their ranks, ties at their mean rank.

    Every resample is ranked anew. NaN if x or y does not vary.
    """
    x, y, clusters = _known(x, y, clusters)
    if len(x) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), len(x))
    value = float(_rank_correlation(np.ones((len(x), 1)), x, y)[0])
    if bootstrap is None:
        return Estimate(value, float("nan"), float("nan"), len(x))
    of_cluster = bootstrap.counts.T
    step = max(1, _IN_CACHE // len(x))
    chunks = [of_cluster[clusters, start : start + step] for start in range(0, of_cluster.shape[1], step)]
    low, high = _ends(np.concatenate([_rank_correlation(chunk, x, y) for chunk in chunks]))
    return Estimate(value, low, high, len(x))


def length_controlled(
    scores: np.ndarray,
    length_ratios: np.ndarray,
    clusters: np.ndarray,
    bootstrap: Bootstrap | None = None,
    weights: np.ndarray | None = None,
) -> Estimate:
    """The score that a model would have if its answers were as long as the references, told from its own samples.

    With d the logarithm of answer length over reference length, the least-squares line `score = a + b * x` over
    `x = tanh(d / sd(d))` is read at equal length, x = 0: the result is a. The idea and the form of x are those of
    length-controlled AlpacaEval (Dubois et al., "Length-Controlled AlpacaEval", 2024, section 3), which fits
    preferences with a logistic model and a term for the difficulty of each instruction. Scores here are ratios around
    1, so the model is linear, and the reference's score stands for the difficulty. It describes, and proves no cause.

    Args:
        scores: float [n].
        length_ratios: float [n], answer over reference; samples with 0 are left out.
        clusters: of the samples.
        bootstrap: for the interval. The spread of d is that of all samples.
        weights: float [n], how much each sample counts in the fit; all the same by default.

    Returns:
        a; NaN if all lengths are the same and not equal, or if equal length lies outside of the lengths that occur.
    """
    with np.errstate(divide="ignore"):
        logarithms = np.where(length_ratios > 0, np.log(length_ratios), np.nan)
    weights = np.ones(len(scores)) if weights is None else weights
    weights = weights[~(np.isnan(logarithms) | np.isnan(scores))]
    d, y, clusters = _known(logarithms, scores, clusters)
    nothing = Estimate(float("nan"), float("nan"), float("nan"), len(d))
    if not len(d) or d.min() > 0 or d.max() < 0:
        return nothing
    x = np.tanh(d / (d.std() or 1.0))
    moments = weights[:, None] * np.stack([np.ones_like(x), x, y, x * x, x * y], axis=1)
    value = float(_intercept(moments.sum(axis=0)))
    low, high = _ends(None if bootstrap is None else _intercept(bootstrap.sums(moments, clusters)))
    return Estimate(value, low, high, len(d))


def _known(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known = ~(np.isnan(x) | np.isnan(y))
    return x[known], y[known], clusters[known]


def _ends(draws: np.ndarray | None) -> tuple[float, float]:
    if draws is None:
        return float("nan"), float("nan")
    low, high = interval(draws)
    return float(low), float(high)


def _quantile(ordered: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """The quantile of each row of ordered [..., draws], of its first n [...] values; NaN if n is 0.

    Between two values it is interpolated, as NumPy does it to the last bit: from the nearer one.
    """
    place = share * np.maximum(n - 1, 0)
    below = np.floor(place).astype(int)
    part = place - below
    above = np.minimum(below + 1, np.maximum(n - 1, 0))
    a, b = (np.take_along_axis(ordered, index[..., None], -1)[..., 0] for index in (below, above))
    return np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / np.where(denominator == 0, np.nan, denominator)


def _correlation(moments: np.ndarray) -> np.ndarray:
    """[...] from sums [..., 6] of 1, x, y, xx, yy, xy."""
    n, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    # A variable that does not vary in a draw has a spread of rounding errors.
    varies = (spread_x > 1e-12 * n * xx) & (spread_y > 1e-12 * n * yy)
    product = np.where(varies, spread_x * spread_y, np.nan)
    return np.clip((n * xy - x * y) / np.sqrt(product), -1, 1)


def _rank_correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[draws] from how often a draw has each sample, [n, draws]."""
    a, b = _centred_ranks(counts, x), _centred_ranks(counts, y)
    xx, yy, xy = (np.einsum("nd,nd,nd->d", counts, *both) for both in ((a, a), (b, b), (a, b)))
    return np.clip(xy / np.sqrt(np.where((xx > 0) & (yy > 0), xx * yy, np.nan)), -1, 1)


def _centred_ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[n, draws]: the rank of each sample's value in a draw, ties at their mean rank, less the mean of all ranks."""
    order = np.argsort(values, kind="stable")
    _, starts, which = np.unique(values[order], return_index=True, return_inverse=True)
    of_value = np.add.reduceat(counts[order], starts, axis=0)
    up_to = np.cumsum(of_value, axis=0)
    return (up_to - of_value / 2 - up_to[-1] / 2)[which[np.argsort(order)]]


def _intercept(moments: np.ndarray) -> np.ndarray:
    """[...] from sums [..., 5] of 1, x, y, xx, xy; where x does not vary and is 0, the mean of y."""
    n, x, y, xx, xy = np.moveaxis(moments, -1, 0)
    spread = n * xx - x * x
    varies = spread > 1e-12 * n * xx
    line = (y * xx - x * xy) / np.where(varies, spread, np.nan)
    return np.where(varies, line, np.where(xx == 0, y / np.where(n == 0, np.nan, n), np.nan))
