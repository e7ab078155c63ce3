"""Masks of prompt trees: against parent pointers, FlexAttention's own helpers and SDPA."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from fixtures.pictured_trees import WINDOWS, mask_of_sequences, pictured_sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree
from mmrole.prompt_tree.mask import Visibility, ancestor_rows, block_mask, dense_mask, mask_mod

TREES = st.builds(
    lambda samples: build_tree([TokenSequence(sample) for sample in samples]),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8),
)


def random_tree(seed: int, trunk: int, branches: int, tail: int) -> PromptTree:
    random = np.random.default_rng(seed)
    ids = random.integers(0, 9, trunk)
    return build_tree(
        [
            TokenSequence(np.concatenate([ids[: random.integers(1, trunk)], random.integers(0, 9, tail)]))
            for _ in range(branches)
        ]
    )


def naive_mask(tree: PromptTree) -> torch.Tensor:
    """Ancestor or self, by walking up the parent pointers."""
    mask = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for query in range(len(tree)):
        node = query
        while node >= 0:
            mask[query, node] = True
            node = int(tree.parent[node])
    return mask


def pad_last(trees: Sequence[PromptTree], length: int | None = None) -> torch.Tensor:
    """`last` of several trees as one batch, [B, length]; a padding node is its own last, so it sees only itself."""
    last = torch.arange(length or max(map(len, trees))).repeat(len(trees), 1)
    for row, tree in zip(last, trees, strict=True):
        row[: len(tree)] = torch.from_numpy(tree.last)
    return last


@given(TREES)
def test_mask_is_ancestor_or_self(tree):
    last = torch.from_numpy(tree.last)
    expected = naive_mask(tree)
    assert torch.equal(dense_mask(last), expected)
    assert torch.equal(ancestor_rows(last, torch.from_numpy(tree.leaf)), expected[tree.leaf])
    assert torch.equal(create_mask(mask_mod(last), None, None, len(tree), len(tree), "cpu")[0, 0], expected)


@settings(max_examples=40)
@given(st.integers(0, 1 << 30), st.booleans())
def test_windows_and_images_that_see_themselves_both_ways(seed, images_both_ways):
    sequences = pictured_sequences(seed)
    tree = build_tree(sequences)
    visibility = Visibility.of(tree, images_both_ways, WINDOWS)
    leaf = torch.from_numpy(tree.leaf)
    for window in WINDOWS:
        expected = mask_of_sequences(tree, sequences, images_both_ways, window)
        assert torch.equal(dense_mask(*visibility, window), expected)
        last, *more = visibility
        assert torch.equal(ancestor_rows(last, leaf, *more, window), expected[leaf])
        mod = mask_mod(*visibility, window)
        assert torch.equal(create_mask(mod, None, None, len(tree), len(tree), "cpu")[0, 0], expected)
        # A leaf is text: what it sees without images, it sees with them.
        assert torch.equal(ancestor_rows(last, leaf), dense_mask(*visibility)[leaf])


def test_a_model_without_windows_and_images_needs_nothing_but_last():
    tree = random_tree(0, 20, 3, 5)
    assert Visibility.of(tree, False, (0, 0)).is_plain
    for needed in (Visibility.of(tree, True, ()), Visibility.of(tree, False, (0, 4))):
        assert not needed.is_plain
    for function in (dense_mask, mask_mod, block_mask):
        with pytest.raises(ValueError, match="a window needs depths"):
            function(torch.from_numpy(tree.last), window=3)


@given(st.lists(TREES, min_size=1, max_size=3), st.integers(0, 3))
def test_padding_sees_itself_and_nobody_sees_it(trees, extra):
    length = max(map(len, trees)) + extra
    last = pad_last(trees, length)
    expected = torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in zip(expected, trees, strict=True):
        row[: len(tree), : len(tree)] = naive_mask(tree)
    assert torch.equal(dense_mask(last), expected)
    assert torch.equal(create_mask(mask_mod(last), len(trees), None, length, length, "cpu")[:, 0], expected)
    nodes = torch.stack([torch.tensor([0, tree.leaf[0]]) for tree in trees])
    rows = ancestor_rows(last, nodes)
    assert torch.equal(rows, torch.stack([expected[i, nodes[i]] for i in range(len(trees))]))
    assert torch.equal(pad_last(trees), last[:, : length - extra])


@pytest.mark.parametrize("length_rest", [0, 1, 63])
@pytest.mark.parametrize("batched", [False, True])
def test_block_mask_is_what_flex_attention_makes_of_the_mask_mod(length_rest, batched):
    trees = [random_tree(seed, 300, 9, 40) for seed in range(3)]
    last = pad_last(trees, -(-max(map(len, trees)) // 64) * 64 + length_rest)
    if not batched:
        last = last[0]
    length = last.shape[-1]
    built = block_mask(last, block_size=64)
    expected = create_block_mask(
        mask_mod(last), last.shape[0] if batched else None, None, length, length, device="cpu", BLOCK_SIZE=64
    )
    assert built.shape == expected.shape
    for part in ("kv", "full_kv", "q", "full_q"):
        for name in (f"{part}_num_blocks", f"{part}_indices"):
            assert torch.equal(getattr(built, name), getattr(expected, name)), name
    assert built.full_kv_num_blocks.sum() > 0


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), images_both_ways=st.booleans(), window=st.sampled_from(WINDOWS))
@pytest.mark.parametrize("block_size", [2, 8])
def test_no_seen_block_is_left_out_and_whole_ones_are_whole(seed, images_both_ways, window, block_size):
    visibility = Visibility.of(build_tree(pictured_sequences(seed)), images_both_ways, WINDOWS)
    last, first, depths = visibility
    padding = -len(last) % block_size
    dense = torch.nn.functional.pad(dense_mask(*visibility, window), (0, padding, 0, padding))
    blocks = dense.unflatten(1, (-1, block_size)).unflatten(0, (-1, block_size))
    built = block_mask(last, block_size, first, depths, window)

    def listed(part: str) -> torch.Tensor:
        counts, indices = (getattr(built, f"{part}_{name}")[0, 0] for name in ("num_blocks", "indices"))
        found = torch.zeros_like(blocks[:, 0, :, 0])
        for row, (count, columns) in enumerate(zip(counts.tolist(), indices.tolist(), strict=True)):
            found[row, columns[:count]] = True
        return found

    in_part, whole = listed("kv"), listed("full_kv")
    assert not (in_part & whole).any()
    assert not (blocks.any(3).any(1) & ~(in_part | whole)).any()
    assert blocks.all(3).all(1)[whole].all()


def attend(mask: BlockMask, dense: torch.Tensor, attention, atol: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, *dense.shape[:1], 2, dense.shape[-1], 16, generator=generator).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense[:, None])
    with torch.no_grad():
        torch.testing.assert_close(attention(query, key, value, block_mask=mask), expected, atol=atol, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_sdpa():
    last = pad_last([random_tree(seed, 60, 6, 20) for seed in range(2)])
    attend(block_mask(last), dense_mask(last), flex_attention, 1e-5)


@pytest.mark.long
def test_compiled_flex_attention_equals_sdpa():  # compiled code skips what the block mask leaves out
    last = pad_last([random_tree(seed, 700, 8, 150) for seed in range(2)])
    attend(block_mask(last), dense_mask(last), torch.compile(flex_attention), 1e-5)
