"""Block-wise attention in trees against attention with the dense mask."""

import numpy as np
import pytest
import torch
from fixtures.pictured_trees import WINDOWS, mask_of_sequences, pictured_sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrole.prompt_tree import TokenSequence, build_tree, concatenate
from mmrole.prompt_tree.attention import BlockwiseAttention
from mmrole.prompt_tree.mask import Visibility, dense_mask
from mmrole.qwen_vl.attention import eager_attention_forward
from mmrole.qwen_vl.blocks import QWenAttention
from mmrole.qwen_vl.random_checkpoint import random_config, random_model

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def module() -> QWenAttention:
    """An attention module of a small model."""
    return random_model(random_config(256, visual_width=32), seed=3, dtype=torch.float64).transformer.h[0].attn


@given(sequences=SEQUENCES, block_size=st.integers(1, 12))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_outputs_and_gradients(module, sequences, block_size, attention):
    last = torch.from_numpy(build_tree([TokenSequence(np.array(sequence)) for sequence in sequences]).last)
    blocks = BlockwiseAttention(last, attention, block_size)
    assert_equal_to_dense(module, blocks, dense_mask(last))


@settings(max_examples=40)
@given(
    seeds=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=2),
    images_both_ways=st.booleans(),
    block_size=st.integers(1, 12),
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_windows_and_images_that_see_themselves_both_ways(module, seeds, images_both_ways, block_size, attention):
    """Each layer of one forward pass may have another window."""
    families = [pictured_sequences(seed) for seed in seeds]
    trees = [build_tree(sequences) for sequences in families]
    last, first, depths = Visibility.of(concatenate(trees), images_both_ways, WINDOWS)
    blocks = BlockwiseAttention(last, attention, block_size, first=first, depths=depths)
    for window in WINDOWS:
        masks = [
            mask_of_sequences(tree, sequences, images_both_ways, window)
            for tree, sequences in zip(trees, families, strict=True)
        ]
        assert_equal_to_dense(module, blocks, torch.block_diag(*masks), window)


def assert_equal_to_dense(module: QWenAttention, blocks: BlockwiseAttention, mask: Tensor, window: int = 0) -> None:
    """Outputs and gradients are those of transformers' attention with the dense mask, bool [N, N]."""
    nodes = len(mask)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, nodes, 4, dtype=torch.float64, generator=generator) for _ in range(3)]
    weights = torch.randn(1, nodes, 2, 4, dtype=torch.float64, generator=generator)
    added = torch.zeros(nodes, nodes, dtype=torch.float64).masked_fill(~mask.bool(), -torch.inf)

    def run(function):
        leaves = [state.clone().requires_grad_() for state in states]
        output = function(*leaves)
        return output, *torch.autograd.grad((output * weights).sum(), leaves)

    expected = run(lambda *leaves: eager_attention_forward(module, *leaves, added, module.scaling)[0])
    found = run(lambda *leaves: blocks.attend(0, *leaves, module.scaling, window=window))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_other_branches_and_other_trees_cost_nothing():
    """A shared beginning of 1,000 nodes with ten replies of 100, twice: far fewer scores than N²."""
    sequences = [TokenSequence(np.array([root] * 1000 + [10 + reply] * 100)) for root in (1, 2) for reply in range(10)]
    tree = build_tree(sequences)
    attention = BlockwiseAttention(torch.from_numpy(tree.last), block_size=100)
    assert attention.trees == [2000, 2000]
    scores = sum(block.mask.numel() for blocks in attention.blocks() for block in blocks)
    causal = 2 * sum(range(100, 1001, 100)) * 100
    assert scores == causal + 2 * 10 * 100 * 1100
    assert scores < len(tree) ** 2 / 4


def test_what_lies_before_a_window_costs_nothing():
    """One path of 1,000 nodes: a block of 100 queries meets itself and the 49 nodes before it, without a copy of them.

    Where a path is no longer than the window, nothing is cut again.
    """
    nodes = torch.arange(1000)
    attention = BlockwiseAttention(torch.full_like(nodes, 999), block_size=100, depths=nodes)
    (blocks,) = attention.blocks(50)
    assert [block.keys for block in blocks] == [slice(max(0, start - 49), start + 100) for start in range(0, 1000, 100)]
    (whole,) = attention.blocks()
    assert whole[0].mask is None
    assert attention.blocks(1000)[0] is whole


def test_a_window_needs_depths():
    states = torch.zeros(1, 1, 3, 2)
    with pytest.raises(ValueError, match="a window needs depths"):
        BlockwiseAttention(torch.tensor([2, 2, 2])).attend(0, states, states, states, 1.0, window=2)
