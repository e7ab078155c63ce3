"""Tests of the statistics: against slow twins, published examples and laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.scoring.statistics import (
    LEVEL,
    Bootstrap,
    interval,
    length_controlled,
    mean_estimates,
    number_clusters,
    pearson,
    spearman,
)

RNG = np.random.default_rng(5)
N, CLUSTERS = 60, 14
NAMES = [f"image {number}" for number in RNG.integers(0, CLUSTERS, N)]
# Few values and many ties, as scores are.
X = RNG.integers(5, 11, N) / 10
Y = np.round(0.5 * X + RNG.normal(0, 0.1, N), 1)


def resampled(bootstrap: Bootstrap, clusters: np.ndarray) -> list[np.ndarray]:
    """The samples of every resample, one by one."""
    return [
        np.concatenate([np.repeat(np.flatnonzero(clusters == number), int(times)) for number, times in enumerate(draw)])
        for draw in bootstrap.counts
    ]


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    return number_clusters(NAMES)[0]


@pytest.fixture(scope="module")
def bootstrap(clusters: np.ndarray) -> Bootstrap:
    return Bootstrap.make(int(clusters.max()) + 1, draws=200, seed=3)


def test_resamples_draw_whole_images(bootstrap: Bootstrap, clusters: np.ndarray) -> None:
    assert (bootstrap.counts.sum(axis=1) == clusters.max() + 1).all()


def test_means_of_resamples_are_those_of_drawn_samples(bootstrap: Bootstrap, clusters: np.ndarray) -> None:
    values = np.stack([X, np.where(Y > 0.5, np.nan, Y)], axis=1)
    slow = np.array([np.nanmean(values[own], axis=0) for own in resampled(bootstrap, clusters)])
    np.testing.assert_allclose(bootstrap.means(values, clusters), slow, rtol=1e-12)


@pytest.mark.parametrize(("fast", "ranked"), [(pearson, False), (spearman, True)])
def test_correlations_of_resamples_are_those_of_drawn_samples(
    bootstrap: Bootstrap, clusters: np.ndarray, fast: object, ranked: bool
) -> None:
    def slow(x: np.ndarray, y: np.ndarray) -> float:
        if ranked:  # mean ranks by counting
            x, y = (((v[:, None] > v).sum(1) + (v[:, None] >= v).sum(1) + 1) / 2 for v in (x, y))
        return float(np.corrcoef(x, y)[0, 1])

    estimate = fast(X, Y, clusters, bootstrap)
    assert estimate.value == pytest.approx(slow(X, Y), abs=1e-12)
    ends = np.quantile([slow(X[own], Y[own]) for own in resampled(bootstrap, clusters)], [0.025, 0.975])
    assert estimate[1:3] == pytest.approx(ends, abs=1e-12)


def test_spearman_of_a_textbook_example() -> None:
    # Intelligence quotient and hours of television of ten people (Wikipedia): -29/165.
    quotient = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110.0])
    hours = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17.0])
    assert spearman(quotient, hours, np.arange(10)).value == pytest.approx(-29 / 165, abs=1e-12)


def test_pearson_of_anscombes_first_set() -> None:
    x = np.array([10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5.0])
    y = np.array([8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68])
    assert pearson(x, y, np.arange(11)).value == pytest.approx(0.81642, abs=1e-5)


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=2, max_size=20))
def test_correlations_are_bounded_and_symmetric(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, float).T
    clusters = np.arange(len(x)) // 2
    for correlation in (pearson, spearman):
        one, other = correlation(x, y, clusters).value, correlation(y, x, clusters).value
        varies = np.ptp(x) > 0 and np.ptp(y) > 0
        assert math.isnan(one) != varies
        assert not varies or (-1 <= one <= 1 and one == pytest.approx(other, abs=1e-12))
        assert not varies or correlation(3 * x + 2, y, clusters).value == pytest.approx(one, abs=1e-9)


def test_correlation_without_variation_is_unknown(bootstrap: Bootstrap, clusters: np.ndarray) -> None:
    assert math.isnan(pearson(np.full(N, 0.1), Y, clusters, bootstrap).value)
    assert math.isnan(spearman(X[:1], Y[:1], clusters[:1]).value)


def test_interval_of_independent_samples_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(1, 0.2, 400)
    (estimate,) = mean_estimates(values[:, None], np.arange(400), Bootstrap.make(400))
    half = 1.96 * values.std() / 20
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_interval_is_wider_where_samples_share_images() -> None:
    values = np.repeat(np.random.default_rng(1).normal(1, 0.2, 100), 4)
    (shared,) = mean_estimates(values[:, None], np.repeat(np.arange(100), 4), Bootstrap.make(100))
    (apart,) = mean_estimates(values[:, None], np.arange(400), Bootstrap.make(400))
    assert (shared.high - shared.low) / (apart.high - apart.low) == pytest.approx(2, abs=0.1)


def test_interval_leaves_out_draws_that_have_nothing() -> None:
    draws = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 5.0]])
    low, high = interval(draws)
    assert (low[1], high[1]) == (5, 5)
    assert (low[0], high[0]) == pytest.approx((1.05, 2.95))


def test_length_control_reads_the_line_at_equal_length(clusters: np.ndarray, bootstrap: Bootstrap) -> None:
    d = np.random.default_rng(2).normal(0.8, 0.7, N)
    scores = 0.9 + 0.1 * np.tanh(d / d.std())
    estimate = length_controlled(scores, np.exp(d), clusters, bootstrap)
    assert estimate[:3] == pytest.approx((0.9, 0.9, 0.9), abs=1e-9)
    assert scores.mean() > 0.95


def test_length_control_is_weighted_least_squares(clusters: np.ndarray) -> None:
    rng = np.random.default_rng(4)
    ratios, weights = np.exp(rng.normal(0.3, 0.6, N)), rng.uniform(0.1, 2, N)
    d = np.log(ratios)
    design = np.stack([np.ones(N), np.tanh(d / d.std())], axis=1)
    expected = np.linalg.lstsq(design * np.sqrt(weights)[:, None], X * np.sqrt(weights), rcond=None)[0][0]
    assert length_controlled(X, ratios, clusters, weights=weights).value == pytest.approx(expected, abs=1e-12)


def test_length_control_does_not_extrapolate(clusters: np.ndarray) -> None:
    assert math.isnan(length_controlled(X, np.full(N, 2.0), clusters).value)
    assert math.isnan(length_controlled(X, np.linspace(1.2, 3, N), clusters).value)
    assert length_controlled(X, np.ones(N), clusters).value == pytest.approx(X.mean())
    assert length_controlled(X, np.zeros(N), clusters).n == 0


def test_intervals_are_numpys_quantiles_of_what_is_known() -> None:
    draws = np.random.default_rng(0).normal(size=(501, 4))
    draws[::3, 1] = draws[1:, 2] = draws[:, 3] = np.nan
    low, high = interval(draws)
    for column in range(3):
        known = draws[~np.isnan(draws[:, column]), column]
        assert (low[column], high[column]) == tuple(np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    assert np.isnan(low[3])
