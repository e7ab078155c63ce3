"""Where the leaves of a step write and what they see, in tensors of a fixed shape, for a paged KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

# No tree of fewer slots has tables of its own.
LEAST_SLOTS = 1024
LEAST_ROWS = 4
# Tables that exist are used for what would need smaller ones, down to this part: a shape costs a recording.
WASTE = 4


class StepShape(NamedTuple):
    """The size of a step: padded numbers of leaves and trees, and of the slots of each tree."""

    rows: int
    trees: int
    slots: int

    def holds(self, other: StepShape) -> bool:
        """Whether a step of the other size fits."""
        return all(mine >= its for mine, its in zip(self, other, strict=True))

    @classmethod
    def of(cls, rows: int, trees: int, slots: int, known: Iterable[StepShape] = ()) -> StepShape:
        """A shape for so many leaves, trees and slots: powers of two, or a known one that is not much larger."""
        least = cls(rows, trees, slots)
        own = cls(max(_power_of_two(rows), LEAST_ROWS), _power_of_two(trees), max(_power_of_two(slots), LEAST_SLOTS))
        fitting = [shape for shape in known if shape.holds(least) and cls(*(WASTE * each for each in own)).holds(shape)]
        return min(fitting, default=own)


class TreeSlots(Protocol):
    """What the tables say of a tree."""

    @property
    def pages(self) -> Sequence[int]:
        """In the order of its slots."""
        ...

    @property
    def visible(self) -> np.ndarray:
        """int64 [slots in use], by bits, which leaves see a slot."""
        ...

    @property
    def leaves(self) -> int:
        """How many of its leaves decode."""
        ...


class PageTables:
    """Tables of a step; one tree more than the shape has is that of the rows without a leaf, whose slots are in page 0.

    Attributes:
        shape: theirs.
        page_table: int32 [trees, pages], the pages of each tree in the order of its slots; 0 behind them.
        lengths: int32 [trees], slots in use; 0 where there is no tree.
        first_row: int32 [trees], the row of a tree's first leaf; the others follow.
        leaves: int32 [trees].
        visible: int64 [trees, slots], by bits, which leaves of the tree see a slot.
        writes: int64 [rows], where in all pages together the rows of the step write.
        positions: int32 [rows], those of the tokens of the step in their sequences; None where no layer has a window.
        slot_positions: int32 [trees, slots], the same of what is in the slots.
    """

    def __init__(self, shape: StepShape, page_size: int, device: torch.device, windowed: bool = False) -> None:
        """Tables without trees; `windowed` says whether a layer has a window."""
        self.shape, self._page_size = shape, page_size
        trees, pages = shape.trees + 1, -(-shape.slots // page_size)

        def zeros(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._page_table, self._visible = zeros(trees, pages), zeros(trees, shape.slots, dtype=torch.int64)
        self._lengths, self._first_row, self._leaves = zeros(trees), zeros(trees), zeros(trees)
        self._tree, self._column = (zeros(shape.rows, dtype=torch.int64) for _ in range(2))
        self._bit, self.writes = (zeros(shape.rows, dtype=torch.int64) for _ in range(2))
        self.positions = zeros(shape.rows) if windowed else None
        self._slot_positions = zeros(trees, shape.slots) if windowed else None
        self.slot_positions = None if self._slot_positions is None else self._slot_positions[:-1]
        self.page_table, self.visible = self._page_table[:-1], self._visible[:-1]
        self.lengths, self.first_row, self.leaves = self._lengths[:-1], self._first_row[:-1], self._leaves[:-1]

    def fill(self, trees: Sequence[TreeSlots]) -> None:
        """Describes these trees, whose leaves take the rows in this order."""
        page_table = np.zeros(self._page_table.shape, dtype=np.int32)
        visible = np.zeros(self._visible.shape, dtype=np.int64)
        lengths, first_row, counts = (np.zeros(len(page_table), dtype=np.int32) for _ in range(3))
        tree_of, column = np.full(self.shape.rows, self.shape.trees), np.zeros(self.shape.rows, dtype=np.int64)
        row = 0
        for place, tree in enumerate(trees):
            pages = tree.pages[: page_table.shape[1]]  # those behind are for later steps
            page_table[place, : len(pages)] = pages
            visible[place, : len(tree.visible)] = tree.visible
            lengths[place], first_row[place], counts[place] = len(tree.visible), row, tree.leaves
            tree_of[row : row + tree.leaves] = place
            column[row : row + tree.leaves] = np.arange(tree.leaves)
            row += tree.leaves
        written = [
            (self._page_table, page_table),
            (self._visible, visible),
            (self._lengths, lengths),
            (self._first_row, first_row),
            (self._leaves, counts),
            (self._tree, tree_of),
            (self._column, column),
            (self._bit, np.left_shift(1, column)),
        ]
        if self.positions is not None and self._slot_positions is not None:
            positions, slot_positions = self._places(trees)
            written += [(self.positions, positions), (self._slot_positions, slot_positions)]
        for table, values in written:
            table.copy_(torch.from_numpy(values))

    def _places(self, trees: Sequence[TreeSlots]) -> tuple[np.ndarray, np.ndarray]:
        """What `positions` and `slot_positions` are before the next step: the slots of a leaf are its path in order."""
        positions = np.zeros(self.shape.rows, dtype=np.int32)
        slot_positions = np.zeros((self.shape.trees + 1, self.shape.slots), dtype=np.int32)
        row = 0
        for place, tree in enumerate(trees):
            for leaf in range(tree.leaves):
                path = np.flatnonzero(np.right_shift(tree.visible, leaf) & 1)
                slot_positions[place, path] = np.arange(len(path))
                positions[row] = len(path) - 1
                row += 1
        return positions, slot_positions

    def begin_step(self) -> None:
        """Opens one more slot for each leaf: behind those of its tree, in the order of its leaves."""
        slot = self._lengths.index_select(0, self._tree) + self._column
        there = self._tree * self.shape.slots + slot
        self._visible.view(-1).index_copy_(0, there, self._bit)
        if self.positions is not None and self._slot_positions is not None:
            self.positions.add_(1)
            self._slot_positions.view(-1).index_copy_(0, there, self.positions)
        place = self._tree * self._page_table.shape[1] + slot // self._page_size
        page = self._page_table.view(-1).index_select(0, place).to(torch.int64)
        torch.add(page * self._page_size, slot % self._page_size, out=self.writes)
        self._lengths.add_(self._leaves)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
