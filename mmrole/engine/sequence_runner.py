"""The engine's work on a device with a model that cannot read prompt trees: sequences one by one, each with its cache.

It has the interface of `Runner`. Each row is a tree of one leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrole.engine.decoding import LeafState
from mmrole.engine.image_features import ImageFeatures
from mmrole.engine.kv_budget import free_positions
from mmrole.engine.on_device import on_device
from mmrole.engine.planning import PlannedTree, Prompt
from mmrole.engine.sampling import Choice, Sampling, choose_tokens
from mmrole.models.families import SequenceModel

if TYPE_CHECKING:
    from transformers import Cache

# Whose uniform numbers are drawn at once.
STEPS_AHEAD = 128


@dataclass(eq=False)
class _Sequence:
    """One that is being decoded: what has been read of it, and how many positions it may come to have."""

    cache: Cache
    slots: int


class SequenceRunner:
    """Computes what a batch decides, sequence by sequence.

    Attributes:
        images: those that waiting sequences show.
        positions: that the caches may have together.
        nodes_at_once: 1: sequences are prefilled one by one.
    """

    def __init__(self, model: SequenceModel, positions: int | None = None) -> None:
        """A runner whose caches may have so many positions, by default those that there is memory for."""
        self.model = model
        self.images = ImageFeatures(model)
        self.nodes_at_once = 1
        state, each = self._bytes()
        self.positions = free_positions(model.device, each) if positions is None else positions
        self._state_slots = -(-state // each)
        self._rows: list[_Sequence] = []
        self._steps_left = 0
        self._tokens = self._positions = torch.zeros(0, dtype=torch.int64)
        self._sampling: Sampling | None = None

    @property
    def is_full(self) -> bool:
        """Whether numbers must be drawn anew before the next step."""
        return self._steps_left == 0

    @property
    def dtype(self) -> torch.dtype:
        """That in which the model computes."""
        return self.model.kv_shapes[0].dtype

    def has_room(self, planned: PlannedTree) -> bool:
        """Whether there is memory for one more sequence, with what its cache has besides its positions."""
        slots = [*(row.slots for row in self._rows), planned.slots]
        return sum(slots) + len(slots) * self._state_slots <= self.positions

    def keep(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> None:
        """Goes on with these rows: the row, the column of its leaf, its most steps."""
        self._rows = [self._rows[row] for row, _, _ in rows]

    def add(self, planned: PlannedTree) -> None:
        """One more sequence, behind the rows that there are."""
        self._rows.append(_Sequence(self.model.new_cache(), planned.slots))

    def lay_out(self) -> list[int]:
        """See `Runner.lay_out`: the order stays as it is."""
        return list(range(len(self._rows)))

    @on_device
    def prefill(self, rows: Sequence[int], trees: Sequence[PlannedTree], choices: Sequence[Choice]) -> list[int]:
        """See `Runner.prefill`.

        Raises:
            OSError: an image cannot be read.
        """
        device, last = self.model.device, []
        for row, planned in zip(rows, trees, strict=True):
            tree = planned.tree
            hidden_states = self.model.read_on(
                torch.from_numpy(tree.input_ids).to(device),
                torch.from_numpy(planned.positions).to(device),
                self._rows[row].cache,
                self.images.shown(tree.image_keys),
            )
            last.append(hidden_states[-1:])
        logits = self.model.logits(torch.cat(last))
        return choose_tokens(logits, Sampling.of(choices, self.model.vocabulary_size, 1, device)).tolist()

    @on_device
    def begin(self, leaves: Sequence[LeafState]) -> None:
        """Says where all sequences stand: before the first step after `lay_out` and prefills."""
        device = self.model.device
        self._tokens = torch.tensor([leaf.token for leaf in leaves], device=device)
        self._positions = torch.tensor([leaf.position for leaf in leaves], device=device)
        choices = [leaf.choice for leaf in leaves]
        self._sampling = Sampling.of(choices, self.model.vocabulary_size, STEPS_AHEAD, device)
        self._steps_left = STEPS_AHEAD

    @on_device
    def step(self, open_leaves: Sequence[int], most: int) -> list[int]:
        """One more token of each open leaf, see `Runner.step`."""
        assert self._sampling is not None
        logits = torch.cat([self.model.logits(self._read_last(row)) for row in open_leaves])
        rows = torch.tensor(open_leaves, device=logits.device)
        chosen = self._tokens.index_copy(0, rows, choose_tokens(logits, self._sampling.rows(rows)))
        self._tokens = chosen.clamp(min=0)
        self._positions += 1
        self._sampling.take(self._tokens)
        self._steps_left -= 1
        return chosen.tolist()

    def drain(self) -> list[list[int]]:
        """Nothing: no step is under way while the tokens of the one before are looked at."""
        return []

    def clear(self) -> None:
        """Drops all rows."""
        self._rows = []
        self._steps_left = 0

    def has_spare_memory(self, prompt: Prompt) -> bool:
        """False: no memory is kept beyond what the rows need."""
        return False

    def shrink(self, positions: int) -> None:
        """From now on the caches have so many positions."""
        self.positions = positions
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _read_last(self, row: int) -> Tensor:
        """The hidden state [1, hidden_size] of the last token of a row, which is read."""
        places = self._positions[row].expand(self.model.family.position_rows, 1)
        return self.model.read_on(self._tokens[row : row + 1], places, self._rows[row].cache)

    @on_device
    def _bytes(self) -> tuple[int, int]:
        """What a cache takes besides its positions, such as a recurrent state, and for each position, at least 1."""
        cache, sizes = self.model.new_cache(), []
        token = torch.zeros(1, dtype=torch.int64, device=self.model.device)
        for place in range(2):
            self.model.read_on(token, token.expand(self.model.family.position_rows, 1) + place, cache)
            sizes.append(self.model.cache_bytes(cache))
        first, second = sizes
        return max(0, 2 * first - second), max(1, second - first)
