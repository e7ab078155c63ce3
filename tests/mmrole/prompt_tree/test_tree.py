"""Laws of the flattened prompt tree, against tries of Python tuples."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree, concatenate

NODE_FIELDS = [field.name for field in fields(PromptTree) if field.name != "leaf"]


@st.composite
def sample_lists(draw, min_size=1):
    """Samples as lists of ((token id, image key), is target), many of them branching off earlier ones."""
    alphabet = draw(st.sampled_from([[(0, -1), (1, -1)], [(0, -1), (1, -1), (1, 0), (1, 1), (2, 1)]]))
    steps = st.lists(st.tuples(st.sampled_from(alphabet), st.booleans()), min_size=1, max_size=5)
    samples = []
    for _ in range(draw(st.integers(min_size, 10))):
        trunk = draw(st.sampled_from(samples)) if samples and draw(st.booleans()) else []
        prefix = [(position, draw(st.booleans())) for position, _ in trunk[: draw(st.integers(0, len(trunk)))]]
        samples.append(prefix + draw(steps) if not prefix or draw(st.booleans()) else prefix)
    return samples


def as_sequences(samples) -> list[TokenSequence]:
    return [
        TokenSequence(
            input_ids=np.array([token for (token, _), _ in sample]),
            image_keys=np.array([key for (_, key), _ in sample]),
            targets=np.array([target for _, target in sample]),
        )
        for sample in samples
    ]


def prefixes(sample) -> list[tuple]:
    positions = [position for position, _ in sample]
    return [tuple(positions[: stop + 1]) for stop in range(len(positions))]


def node_prefixes(tree: PromptTree) -> list[tuple]:
    """The positions from the root to each node, read off by parent pointers."""
    spelled = []
    for node, parent in enumerate(tree.parent.tolist()):
        assert parent < node
        position = (int(tree.input_ids[node]), int(tree.image_keys[node]))
        spelled.append((*(spelled[parent] if parent >= 0 else ()), position))
    return spelled


@given(sample_lists())
def test_every_path_reproduces_its_sequence_and_positions(samples):
    sequences = as_sequences(samples)
    tree = build_tree(sequences)
    for index, sequence in enumerate(sequences):
        path = tree.path(index)
        assert tree.input_ids[path].tolist() == sequence.input_ids.tolist()
        assert tree.image_keys[path].tolist() == sequence.image_keys.tolist()
        assert tree.depths[path].tolist() == list(range(len(sequence)))
        assert tree.parent[path].tolist() == [-1, *path[:-1]]
        assert tree.leaf[index] == path[-1]


@given(sample_lists())
def test_nodes_are_the_distinct_prefixes_in_lexicographic_depth_first_order(samples):
    tree = build_tree(as_sequences(samples))
    spelled = node_prefixes(tree)
    assert set(spelled) == {prefix for sample in samples for prefix in prefixes(sample)}
    assert len(tree) == len(set(spelled))
    by_rank = [[(key >= 0, key if key >= 0 else token, token) for token, key in prefix] for prefix in spelled]
    assert by_rank == sorted(by_rank)
    assert tree.n_tokens == sum(map(len, samples))


@given(sample_lists())
def test_last_is_the_largest_descendant(samples):
    tree = build_tree(as_sequences(samples))
    expected = list(range(len(tree)))
    for node in reversed(range(len(tree))):
        if tree.parent[node] >= 0:
            expected[tree.parent[node]] = max(expected[tree.parent[node]], expected[node])
    assert tree.last.tolist() == expected


@given(sample_lists())
def test_targets_are_counted_once_for_each_sample(samples):
    tree = build_tree(as_sequences(samples))
    expected = Counter(
        prefix
        for sample in samples
        for prefix, (_, target) in zip(prefixes(sample), sample, strict=True)
        if target and len(prefix) > 1
    )
    spelled = node_prefixes(tree)
    counted = {spelled[node]: count for node, count in zip(tree.target_nodes, tree.target_counts, strict=True)}
    assert counted == expected
    assert tree.target_nodes.tolist() == sorted(tree.target_nodes)
    assert (tree.parent[tree.target_nodes] >= 0).all()


@given(sample_lists(), st.randoms(use_true_random=False))
def test_nodes_do_not_depend_on_the_order_of_the_sequences(samples, random):
    shuffle = random.sample(range(len(samples)), len(samples))
    sequences = as_sequences(samples)
    tree, shuffled = build_tree(sequences), build_tree([sequences[index] for index in shuffle])
    for name in NODE_FIELDS:
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(tree, name))
    assert shuffled.leaf.tolist() == tree.leaf[shuffle].tolist()


@given(st.lists(sample_lists(), min_size=1, max_size=3))
def test_concatenation_keeps_every_tree_and_shares_nothing(groups):
    trees = [build_tree(as_sequences(samples)) for samples in groups]
    forest = concatenate(trees)
    assert len(forest) == sum(map(len, trees))
    node = sequence = target = 0
    for tree in trees:
        here = slice(node, node + len(tree))
        np.testing.assert_array_equal(forest.input_ids[here], tree.input_ids)
        np.testing.assert_array_equal(forest.image_keys[here], tree.image_keys)
        np.testing.assert_array_equal(forest.depths[here], tree.depths)
        np.testing.assert_array_equal(forest.last[here], tree.last + node)
        np.testing.assert_array_equal(forest.parent[here], np.where(tree.parent < 0, -1, tree.parent + node))
        for index in range(len(tree.leaf)):
            np.testing.assert_array_equal(forest.path(sequence + index), tree.path(index) + node)
        loss = slice(target, target + len(tree.target_nodes))
        np.testing.assert_array_equal(forest.target_nodes[loss], tree.target_nodes + node)
        np.testing.assert_array_equal(forest.target_counts[loss], tree.target_counts)
        node, sequence, target = node + len(tree), sequence + len(tree.leaf), loss.stop
    assert (len(forest.leaf), len(forest.target_nodes)) == (sequence, target)


def test_different_images_are_never_shared_nor_what_follows_them():
    ids = [5, 9, 9, 6]
    keys = [[-1, 0, 1, -1], [-1, 256, 257, -1], [-1, 0, 1, -1]]
    tree = build_tree([TokenSequence(ids, image_keys) for image_keys in keys])
    assert tree.input_ids.tolist() == [5, 9, 9, 6, 9, 9, 6]
    assert tree.image_keys.tolist() == [-1, 0, 1, -1, 256, 257, -1]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 0, 4, 5]
    assert tree.last.tolist() == [6, 3, 3, 3, 6, 6, 6]
    assert tree.leaf.tolist() == [3, 6, 3]


def test_prefixes_duplicates_and_a_second_root():
    shown = np.array([True, True, True])
    sequences = [
        TokenSequence([1, 2, 3], targets=shown),
        TokenSequence([1, 2], targets=np.array([False, True])),  # ends at an inner node
        TokenSequence([4]),
        TokenSequence([1, 2, 3], targets=shown),
    ]
    tree = build_tree(sequences)
    assert tree.input_ids.tolist() == [1, 2, 3, 4]
    assert tree.parent.tolist() == [-1, 0, 1, -1]
    assert tree.last.tolist() == [2, 2, 2, 3]
    assert tree.leaf.tolist() == [2, 1, 3, 2]
    assert tree.target_nodes.tolist() == [1, 2]
    assert tree.target_counts.tolist() == [3, 2]
    assert (tree.n_tokens, len(tree)) == (9, 4)


def test_nothing_to_merge_is_refused():
    with pytest.raises(ValueError, match="at least one sequence"):
        build_tree([])
    with pytest.raises(ValueError, match="no trees"):
        concatenate([])


def test_all_arrays_are_int64_and_own_their_memory():
    ids = np.arange(4, dtype=np.int32)
    tree = build_tree([TokenSequence(ids, targets=np.ones(4, bool))])
    ids[:] = 0
    assert tree.input_ids.tolist() == [0, 1, 2, 3]
    for field in fields(PromptTree):
        assert getattr(tree, field.name).dtype == np.int64, field.name


@pytest.mark.parametrize(("families", "members", "length"), [(25, 8, 1500), (1000, 8, 60), (3, 8, 12_500)])
def test_more_than_a_hundred_thousand_nodes(families, members, length):
    random = np.random.default_rng(0)
    sequences, expected = [], 1
    for family in range(families):
        trunk = random.integers(0, 150_000, length)
        trunk[:2] = 0, family
        branches = random.integers(length // 3, length, members)
        for branch in branches:
            ids = trunk.copy()
            ids[branch:] = 150_000 + len(sequences)  # its own id, so that it leaves the trunk exactly here
            sequences.append(TokenSequence(ids))
        expected += branches.max() - 1 + (length - branches).sum()
    tree = build_tree(sequences)
    assert len(tree) == expected > 100_000
    for index, sequence in enumerate(sequences):
        path = tree.path(index)
        assert np.array_equal(tree.input_ids[path], sequence.input_ids)
        assert np.array_equal(tree.depths[path], np.arange(length))
