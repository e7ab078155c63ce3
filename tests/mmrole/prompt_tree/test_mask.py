"""Masks of prompt trees: against parent pointers, FlexAttention's own helpers and SDPA."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree
from mmrole.prompt_tree.mask import ancestor_rows, block_mask, dense_mask, mask_mod

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
