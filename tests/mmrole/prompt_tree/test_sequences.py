"""Token sequences: what is refused, the order by prefix, groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.prompt_tree import TokenSequence, group_by_prefix
from mmrole.prompt_tree.sequences import sort_by_prefix

POSITIONS = st.sampled_from([(0, -1), (1, -1), (1, 0), (1, 1), (2, 1)])  # (token id, image key)
SAMPLES = st.lists(st.lists(POSITIONS, min_size=1, max_size=6), max_size=12)


def as_sequences(samples: list[list[tuple[int, int]]]) -> list[TokenSequence]:
    return [TokenSequence(*(np.array(column) for column in zip(*sample, strict=True))) for sample in samples]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_ids": []}, "at least one token"),
        ({"input_ids": [[1, 2]]}, r"integers \[length\]"),
        ({"input_ids": [1.0, 2.0]}, "float64"),
        ({"input_ids": [3, -100]}, "found -100 to 3"),
        ({"input_ids": [2**31]}, "token ids"),
        ({"input_ids": [1, 2], "image_keys": [-1]}, r"image_keys must be signed integers \[2\]"),
        ({"input_ids": [1, 2], "image_keys": [-1, -2]}, "found -2"),
        ({"input_ids": [1], "image_keys": np.array([1], np.uint64)}, "uint64"),
        ({"input_ids": [1, 2], "targets": [True]}, r"targets must be bool \[2\]"),
        ({"input_ids": [1, 2], "targets": [-100, 2]}, "targets must be bool"),
    ],
)
def test_bad_sequences_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenSequence(**fields)


@given(SAMPLES)
def test_order_is_lexicographic_and_shared_counts_the_common_prefix(samples):
    order, shared = sort_by_prefix(as_sequences(samples))
    # text sorts before images, images by key and then by id
    expected = sorted(
        range(len(samples)), key=lambda i: [(key >= 0, key if key >= 0 else token, token) for token, key in samples[i]]
    )
    assert order.tolist() == expected
    for place, length in enumerate(shared):
        if place == 0:
            assert length == 0
            continue
        before, sample = samples[order[place - 1]], samples[order[place]]
        assert before[:length] == sample[:length]
        assert before[length : length + 1] != sample[length : length + 1] or len(before) == len(sample) == length


def test_large_keys_and_narrow_dtypes_stay_apart():
    keys = [2**62, 2**62 + 1, 2**31, 0]
    sequences = [TokenSequence(np.array([7], np.int16), np.array([key])) for key in keys]
    sequences.append(TokenSequence(np.array([7], np.uint32)))
    order, shared = sort_by_prefix(sequences)
    assert order.tolist() == [4, 3, 2, 0, 1]
    assert not shared.any()


@given(SAMPLES, st.integers(1, 5))
def test_groups_are_the_sequences_with_equal_first_positions(samples, min_shared):
    groups = group_by_prefix(as_sequences(samples), min_shared)
    expected = {}
    for index, sample in enumerate(samples):
        alone = len(sample) < min_shared
        expected.setdefault((index,) if alone else tuple(sample[:min_shared]), []).append(index)
    assert [sorted(group) for group in groups] == list(expected.values())  # both by first member
    order = sort_by_prefix(as_sequences(samples)).order.tolist()
    for group in groups:
        assert [order.index(index) for index in group] == sorted(order.index(index) for index in group)


def test_min_shared_below_one_is_refused():
    with pytest.raises(ValueError, match="min_shared"):
        group_by_prefix([TokenSequence([1])], 0)
