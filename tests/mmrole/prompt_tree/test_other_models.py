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
from mmrole.prompt_tree.image_keys import ImagePlace, feature_rows, image_keys

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


GRIDS = ((2, 3), (3, 2))
"""Rows and columns of the features of two images, six each."""
# Text, the number of an image, text: the first three share the image, which the last one exchanges.
SHOWN = [([1, 2, 3], 0, [4, 5]), ([1, 2, 3], 0, [4, 6, 7]), ([1, 2, 3], 0, [8]), ([1, 2, 3], 1, [4, 5])]


def with_image(before: list[int], image: int, after: list[int]) -> TokenSequence:
    """The ids of a sequence that shows an image, and the keys of its positions."""
    rows = int(np.prod(GRIDS[image]))
    ids = np.array([*before, *[0] * rows, *after])
    return TokenSequence(ids, image_keys(ids.size, [ImagePlace([(len(before), len(before) + rows)], image)]))


def multimodal_positions(before: list[int], image: int, after: list[int]) -> np.ndarray:
    """[3, length] as M-RoPE has them: an image's features differ in row and column only, and text goes on behind."""
    rows, columns = np.indices(GRIDS[image]).reshape(2, -1)
    start, end = len(before), len(before) + max(GRIDS[image])
    text = np.arange(start), np.arange(end, end + len(after))
    parts = [np.concatenate([text[0], start + own, text[1]]) for own in (np.zeros_like(rows), rows, columns)]
    return np.stack(parts)


def test_images_whose_positions_have_three_parts(model):
    sequences = [with_image(*shown) for shown in SHOWN]
    tree = build_tree(sequences)
    assert len(tree) < sum(len(sequence) for sequence in sequences) - 15
    features = torch.randn(2 * 6, 32, dtype=model.dtype)
    positions = np.zeros((3, len(tree)), int)
    for number, shown in enumerate(SHOWN):
        positions[:, tree.path(number)] = multimodal_positions(*shown)

    def states(ids: np.ndarray, keys: np.ndarray, rows: np.ndarray, **given: object) -> Tensor:
        embeddings = model.get_input_embeddings()(torch.from_numpy(ids))
        places = feature_rows(keys, {0: 6, 1: 6})
        embeddings[torch.from_numpy(places >= 0)] = features[places[places >= 0]]
        return model(inputs_embeds=embeddings[None], position_ids=torch.from_numpy(rows)[:, None], **given)[0][0]

    with torch.no_grad():
        model.set_attn_implementation("tree")
        attention = BlockwiseAttention(torch.from_numpy(tree.last), block_size=8)
        nodes = states(tree.input_ids, tree.image_keys, positions, tree=attention)
        model.set_attn_implementation("sdpa")
        for number, (shown, sequence) in enumerate(zip(SHOWN, sequences, strict=True)):
            own = states(sequence.input_ids, sequence.image_keys, multimodal_positions(*shown))
            of_logits, _ = TOLERANCES[model.dtype]
            torch.testing.assert_close(nodes[torch.from_numpy(tree.path(number))], own, atol=of_logits, rtol=0)
