"""Decoding where layers have windows and images see themselves both ways: what the whole sequences would give."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fixtures.pictured_trees import mask_alone, pictured_sequences
from fixtures.windowed import WINDOW, WindowedModel, WindowedQwen, greedy_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.engine.engine import Engine
from mmrole.engine.kv_cache import TreeKVCache
from mmrole.engine.paged_kv_cache import PagedKVCache
from mmrole.models.families import KVShape
from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree, concatenate
from mmrole.prompt_tree.attention import masked_attention
from mmrole.prompt_tree.image_keys import ImagePlace, image_keys
from mmrole.prompt_tree.mask import Visibility, ancestor_rows

HEADS, KV_HEADS, SIZE, SCALING = 4, 2, 8, 0.4
STEPS, LAYINGS = 6, 3  # at the most between two layings out, and of these


class Rules(NamedTuple):
    """What a cache asks of a family."""

    windows: tuple[int, ...]


class Layers:
    """What a cache asks of a model."""

    device, attention = torch.device("cpu"), "sdpa"

    def __init__(self, windows: tuple[int, ...]) -> None:
        self.family = Rules(windows)
        self.kv_shapes = [KVShape(KV_HEADS, SIZE, torch.float64, self.device)] * len(windows)


class Path:
    """A leaf: the keys and values of all of its sequence, [layers, KV_HEADS, length, SIZE] each."""

    def __init__(self, states: Tensor) -> None:
        self.key, self.value = states

    def attend(self, layer: int, query: Tensor, window: int, mask: Tensor | None = None) -> Tensor:
        """Queries [HEADS, n, SIZE] of its last positions → [n, HEADS, SIZE], by a dense mask."""
        length, queries = self.key.shape[2], query.shape[1]
        if mask is None:
            mask = mask_alone(TokenSequence(np.zeros(length, dtype=np.int64)), False, window)[-queries:]
        key, value = self.key[layer][None], self.value[layer][None]
        return masked_attention("eager", query[None], key, value, mask, SCALING)[0]


class Decoding:
    """Trees of random keys and values in a cache; every output is held to that of the sequence alone."""

    def __init__(self, cache: TreeKVCache | PagedKVCache, windows: tuple[int, ...], seed: int) -> None:
        self.cache, self.windows = cache, windows
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: list[list[Path]] = []
        self.steps = 0

    def draw(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, dtype=torch.float64)

    def lay_out(self, kept: list[tuple[int, list[int]]], new: list[list[TokenSequence]]) -> None:
        """Goes on with these leaves of these rows, and reads trees of these sequences."""
        remaining = STEPS * LAYINGS - self.steps
        self.cache.keep([(row, columns, remaining) for row, columns in kept])
        rows: list[list[Path] | None] = [[self.rows[row][column] for column in columns] for row, columns in kept]
        trees = [build_tree(sequences) for sequences in new]
        for tree in trees:
            self.cache.add(ancestor_rows(torch.from_numpy(tree.last), torch.from_numpy(tree.leaf)), STEPS * LAYINGS)
        order = self.cache.lay_out()
        places = [order.index(len(kept) + number) for number in range(len(trees))]
        read = self.prefill(places, trees, new) if trees else []
        self.rows = [(rows + read)[index] for index in order]

    def prefill(self, places: list[int], trees: list[PromptTree], new: list[list[TokenSequence]]) -> list[list[Path]]:
        forest, sizes = concatenate(trees), [len(tree) for tree in trees]
        attention = self.cache.prefill(places, sizes, Visibility.of(forest, True, self.windows))
        query = self.draw(len(self.windows), HEADS, len(forest), SIZE)
        states = self.draw(2, len(self.windows), KV_HEADS, len(forest), SIZE)
        ends = np.cumsum([len(sequences) for sequences in new])
        sequences = [sequence for each in new for sequence in each]
        paths = [torch.from_numpy(forest.path(number)) for number in range(len(sequences))]
        leaves = [Path(states[:, :, :, path]) for path in paths]
        for layer, window in enumerate(self.windows):
            key, value = states[:, layer]
            found = attention.attend(layer, query[layer][None], key[None], value[None], SCALING, 0.0, window)[0]
            for leaf, path, sequence in zip(leaves, paths, sequences, strict=True):
                expected = leaf.attend(layer, query[layer][:, path], window, mask_alone(sequence, True, window))
                torch.testing.assert_close(found[path], expected, atol=1e-12, rtol=0)
        return [leaves[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]

    def step(self) -> None:
        """One more position of each leaf."""
        leaves = [leaf for row in self.rows for leaf in row]
        rows = len(leaves)
        if isinstance(self.cache, PagedKVCache):
            assert self.cache.tables is not None
            rows = self.cache.tables.shape.rows
        query, states = (
            self.draw(len(self.windows), HEADS, rows, SIZE),
            self.draw(2, len(self.windows), KV_HEADS, rows, SIZE),
        )
        for number, leaf in enumerate(leaves):
            own = states[:, :, :, number : number + 1]
            leaf.key, leaf.value = (torch.cat(pair, dim=2) for pair in zip((leaf.key, leaf.value), own, strict=True))
        self.cache.begin_step()
        for layer, window in enumerate(self.windows):
            key, value = states[:, layer]
            found = self.cache.attend(layer, query[layer][None], key[None], value[None], SCALING, 0.0, window)[0]
            for number, leaf in enumerate(leaves):
                expected = leaf.attend(layer, query[layer][:, number : number + 1], window)
                torch.testing.assert_close(found[number : number + 1], expected, atol=1e-12, rtol=0)
        self.cache.count_step()
        self.steps += 1


@pytest.mark.parametrize("paged", [False, True], ids=["lanes", "pages"])
@settings(max_examples=40)
@given(data=st.data())
def test_leaves_see_within_a_window_what_their_sequences_would(paged, data):
    windows = data.draw(st.sampled_from([(0, 4), (1, 9, 0), (30,), (0,)]))
    model: Any = Layers(windows)
    cache = PagedKVCache(model, 2_000, 16) if paged else TreeKVCache(model)
    decoding = Decoding(cache, windows, data.draw(st.integers(0, 1 << 30)))
    for _ in range(data.draw(st.integers(1, LAYINGS))):
        kept = [
            (row, data.draw(st.lists(st.sampled_from(range(len(leaves))), unique=True, min_size=1)))
            for row, leaves in enumerate(decoding.rows)
            if data.draw(st.booleans())
        ]
        new = [
            pictured_sequences(data.draw(st.integers(0, 1 << 30)), data.draw(st.integers(1, 5)))
            for _ in range(data.draw(st.integers(0 if kept else 1, 2)))
        ]
        decoding.lay_out(kept, new)
        for _ in range(data.draw(st.integers(1, STEPS))):
            decoding.step()


def test_pages_keep_no_positions_where_no_layer_has_a_window():
    for windows in ((0, 0), (0, 5)):
        model: Any = Layers(windows)
        cache = PagedKVCache(model, 100, 16)
        cache.lay_out()
        assert cache.tables is not None
        assert (cache.tables.positions is not None) == (cache.tables.slot_positions is not None) == any(windows)


def test_replies_are_those_of_each_request_alone(make_model, tokenizer, pictures, paged):
    """The engine: an image, a common history of more than a window, two middles, four ends; then texts alone."""
    module = make_model(torch.float64)
    family = WindowedQwen(tokenizer, module.config)
    model = WindowedModel(module, family)
    greedy = GenerationSettings(max_new_tokens=12, do_sample=False)
    history = "A long time ago, when ships were made of wood, " * 2
    texts = [f"{history}{middle}{end}" for middle in ("the sea. ", "a storm? ") for end in ("Tell me.", "Go on!")]
    requests = [
        ChatRequest(f"{image}-{text}", one_turn("Play.", image, text), greedy)
        for image in (pictures[0], None)
        for text in texts
    ]
    replies = list(Engine(model, 30_000, paged=paged).generate(iter(requests)))
    assert len(replies) == len(requests)
    expected = {}
    for request in requests:
        encoded = family.encode(request.messages)
        shown = [ImagePlace(image.spans, 1) for image in encoded.images]
        sequence = TokenSequence(encoded.input_ids, image_keys(len(encoded.input_ids), shown))
        assert len(sequence) > 2 * WINDOW
        with torch.inference_mode():
            pictured = [family.preprocess([image.image]) for image in encoded.images]
            features = model.image_features(pictured)[0] if pictured else None
        expected[request.id] = tuple(greedy_alone(model, sequence, features, 12))
    assert {reply.id: tuple(reply.token_ids) for reply in replies} == expected
