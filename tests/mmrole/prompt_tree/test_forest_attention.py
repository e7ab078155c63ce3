"""The kernel for whole forests, in Triton's interpreter, against attention in blocks."""

import os

import numpy as np
import pytest
import torch
from fixtures.interpreter import INTERPRETED, run_interpreted
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrole.prompt_tree import TokenSequence, build_tree
from mmrole.prompt_tree.attention import BlockwiseAttention
from mmrole.prompt_tree.forest_attention import ForestAttention, forward_attention, seen_blocks
from mmrole.prompt_tree.mask import Visibility, dense_mask

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=8)
CPU = torch.device("cpu")


def forest(sequences: list[list[int]]) -> torch.Tensor:
    return torch.from_numpy(build_tree([TokenSequence(np.array(sequence)) for sequence in sequences]).last)


@given(sequences=SEQUENCES, query_block=st.sampled_from([1, 2, 8]), key_block=st.sampled_from([1, 4]))
def test_blocks_are_seen_where_one_of_their_nodes_is(sequences, query_block, key_block):
    last = forest(sequences)
    nodes = len(last)
    mask = torch.nn.functional.pad(dense_mask(last), (0, -nodes % key_block, 0, -nodes % query_block))
    blocks = mask.unflatten(1, (-1, key_block)).unflatten(0, (-1, query_block)).any(3).any(1)
    found = seen_blocks(last, query_block, key_block)
    assert found[blocks].all()
    # More may be listed: a subtree that reaches the queries belongs to a key behind those that see it.
    assert (found & ~blocks).sum() <= found.shape[0] * max(query_block, key_block)


def test_on_the_cpu_blocks_are_computed():
    attention = forward_attention(Visibility(forest([[1, 2], [1, 3]])), "sdpa", 16, torch.bfloat16, CPU)
    assert isinstance(attention, BlockwiseAttention)


@pytest.mark.parametrize("more", ["first", "depths"])
def test_what_the_kernel_does_not_know_is_computed_in_blocks_everywhere(more):
    visibility = Visibility(forest([[1, 2]]))._replace(**{more: torch.arange(2)})
    attention = forward_attention(visibility, "sdpa", 16, torch.bfloat16, torch.device("cuda"))
    assert isinstance(attention, BlockwiseAttention)


def test_the_kernel_refuses_windows():
    states = torch.zeros(1, 1, 2, 16)
    with pytest.raises(ValueError, match="has no window"):
        ForestAttention(forest([[1, 2]]), CPU).attend(0, states, states, states, 1.0, window=1)


@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter, see below")
@settings(max_examples=8)
@given(
    sequences=SEQUENCES,
    heads=st.sampled_from([(2, 2), (6, 2)]),
    d=st.sampled_from([16, 20]),
    blocks=st.sampled_from([(16, 16), (32, 16), (16, 32)]),
)
def test_law_equal_to_attention_in_blocks(sequences, heads, d, blocks):
    last = forest(sequences)
    generator = torch.Generator().manual_seed(len(last))
    query, key, value = (torch.randn(1, n, len(last), d, generator=generator) for n in (heads[0], heads[1], heads[1]))
    found = ForestAttention(last, CPU, *blocks).attend(0, query, key, value, d**-0.5)
    wanted = BlockwiseAttention(last, "sdpa").attend(0, query, key, value, d**-0.5)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.skipif(INTERPRETED, reason="is what runs it")
def test_the_kernel_keeps_the_law():
    run_interpreted(os.path.abspath(__file__))
