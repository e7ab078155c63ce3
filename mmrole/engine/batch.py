"""Trees that are decoded together: their leaves, what comes next, and the room that finished leaves give back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmrole.engine.decoding import LeafState
from mmrole.engine.planning import PlannedTree, Prompt
from mmrole.engine.runner import Runner
from mmrole.engine.sampling import NOT_A_NUMBER, Choice, Draws
from mmrole.engine.sequence_runner import SequenceRunner

# Rebuilding the KV cache copies it once, about the cost of a step: worth it when so many leaves have finished.
REBUILD_SHARE = 0.25


@dataclass(eq=False)
class Leaf:
    """A reply in the making: the tokens chosen so far, without the stop token."""

    prompt: Prompt
    draws: Draws
    first_position: int
    """Of the first token of the reply."""
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False
    cancelled: bool = False
    seen: list[int] = field(default_factory=list)
    """Tokens of prompt and reply, each once, where a setting looks back."""

    @property
    def looks_back(self) -> bool:
        """Whether what was said before counts in the choice of a token."""
        return self.prompt.settings.repetition_penalty != 1

    @property
    def remaining(self) -> int:
        """Most tokens that are still to be generated."""
        if self.stopped or self.cancelled:
            return 0
        return self.prompt.settings.max_new_tokens - len(self.tokens)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to generate."""
        return self.remaining <= 0

    @property
    def choice(self) -> Choice:
        """How its next tokens are chosen."""
        return Choice(self.prompt.settings, self.draws, len(self.tokens), self.seen)

    def state(self, share_key: int) -> LeafState:
        """Where it stands before a step, as a leaf of a tree with this key."""
        token = 0 if self.finished else self.tokens[-1]
        return LeafState(token, self.first_position + len(self.tokens) - 1, share_key, self.choice)

    def take(self, token: int, stop_ids: frozenset[int]) -> None:
        """Goes on with a token, or ends."""
        if token in stop_ids:
            self.stopped = True
            return
        self.tokens.append(token)
        if self.looks_back:
            self.seen.append(token)


@dataclass(eq=False)
class Row:
    """A tree in the batch; the place of a leaf in the list is its column in the KV cache."""

    planned: PlannedTree
    leaves: list[Leaf]

    @classmethod
    def of(cls, planned: PlannedTree) -> Row:
        """The tree with replies that have no tokens yet."""
        lasts = planned.positions[:, planned.tree.leaf].max(axis=0).tolist()
        leaves = []
        for prompt, last in zip(planned.prompts, lasts, strict=True):
            leaf = Leaf(prompt, Draws(prompt.request.random_stream()), last + 1)
            if leaf.looks_back:
                leaf.seen = np.unique(prompt.sequence.input_ids).tolist()
            leaves.append(leaf)
        return cls(planned, leaves)

    @property
    def open_leaves(self) -> list[int]:
        """Columns of the leaves that go on."""
        return [column for column, leaf in enumerate(self.leaves) if not leaf.finished]

    @property
    def remaining(self) -> int:
        """Most tokens that one of its leaves is still to generate."""
        return max(leaf.remaining for leaf in self.leaves)

    @property
    def slots(self) -> int:
        """Slots that the row may come to hold."""
        return len(self.planned.tree) + sum(self.leaves[i].prompt.settings.max_new_tokens for i in self.open_leaves)


