"""Trees inside a model that is not Qwen-VL: the text model of Qwen2.5-VL, with its grouped heads and M-RoPE.

An attention function registered with transformers asks the tree; the model's code stays as it is.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree
from mmrole.prompt_tree.attention import BlockwiseAttention

VOCABULARY = 50
# Two branches from the root, one that forks again, a sequence that ends inside another, and two equal ones.
SEQUENCES = [[1, *range(2, 30), *tail] for tail in ([31, 32, 33], [31, 32, 40, 41], [35] * 9, [31, 32], [31, 32])]
# Of logits, and relative of gradients: norms and rotary tables are computed in float32 there, whatever the dtype.
TOLERANCES = {torch.float64: (1e-9, 1e-6), torch.float32: (5e-5, 5e-5)}


@pytest.fixture(scope="module", autouse=True)
def attention_of_trees() -> Iterator[None]:
    """While these tests run, the attention "tree" is known."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **given) -> tuple:
        assert mask is None, "no mask of all positions exists"
        tree: BlockwiseAttention = given["tree"]
        return tree.attend(module.layer_idx, query, key, value, given["scaling"], given["dropout"]), None

    ALL_ATTENTION_FUNCTIONS["tree"] = attend
    yield
    del ALL_ATTENTION_FUNCTIONS["tree"]


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def model(request) -> Qwen2_5_VLTextModel:
    """Four heads of queries to two of keys and values; rotary positions in three parts."""
    torch.manual_seed(0)
    config = Qwen2_5_VLTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0},
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2_5_VLTextModel(config).to(request.param).eval()


def hidden_states(model: nn.Module, ids: np.ndarray, positions: np.ndarray, **given: object) -> Tensor:
    """[N, hidden_size]; the positions of text are the same in all three parts."""
    rows = torch.from_numpy(positions).expand(3, 1, -1)
    return model(input_ids=torch.from_numpy(ids)[None], position_ids=rows, **given).last_hidden_state[0]


def in_a_tree(model: nn.Module, tree: PromptTree) -> list[Tensor]:
    """The hidden states of each sequence."""
    model.set_attn_implementation("tree")
    attention = BlockwiseAttention(torch.from_numpy(tree.last), block_size=8)
    nodes = hidden_states(model, tree.input_ids, tree.depths, tree=attention)
    return [nodes[torch.from_numpy(tree.path(sequence))] for sequence in range(len(tree.leaf))]


def alone(model: nn.Module, sequence: list[int]) -> Tensor:
    """The hidden states of a sequence by transformers' own attention."""
    model.set_attn_implementation("sdpa")
    return hidden_states(model, np.array(sequence), np.arange(len(sequence)))


def test_logits_and_gradients_are_those_of_each_sequence_alone(model):
    of_logits, of_gradients = TOLERANCES[model.dtype]
    head = torch.randn(VOCABULARY, 32, dtype=model.dtype)
    tree = build_tree([TokenSequence(np.array(sequence)) for sequence in SEQUENCES])
    assert len(tree) < sum(map(len, SEQUENCES)) / 3

    def loss(states: list[Tensor]) -> Tensor:
        losses = (
            nn.functional.cross_entropy(each[:-1] @ head.T, torch.tensor(sequence[1:]), reduction="sum")
            for each, sequence in zip(states, SEQUENCES, strict=True)
        )
        return sum(losses)

    found = in_a_tree(model, tree)
    gradients = torch.autograd.grad(loss(found), list(model.parameters()))
    expected = [alone(model, sequence) for sequence in SEQUENCES]
    own = torch.autograd.grad(loss(expected), list(model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours @ head.T, theirs @ head.T, atol=of_logits, rtol=0)
    for (name, _), ours, theirs in zip(model.named_parameters(), gradients, own, strict=True):
        assert (ours - theirs).norm() <= of_gradients * theirs.norm(), name


def test_without_the_tree_they_would_differ(model):
    tree = build_tree([TokenSequence(np.array(sequence)) for sequence in SEQUENCES])
    model.set_attn_implementation("sdpa")
    nodes = hidden_states(model, tree.input_ids, tree.depths)
    last = nodes[torch.from_numpy(tree.path(1))[-1]]
    assert (last - alone(model, SEQUENCES[1])[-1]).abs().max() > 1e-2
