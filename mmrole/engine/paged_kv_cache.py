"""A paged KV cache: memory for keys and values is taken once, and trees get and give back pages of it.

Nothing is ever copied. The slots of a tree are its nodes in depth-first order and then, step by step, one slot for each
leaf; its pages are listed in that order. Who sees a slot is said by bits, one for each leaf of the tree.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from mmrole.base.triton_support import can_compile, has_triton, missing_for_launchers
from mmrole.engine.kv_cache import prefill_attention
from mmrole.engine.page_tables import PageTables, StepShape
from mmrole.engine.paged_attention import PAGE_SIZE, paged_tree_attention
from mmrole.models.families import KVShape, TreeModel
from mmrole.prompt_tree.attention import TreeAttention
from mmrole.prompt_tree.mask import Visibility

# Steps that tables have room for, before they are filled anew.
STEPS_AHEAD = 128


class PagePool:
    """Keys and values of all layers, in pages.

    Page 0 belongs to nobody: what is computed for no leaf is written there.

    Attributes:
        number: no other pool of the process has it.
        keys: per layer [pages, page_size, heads, head_size].
        values: like `keys`.
        free: pages that no tree has.
    """

    _numbers = count(1)

    def __init__(self, shapes: Sequence[KVShape], pages: int, page_size: int) -> None:
        self.number = next(PagePool._numbers)
        self.pages, self.page_size = pages, page_size

        def memory(shape: KVShape) -> Tensor:
            size = pages + 1, page_size, shape.heads, shape.head_size
            return torch.empty(size, dtype=shape.dtype, device=shape.device)

        self.keys, self.values = ([memory(shape) for shape in shapes] for _ in range(2))
        self._flat = [[memory.flatten(0, 1) for memory in of_all] for of_all in (self.keys, self.values)]
        self.free = list(range(pages, 0, -1))

    def take(self, pages: int) -> list[int]:
        """So many pages."""
        taken = self.free[len(self.free) - pages :]
        del self.free[len(self.free) - pages :]
        return taken[::-1]

    def write(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Stores [1, heads, n, head_size] of a layer at places int64 [n], which count through all pages."""
        for memory, states in zip(self._flat, (key, value), strict=True):
            memory[layer].index_copy_(0, places, states[0].transpose(0, 1))


@dataclass(eq=False)
class PagedTree:
    """A tree in the cache.

    Attributes:
        pages: in the order of its slots, those to come included.
        visible: int64 [slots], by bits, which leaves see a slot; without the steps that `steps` counts.
        leaves: how many decode.
        steps: how many steps have been taken since.
    """

    pages: list[int]
    visible: np.ndarray
    leaves: int
    steps: int = 0

    @property
    def length(self) -> int:
        """Slots in use."""
        return len(self.visible) + self.steps * self.leaves

    def keep(self, columns: Sequence[int], steps: int, page_size: int) -> list[int]:
        """Goes on with some of its leaves for so many steps; returns the pages that it needs no more."""
        stepped = np.tile(np.left_shift(1, np.arange(self.leaves)), self.steps)
        before = np.concatenate((self.visible, stepped))
        visible = np.zeros_like(before)
        for column, old in enumerate(columns):
            visible |= np.left_shift(np.right_shift(before, old) & 1, column)
        # Whole pages that nobody sees leave the list, and their slots the tree. The last page has room for what comes.
        whole = len(visible) // page_size
        seen = np.bitwise_or.reduce(visible[: whole * page_size].reshape(whole, page_size), axis=1) != 0
        in_use = np.repeat(np.append(seen, True), page_size)[: len(visible)]
        self.visible, self.leaves, self.steps = visible[in_use], len(columns), 0
        pages = [page for page, kept in zip(self.pages, seen.tolist(), strict=False) if kept] + self.pages[whole:]
        kept = pages[: pages_for(self.length + self.leaves * steps, page_size)]
        dropped = set(self.pages) - set(kept)
        self.pages = kept
        return sorted(dropped)