class Batch:
    """Decodes the leaves of several trees in step.

    Attributes:
        rows: the trees that take part in the next step.
        finished: leaves that are complete; the owner of the batch takes them out.
    """

    def __init__(self, runner: Runner | SequenceRunner, stop_ids: frozenset[int]) -> None:
        self.runner, self.stop_ids = runner, stop_ids
        self.rows: list[Row] = []
        self.finished: list[Leaf] = []
        self._begun = False

    @property
    def needs_rebuild(self) -> bool:
        """Whether the KV cache is full or many of its leaves have finished (always true of an empty batch)."""
        if self.runner.is_full:
            return True
        leaves = [leaf for row in self.rows for leaf in row.leaves]
        return sum(not leaf.finished for leaf in leaves) <= (1 - REBUILD_SHARE) * len(leaves)

    def has_room(self, planned: PlannedTree, max_tokens: int) -> bool:
        """Whether the batch may take this tree as well, if all rows may come to hold so many slots."""
        if not self.rows:
            return True
        slots = sum(row.slots for row in self.rows) + planned.slots
        return slots <= max_tokens and self.runner.has_room(planned)

    def rebuild(self, waiting: deque[PlannedTree], max_tokens: int) -> list[PlannedTree]:
        """Frees what finished leaves held and makes room for waiting trees, which are to be prefilled in this order.

        Args:
            waiting: trees in the order in which they are to be taken; taken ones are removed.
            max_tokens: slots that all rows may come to hold. A single tree is always taken.
        """
        for tokens in self.runner.drain():
            self._take_open(tokens)
        keep = [(place, row.open_leaves, row.remaining) for place, row in enumerate(self.rows) if row.open_leaves]
        self.rows = [
            Row(self.rows[place].planned, [self.rows[place].leaves[i] for i in kept]) for place, kept, _ in keep
        ]
        self.runner.keep(keep)
        entering = []
        while waiting and self.has_room(waiting[0], max_tokens):
            entering.append(waiting.popleft())
            self.rows.append(Row.of(entering[-1]))
            self.runner.add(entering[-1])
        order = self.runner.lay_out()
        self.rows = [self.rows[index] for index in order]
        self._begun = False
        return entering

    def prefill(self, trees: Sequence[PlannedTree]) -> None:
        """Reads trees of the batch in one pass and chooses the first token of each of their leaves.

        Raises:
            OSError: an image cannot be read.
            FloatingPointError: the model computes NaN.
        """
        places = {id(row.planned): place for place, row in enumerate(self.rows)}
        rows = [places[id(planned)] for planned in trees]
        leaves = [leaf for row in rows for leaf in self.rows[row].leaves]
        self._take(leaves, self.runner.prefill(rows, trees, [leaf.choice for leaf in leaves]))

    def step(self) -> None:
        """Generates one token for each open leaf.

        Raises:
            FloatingPointError: the model computes NaN.
        """
        leaves = [(row, leaf) for row in self.rows for leaf in row.leaves]
        open_places = [place for place, (_, leaf) in enumerate(leaves) if not leaf.finished]
        if not open_places:  # all of them have ended with their first token
            return
        if not self._begun:
            self.runner.begin([leaf.state(row.planned.share_key) for row, leaf in leaves])
            self._begun = True
        # A finished leaf keeps its place until the next rebuild; what is computed there is thrown away.
        self._take_open(self.runner.step(open_places, max(row.remaining for row in self.rows)))

    def clear(self) -> list[list[Prompt]]:
        """Drops all trees; returns the prompts of each that were not finished."""
        prompts = [[row.leaves[column].prompt for column in row.open_leaves] for row in self.rows]
        self.rows = []
        self.runner.clear()
        return [of_tree for of_tree in prompts if of_tree]

    def _take_open(self, tokens: Sequence[int]) -> None:
        """Takes the tokens of all leaves, row by row, where they count."""
        leaves = [leaf for row in self.rows for leaf in row.leaves]
        chosen = [(leaf, token) for leaf, token in zip(leaves, tokens, strict=True) if not leaf.finished]
        self._take([leaf for leaf, _ in chosen], [token for _, token in chosen])

    def _take(self, leaves: Sequence[Leaf], tokens: Sequence[int]) -> None:
        for leaf, token in zip(leaves, tokens, strict=True):
            if token == NOT_A_NUMBER:
                raise FloatingPointError(
                    f"request {leaf.prompt.request.id!r}: the model computes NaN; try another dtype than "
                    f"{self.runner.dtype}"
                )
        for leaf, token in zip(leaves, tokens, strict=True):
            leaf.take(token, self.stop_ids)
            if leaf.finished:
                self.finished.append(leaf)
