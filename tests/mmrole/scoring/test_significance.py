"""Tests of the paired tests: against all flips, published examples and laws."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.scoring.significance import holm, sign_flip_test, sign_flip_tests


def test_sign_flips_agree_with_all_flips() -> None:
    differences = np.array([0.3, 0.1, -0.05, 0.2, 0.15, 0.4, -0.1])
    clusters = np.array([0, 0, 1, 2, 3, 4, 4])
    sums = np.bincount(clusters, differences)
    flips = np.array(list(product([-1, 1], repeat=5))) @ sums
    exact = (np.abs(flips) >= sums.sum() - 1e-9).mean()
    assert sign_flip_test(differences, clusters, draws=200_000) == pytest.approx(exact, abs=0.005)


def test_sign_flips_of_equal_models_and_of_one_image() -> None:
    assert sign_flip_test(np.zeros(10), np.arange(10)) == 1
    assert sign_flip_test(np.full(10, 0.2), np.zeros(10, int)) == 1  # a single image tells nothing
    assert math.isnan(sign_flip_test(np.full(3, np.nan), np.arange(3)))


def test_sign_flips_keep_the_error_rate() -> None:
    rng = np.random.default_rng(7)
    p_values = []
    for _ in range(300):
        shared = np.repeat(rng.normal(0, 1, 20), 3)  # samples of one image differ alike
        p_values.append(sign_flip_test(shared + rng.normal(0, 0.3, 60), np.repeat(np.arange(20), 3), draws=400))
    assert np.mean(np.array(p_values) < 0.05) < 0.09  # 5 %, and three standard errors
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.09)


def test_holm_of_a_known_example() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, float("nan"), 0.7])[0] == 1
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_none_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = np.array(holm(p_values))
    assert (corrected >= np.array(p_values) - 1e-15).all()
    assert (corrected <= np.minimum(1, np.array(p_values) * len(p_values)) + 1e-15).all()
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


def test_many_tests_are_the_same_as_one_at_a_time_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    tied = [rng.integers(-2, 3, 12) / 8 for _ in range(5)]  # many flips are exactly as far as what is observed
    sums = [*tied, *(rng.normal(0.1, 1, size) for size in (12, 12, 30, 5)), np.zeros(12), np.empty(0)]
    p_values = sign_flip_tests(sums, draws=3000, seed=2)
    for own, p_value in zip(sums[:-1], p_values[:-1], strict=True):
        signs = np.random.default_rng(2).integers(0, 2, (3000, len(own)), dtype=np.int8)
        flipped = abs((2.0 * signs - 1) @ own)
        assert p_value == (1 + (flipped >= abs(own.sum()) - 1e-9 * abs(own).sum()).sum()) / 3001
    assert np.isnan(p_values[-1])
