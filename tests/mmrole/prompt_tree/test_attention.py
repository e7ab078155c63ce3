"""Block-wise attention in trees against attention with the dense mask."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrole.prompt_tree import TokenSequence, build_tree
from mmrole.prompt_tree.attention import BlockwiseAttention
from mmrole.prompt_tree.mask import dense_mask
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
    tree = build_tree([TokenSequence(np.array(sequence)) for sequence in sequences])
    last = torch.from_numpy(tree.last)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, len(tree), 4, dtype=torch.float64, generator=generator) for _ in range(3)]
    weights = torch.randn(1, len(tree), 2, 4, dtype=torch.float64, generator=generator)
    mask = torch.zeros(len(tree), len(tree), dtype=torch.float64).masked_fill(~dense_mask(last), -torch.inf)

    def run(function):
        leaves = [state.clone().requires_grad_() for state in states]
        output = function(*leaves)
        return output, *torch.autograd.grad((output * weights).sum(), leaves)

    expected = run(lambda *leaves: eager_attention_forward(module, *leaves, mask, module.scaling)[0])
    found = run(lambda *leaves: BlockwiseAttention(last, attention, block_size).attend(0, *leaves, module.scaling))
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
