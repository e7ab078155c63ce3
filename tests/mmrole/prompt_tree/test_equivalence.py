"""A tree is the same mathematics as its sequences one by one, held to by a small transformer in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, layer_norm, scaled_dot_product_attention

from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree
from mmrole.prompt_tree.mask import ancestor_rows, dense_mask

VOCABULARY, HIDDEN, HEADS, LAYERS, IMAGE_ROWS = 23, 16, 2, 2, 4


class Transformer(torch.nn.Module):
    """Decoder with rotary positions; image positions read their own feature rows instead of the token table."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> torch.nn.Parameter:
            scale = 1 / math.sqrt(shape[-1])
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64) * scale)

        self.tokens, self.images, self.head = (weight(n, HIDDEN) for n in (VOCABULARY, 2 * IMAGE_ROWS, VOCABULARY))
        self.qkv = torch.nn.ParameterList(weight(3 * HIDDEN, HIDDEN) for _ in range(LAYERS))
        self.up = torch.nn.ParameterList(weight(4 * HIDDEN, HIDDEN) for _ in range(LAYERS))
        self.down = torch.nn.ParameterList(weight(HIDDEN, 4 * HIDDEN) for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, image_keys: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [N, HIDDEN]."""
        hidden = torch.where((image_keys < 0)[:, None], self.tokens[input_ids], self.images[image_keys.clamp(min=0)])
        for qkv, up, down in zip(self.qkv, self.up, self.down, strict=True):
            states = layer_norm(hidden, (HIDDEN,)) @ qkv.T
            query, key, value = states.view(-1, 3, HEADS, HIDDEN // HEADS).permute(1, 2, 0, 3)
            query, key = rotate(query, positions), rotate(key, positions)
            attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
            hidden = hidden + attended.transpose(0, 1).flatten(1)
            hidden = hidden + gelu(layer_norm(hidden, (HIDDEN,)) @ up.T) @ down.T
        return layer_norm(hidden, (HIDDEN,))

    def run_tree(self, tree: PromptTree) -> Tensor:
        ids, keys, depths, last = map(torch.from_numpy, (tree.input_ids, tree.image_keys, tree.depths, tree.last))
        return self(ids, keys, depths, dense_mask(last))

    def run_alone(self, sequence: TokenSequence) -> Tensor:
        length = len(sequence)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        ids, keys = torch.from_numpy(sequence.input_ids), torch.from_numpy(sequence.image_keys)
        return self(ids, keys, torch.arange(length), causal)


def rotate(states: Tensor, positions: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    angles = positions[:, None] * 100 ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = states.split(half, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


@pytest.fixture
def model() -> Transformer:
    return Transformer()


@pytest.fixture(scope="module")
def sequences() -> list[TokenSequence]:
    """Nine samples: two images, a history that grows, a duplicate, a prefix, targets that are context elsewhere."""
    random = np.random.default_rng(1)
    samples = []
    for image in range(2):
        ids = [1, 2, *[3] * IMAGE_ROWS, 4]
        keys = [-1, -1, *range(image * IMAGE_ROWS, (image + 1) * IMAGE_ROWS), -1]
        for _ in range(3):
            turn = random.integers(5, VOCABULARY, 4).tolist()
            for reply in random.integers(5, VOCABULARY, (1 + image, 5)).tolist():  # image 1: two replies to each turn
                samples.append((ids + turn + reply, keys + [-1] * 9, [False] * len(ids + turn) + [True] * 5))
            ids, keys = samples[-1][0], samples[-1][1]
    ids, keys, _ = samples[2]
    samples.append((ids, keys, [True] * len(ids)))  # all of it learned, the first token too
    samples.append((ids[:-3], keys[:-3], [False] * (len(ids) - 6) + [True] * 3))
    return [TokenSequence(ids, np.array(keys), np.array(targets)) for ids, keys, targets in samples]


def test_logits_at_every_node_equal_those_of_each_sequence_alone(model, sequences):
    tree = build_tree(sequences)
    assert tree.n_tokens > 2 * len(tree)
    logits = model.run_tree(tree) @ model.head.T
    for index, sequence in enumerate(sequences):
        alone = model.run_alone(sequence) @ model.head.T
        torch.testing.assert_close(logits[tree.path(index)], alone, atol=1e-12, rtol=0)


def test_loss_and_gradients_with_multiplicities_equal_the_sum_over_samples(model, sequences):
    tree = build_tree(sequences)
    assert set(tree.target_counts) == {1, 2, 3}
    sources, targets = torch.from_numpy(tree.parent[tree.target_nodes]), torch.from_numpy(tree.target_nodes)
    losses = cross_entropy(
        model.run_tree(tree)[sources] @ model.head.T, torch.from_numpy(tree.input_ids)[targets], reduction="none"
    )
    loss = (losses * torch.from_numpy(tree.target_counts)).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    alone = []
    for sequence in sequences:
        logits = model.run_alone(sequence) @ model.head.T
        learned = torch.from_numpy(sequence.targets[1:])
        labels = torch.from_numpy(sequence.input_ids[1:])[learned]
        alone.append(cross_entropy(logits[:-1][learned], labels, reduction="sum"))
    expected = torch.autograd.grad(sum(alone), list(model.parameters()))

    torch.testing.assert_close(loss, sum(alone), rtol=1e-12, atol=0)
    for (name, _), gradient, wanted in zip(model.named_parameters(), gradients, expected, strict=True):
        assert wanted.norm() > 0, name
        assert (gradient - wanted).norm() <= 1e-12 * wanted.norm(), name


def test_leaves_that_grow_at_the_end_of_memory_equal_longer_sequences(model, sequences):
    tree = build_tree(sequences)
    steps, n_leaves = 3, len(sequences)
    grown = np.random.default_rng(2).integers(0, VOCABULARY, (steps, n_leaves))
    last, leaf = torch.from_numpy(tree.last), torch.from_numpy(tree.leaf)
    # Memory: the nodes, then one generated token for each leaf and step.
    own = torch.eye(n_leaves, dtype=torch.bool).repeat(steps, steps) & torch.ones(
        steps, steps, dtype=torch.bool
    ).tril().repeat_interleave(n_leaves, 0).repeat_interleave(n_leaves, 1)
    nodes_do_not_see_it = torch.zeros(len(tree), steps * n_leaves, dtype=torch.bool)
    mask = torch.cat(
        [
            torch.cat([dense_mask(last), nodes_do_not_see_it], 1),
            torch.cat([ancestor_rows(last, leaf).repeat(steps, 1), own], 1),
        ]
    )
    hidden = model(
        torch.from_numpy(np.concatenate([tree.input_ids, grown.ravel()])),
        torch.from_numpy(np.concatenate([tree.image_keys, np.full(grown.size, -1)])),
        torch.from_numpy(
            np.concatenate([tree.depths, (tree.depths[tree.leaf] + np.arange(1, steps + 1)[:, None]).ravel()])
        ),
        mask,
    )
    generated = hidden[len(tree) :].view(steps, n_leaves, HIDDEN)
    for index, sequence in enumerate(sequences):
        longer = TokenSequence(
            np.concatenate([sequence.input_ids, grown[:, index]]),
            np.pad(sequence.image_keys, (0, steps), constant_values=-1),
        )
        alone = model.run_alone(longer)
        torch.testing.assert_close(generated[:, index], alone[-steps:], atol=1e-12, rtol=0)