class PagedKVCache:
    """KV cache of a batch of trees in pages; the model's attention goes through it while it decodes.

    Attributes:
        trees: of the batch; the row of a tree is its place here.
        tables: of the next step; None before the first `lay_out`.
        pool: None until the first tree enters.
    """

    def __init__(self, model: TreeModel, positions: int, page_size: int = PAGE_SIZE) -> None:
        """A cache without memory as yet, which it takes for so many positions, or for a single tree that has more."""
        self.model, self.page_size = model, page_size
        self.positions = positions
        self._windowed = any(model.family.windows)
        self.trees: list[PagedTree] = []
        self.pool: PagePool | None = None
        self.tables: PageTables | None = None
        self._tables: dict[StepShape, PageTables] = {}
        self._steps = self._ahead = 0

    @property
    def leaves(self) -> list[int]:
        """How many leaves decode, tree by tree."""
        return [tree.leaves for tree in self.trees]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another step before the next `lay_out`."""
        return self._steps == STEPS_AHEAD

    def has_room(self, nodes: int, leaves: int, steps: int) -> bool:
        """Whether there are pages for one more tree of so many nodes, whose leaves take so many steps."""
        free = pages_for(self.positions, self.page_size) if self.pool is None else len(self.pool.free)
        return pages_for(nodes + leaves * steps, self.page_size) <= free

    def keep(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> None:
        """Goes on with these trees, which are the first rows from now on; all that only others need is free.

        Args:
            rows: the row of a tree, the columns of its leaves that go on, and how many steps they take at most.
        """
        kept = []
        for row, columns, steps in rows:
            self._give(self.trees[row].keep(columns, steps, self.page_size))
            kept.append(self.trees[row])
        for tree in self.trees:
            if tree not in kept:
                self._give(tree.pages)
        self.trees = kept
        self._ahead = max((steps for _, _, steps in rows), default=0)

    def add(self, mask: Tensor, steps: int) -> None:
        """Takes pages for one more tree, whose leaves see nodes as in `mask`, bool [leaves, nodes] on the CPU.

        Raises:
            torch.OutOfMemoryError: there is not enough memory for it alone.
        """
        leaves, nodes = mask.shape
        pages = pages_for(nodes + leaves * steps, self.page_size)
        if self.pool is None or (not self.trees and pages > self.pool.pages):
            self.pool = None
            self.pool = self._take_memory(pages)
        bits = np.left_shift(1, np.arange(leaves))
        visible = np.where(mask.numpy(), bits[:, None], 0).sum(axis=0)
        self.trees.append(PagedTree(self.pool.take(pages), visible, leaves))
        self._ahead = max(self._ahead, steps)

    def lay_out(self) -> list[int]:
        """Describes the trees to the next steps; returns the order of the rows, which stays."""
        self._steps = 0
        ahead = min(self._ahead, STEPS_AHEAD)
        slots = max((tree.length + tree.leaves * ahead for tree in self.trees), default=1)
        shape = StepShape.of(max(1, sum(self.leaves)), max(1, len(self.trees)), slots, self._tables)
        if shape not in self._tables:
            self._tables[shape] = PageTables(shape, self.page_size, self.model.device, self._windowed)
        self.tables = self._tables[shape]
        self.tables.fill(self.trees)
        return list(range(len(self.trees)))

    def prefill(self, rows: Sequence[int], sizes: Sequence[int], visibility: Visibility) -> PagedPrefill:
        """For the pass that reads the trees of some rows, which have so many nodes, as the forest that they are."""
        assert self.pool is not None
        places = [self._places(row, size) for row, size in zip(rows, sizes, strict=True)]
        there = torch.from_numpy(np.concatenate(places)).to(self.model.device)
        return PagedPrefill(self.pool, there, prefill_attention(self.model, visibility))

    def begin_step(self) -> None:
        """Opens one more slot for each leaf."""
        self._at_work[1].begin_step()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        dropout: float = 0.0,
        window: int = 0,
    ) -> Tensor:
        """One layer's attention, see `TreeAttention.attend`; the nodes are the rows of the step."""
        pool, tables = self._at_work
        pool.write(layer, tables.writes, key, value)
        output = paged_tree_attention(
            query[0].transpose(0, 1),
            pool.keys[layer],
            pool.values[layer],
            tables.page_table,
            tables.lengths,
            tables.first_row,
            tables.leaves,
            tables.visible,
            scaling,
            window,
            tables.positions if window else None,
            tables.slot_positions if window else None,
        )
        return output[None]

    def count_step(self) -> None:
        """Counts the slots of a step as used."""
        self._steps += 1
        for tree in self.trees:
            tree.steps += 1

    def clear(self) -> None:
        """Drops all trees. Their memory stays, for others."""
        self.keep([])

    def has_more_than(self, slots: int) -> bool:
        """Whether it has memory for more than so many slots of one tree."""
        return self.pool is not None and self.pool.pages > pages_for(slots, self.page_size)

    def shrink(self, positions: int) -> None:
        """Gives all memory back; from now on it is taken for so many positions. There is no tree."""
        self.positions, self.pool, self.tables, self._tables = positions, None, None, {}

    @property
    def _at_work(self) -> tuple[PagePool, PageTables]:
        assert self.pool is not None
        assert self.tables is not None
        return self.pool, self.tables

    def _places(self, row: int, nodes: int) -> np.ndarray:
        """Where the nodes of a row's tree lie in all pages together, int64 [nodes]."""
        slots = np.arange(nodes)
        return np.array(self.trees[row].pages)[slots // self.page_size] * self.page_size + slots % self.page_size

    def _give(self, pages: Sequence[int]) -> None:
        if self.pool is not None:
            self.pool.free.extend(reversed(pages))

    def _take_memory(self, needed: int) -> PagePool:
        """Memory for all positions, or for as many of them as there is, but for so many pages at the least."""
        pages = max(needed, pages_for(self.positions, self.page_size))
        while True:
            try:
                return PagePool(self.model.kv_shapes, pages, self.page_size)
            except torch.OutOfMemoryError:
                if pages == needed:
                    raise
                pages = max(needed, pages // 2)


class PagedPrefill:
    """Attention of one forward pass over trees, whose keys and values go straight into their pages."""

    def __init__(self, pool: PagePool, places: Tensor, attention: TreeAttention) -> None:
        self._pool, self._places, self._attention = pool, places, attention

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        dropout: float = 0.0,
        window: int = 0,
    ) -> Tensor:
        """Stores [1, heads, nodes, head_size] of a layer; each node attends to what it sees."""
        self._pool.write(layer, self._places, key, value)
        return self._attention.attend(layer, query, key, value, scaling, dropout, window)


def suits_pages(model: TreeModel) -> bool:
    """Whether a model's keys and values lie in pages: on a GPU, where Triton can attend to them.

    A line says why, where they do not on a GPU.
    """
    if model.device.type != "cuda":
        return False
    wide = any(shape.dtype == torch.float64 for shape in model.kv_shapes)
    if can_compile() and not wide:
        return True
    reason = "float64 has no kernel" if wide else missing_for_launchers() if has_triton() else "Triton is not installed"
    warnings.warn(f"decoding without CUDA graphs, which is slower: {reason}", stacklevel=2)
    return False


def pages_for(slots: int, page_size: int) -> int:
    """Pages that so many slots need."""
    return -(-slots // page_size)
