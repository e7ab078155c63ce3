"""Paired tests of models on samples that share images, and their correction for how many there are.

Samples of one image are not independent, so whole images are exchanged, as in `mmrole.scoring.statistics`.
"""

from collections.abc import Sequence

import numpy as np

from mmrole.scoring.statistics import DRAWS, cluster_sums

# Numbers at once where an array of all flips is not kept: as many as a fast product wants.
_IN_PRODUCT = 2_000_000


def sign_flip_test(differences: np.ndarray, clusters: np.ndarray, draws: int = DRAWS, seed: int = 1234) -> float:
    """The two-sided p-value of the hypothesis that two models are the same, on the samples of both.

    Were they the same, the answers of an image's samples could as well have come from the other model: the sign of all
    differences of a cluster is flipped by chance, and p is the share of flips whose mean is at least as far from 0 as
    the observed one, which counts itself (Phipson and Smyth, 2010). Unlike the bootstrap, the test is exact for any
    distribution of scores, and scores here are few values with long tails.

    Args:
        differences: float [n], of one model minus the other on the same sample.
        clusters: of the samples.
        draws: flips. The smallest p-value is 1 / (draws + 1).
        seed: of the flips.
    """
    return sign_flip_tests([known_sums(differences, clusters)], draws, seed)[0]


def known_sums(differences: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """float64 [k]: the sums of differences [n] over the clusters that have any, in order."""
    known = ~np.isnan(differences)
    own, places = np.unique(clusters[known], return_inverse=True)
    return cluster_sums(differences[known], places, len(own))


def sign_flip_tests(sums: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 1234) -> list[float]:
    """The p-values of `sign_flip_test` for many comparisons, each given by its `known_sums`."""
    p_values = np.full(len(sums), np.nan)
    sizes = np.array([len(own) for own in sums])
    for size in np.unique(sizes[sizes > 0]):
        places = np.flatnonzero(sizes == size)
        signs = np.random.default_rng(seed).integers(0, 2, (draws, size), dtype=np.int8)
        p_values[places] = _flip(signs, np.stack([sums[place] for place in places.tolist()]))
    return p_values.tolist()


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, "A simple sequentially rejective multiple test procedure", 1979).

    To reject where the corrected value is below 0.05 keeps the probability of any false rejection below 0.05. NaN stays
    NaN and does not count.
    """
    corrected = np.full(len(p_values), np.nan)
    order = [index for index in np.argsort(p_values, kind="stable") if not np.isnan(p_values[index])]
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected.tolist()


def _flip(signs: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """p-values [tests] of sums [tests, clusters] under signs [flips, clusters], 0 and 1.

    Single precision is three times as fast; what it leaves in doubt is computed again in double precision.
    """
    size = np.abs(sums).sum(axis=1, keepdims=True)
    least = np.abs(sums.sum(axis=1, keepdims=True)) - 1e-9 * size  # equal sums in another order are equal
    doubt = (sums.shape[1] + 4) * np.finfo(np.float32).eps * size
    rough = sums.astype(np.float32)
    low, high = (least - doubt).astype(np.float32), (least + doubt).astype(np.float32)
    as_far = np.zeros(len(sums), int)
    step = max(1, _IN_PRODUCT // max(sums.shape))
    for start in range(0, len(signs), step):
        own = signs[start : start + step].astype(np.float32) * 2 - 1
        flipped = np.abs(rough @ own.T)
        surely = flipped >= high
        in_doubt = np.flatnonzero((flipped >= low) ^ surely)
        if len(in_doubt) > flipped.size // 100:
            surely, in_doubt = np.abs(sums @ own.T.astype(np.float64)) >= least, in_doubt[:0]
        tests, flips = np.divmod(in_doubt, len(own))
        exact = np.abs(np.einsum("ij,ij->i", sums[tests], own[flips], dtype=np.float64))
        as_far += np.count_nonzero(surely, axis=1)
        as_far += np.bincount(tests[exact >= least[tests, 0]], minlength=len(sums))
    return (1 + as_far) / (len(signs) + 1)
