"""Everything of the engine that touches a device: images, prefills, steps, the KV cache, the choice of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmrole.engine.decoder import Decoder
from mmrole.engine.decoding import LeafState
from mmrole.engine.image_features import ImageFeatures
from mmrole.engine.kv_budget import FEWEST_NODES, bytes_per_position, free_positions, nodes_at_once
from mmrole.engine.kv_cache import TreeKVCache
from mmrole.engine.on_device import on_device
from mmrole.engine.paged_kv_cache import PagedKVCache, suits_pages
from mmrole.engine.planning import PlannedTree, Prompt
from mmrole.engine.sampling import Choice, Sampling, choose_tokens
from mmrole.models.families import TreeModel
from mmrole.prompt_tree import concatenate
from mmrole.prompt_tree.mask import Visibility, ancestor_rows


class Runner:
    """Computes what a batch decides. It knows rows of the KV cache and columns of leaves, no requests.

    Attributes:
        cache: keys and values of the trees of the batch.
        decoder: takes the steps.
        images: those that waiting trees show.
        nodes_at_once: of trees that a prefill reads together; a single one may have more.
    """

    def __init__(self, model: TreeModel, positions: int | None = None, paged: bool | None = None) -> None:
        """A runner whose KV cache has so many positions, by default those that there is memory for.

        Args:
            model: what computes.
            positions: of the KV cache.
            paged: whether the KV cache is paged; by default where that suits.
        """
        self.model = model
        self.positions = free_positions(model.device, bytes_per_position(model)) if positions is None else positions
        paged = suits_pages(model) if paged is None else paged
        self.cache = PagedKVCache(model, self.positions) if paged else TreeKVCache(model)
        self.decoder = Decoder(model, self.cache)
        self.images = ImageFeatures(model)
        self.nodes_at_once = nodes_at_once(model, self.positions)

    @property
    def is_full(self) -> bool:
        """Whether the KV cache has no room for another step before the next `lay_out`."""
        return self.cache.is_full

    @property
    def dtype(self) -> torch.dtype:
        """That in which the model computes."""
        return self.model.kv_shapes[0].dtype

    def has_room(self, planned: PlannedTree) -> bool:
        """Whether there is memory for one more tree."""
        return self.cache.has_room(len(planned.tree), len(planned.prompts), planned.steps)

    @on_device
    def keep(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> None:
        """Goes on with these rows of the KV cache: the row, the columns of its leaves that do, and their most steps."""
        self.cache.keep(rows)

    @on_device
    def add(self, planned: PlannedTree) -> None:
        """Makes room for one more tree, behind the rows that there are; it is to be prefilled after `lay_out`."""
        tree = planned.tree
        self.cache.add(ancestor_rows(torch.from_numpy(tree.last), torch.from_numpy(tree.leaf)), planned.steps)

    @on_device
    def lay_out(self) -> list[int]:
        """Lays the KV cache out anew.

        Returns:
            The order of the rows now: indices into the list of kept rows followed by added ones.
        """
        return self.cache.lay_out()

    @on_device
    def prefill(self, rows: Sequence[int], trees: Sequence[PlannedTree], choices: Sequence[Choice]) -> list[int]:
        """Reads the trees of some rows in one pass and chooses the first token of each of their leaves.

        Args:
            rows: of the KV cache.
            trees: theirs.
            choices: of all leaves, tree by tree.

        Returns:
            Tokens of all leaves, tree by tree, see `choose_tokens`.

        Raises:
            OSError: an image cannot be read.
        """
        forest, device = concatenate([planned.tree for planned in trees]), self.model.device
        family = self.model.family
        sizes = [len(planned.tree) for planned in trees]
        share_keys = [planned.share_key for planned in trees]
        # One for all is less to compute.
        per_node = share_keys[:1] if len(set(share_keys)) == 1 else np.repeat(share_keys, sizes)
        hidden_states = self.model.hidden_states(
            torch.from_numpy(forest.input_ids).to(device),
            torch.from_numpy(np.concatenate([planned.positions for planned in trees], axis=1)).to(device),
            torch.tensor(per_node, device=device),
            self.cache.prefill(rows, sizes, Visibility.of(forest, family.images_both_ways, family.windows)),
            self.images.shown(forest.image_keys),
        )
        logits = self.model.logits(hidden_states[torch.from_numpy(forest.leaf).to(device)])
        return choose_tokens(logits, Sampling.of(choices, self.model.vocabulary_size, 1, device)).tolist()

    @on_device
    def begin(self, leaves: Sequence[LeafState]) -> None:
        """Says where all leaves stand, row by row: before the first step after `lay_out` and prefills."""
        self.decoder.begin(leaves)

    @on_device
    def step(self, open_leaves: Sequence[int], most: int) -> list[int]:
        """One more token of each leaf, see `choose_tokens`.

        Args:
            open_leaves: indices of the leaves whose tokens count.
            most: how many steps they may take, this one included. On a GPU the next one begins before the tokens of
                this one are known.
        """
        return self.decoder.step(open_leaves, most)

    @on_device
    def drain(self) -> list[list[int]]:
        """The tokens of the steps that have begun, which `step` has not returned yet."""
        return self.decoder.drain()

    def clear(self) -> None:
        """Drops all rows of the KV cache."""
        self.decoder.drain()
        self.cache.clear()

    def has_spare_memory(self, prompt: Prompt) -> bool:
        """Whether the KV cache keeps more memory than this prompt alone needs."""
        return self.cache.has_more_than(len(prompt.sequence) + prompt.settings.max_new_tokens)

    def shrink(self, positions: int) -> None:
        """Gives back what memory the cleared KV cache still has; from now on it has so many positions."""
        self.decoder.clear()
        self.cache.shrink(positions)
        self.nodes_at_once = max(FEWEST_NODES, self.nodes_at_once // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
