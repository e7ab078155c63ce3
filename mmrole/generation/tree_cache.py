"""Keys and values of the trees that are being decoded: shared nodes once, what the leaves generate after them.

A batch row is one tree. Its slots hold the tree's nodes in depth-first order, then, step by step, one slot for each
leaf. `visible` says which slots a leaf sees: its ancestors, itself, and what it has generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Steps of decoding that fit into the memory taken at once: growing copies everything.
STEPS_AHEAD = 32


@dataclass
class TreeMemory:
    """A prefilled tree that waits to enter a batch: per layer [1, heads, nodes, d], and the leaves' masks."""

    keys: list[Tensor]
    values: list[Tensor]
    visible: Tensor  # bool [leaves, nodes]


class TreeCache:
    """Memory of a batch of trees, used by the model like a transformers Cache while it decodes.

    Attributes:
        visible: bool [rows, leaves, capacity]; rows with fewer leaves are filled up with columns that see slot 0 only
            (a query that sees nothing would give NaN).
        widths: number of real leaves of each row.
        length: slots in use, the same for all rows; what a row has unused is visible to none of its leaves.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []  # per layer [rows, heads, capacity, d]
        self.values: list[Tensor] = []
        self.visible = torch.zeros(0, 0, 0, dtype=torch.bool)
        self.widths: list[int] = []
        self.length = 0

    def get_seq_length(self) -> int:
        """Slots in use before this step."""
        return self.length

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another step before the next `rebuild`."""
        leaves, capacity = self.visible.shape[1:]
        return self.length + leaves > capacity

    def begin_step(self) -> Tensor:
        """Opens one more slot for each leaf; returns the step's mask, bool [rows, 1, leaves, slots]."""
        leaves = self.visible.shape[1]
        own = torch.arange(leaves, device=self.visible.device)
        self.visible[:, own, self.length + own] = own < torch.tensor(self.widths, device=own.device)[:, None]
        return self.visible[:, None, :, : self.length + leaves]

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Stores the step's [rows, heads, leaves, d] and returns all slots in use."""
        stop = self.length + key.shape[2]
        self.keys[layer_idx][:, :, self.length : stop] = key
        self.values[layer_idx][:, :, self.length : stop] = value
        return self.keys[layer_idx][:, :, :stop], self.values[layer_idx][:, :, :stop]

    def end_step(self) -> None:
        """Counts the step's slots as used."""
        self.length += self.visible.shape[1]

    def rebuild(self, keep: Sequence[tuple[int, Sequence[int]]], new: Sequence[TreeMemory]) -> None:
        """Lays the memory out anew: kept rows with their kept leaves first, then new trees.

        What only dropped leaves could see is freed. Tensors are taken over layer by layer (those of `new` are left
        empty), so that at most one layer exists twice.

        Args:
            keep: rows to keep, and the columns of their leaves that go on.
            new: trees to add.
        """
        old_masks = [self.visible[row, list(columns), : self.length] for row, columns in keep]
        slots = [mask.any(0).nonzero().flatten() for mask in old_masks]
        masks = [mask[:, kept] for mask, kept in zip(old_masks, slots, strict=True)] + [tree.visible for tree in new]
        self.widths = [mask.shape[0] for mask in masks]
        self.length = max((mask.shape[1] for mask in masks), default=0)
        leaves = max(self.widths, default=0)
        capacity = self.length + leaves * STEPS_AHEAD

        rows = [(row, kept) for (row, _), kept in zip(keep, slots, strict=True)]
        self.keys = _move(self.keys, rows, [tree.keys for tree in new], capacity)
        self.values = _move(self.values, rows, [tree.values for tree in new], capacity)
        device = masks[0].device if masks else self.visible.device
        self.visible = torch.zeros(len(masks), leaves, capacity, dtype=torch.bool, device=device)
        for row, mask in zip(self.visible, masks, strict=True):
            row[: mask.shape[0], : mask.shape[1]] = mask
            row[mask.shape[0] :, 0] = True


def _move(old: list[Tensor], rows: list[tuple[int, Tensor]], new: list[list[Tensor]], capacity: int) -> list[Tensor]:
    """Per layer [rows, heads, capacity, d]: the given slots of rows of `old`, then the trees of `new`; zeros after.

    Zeros, because a masked slot still enters the weighted sum with weight 0, and 0 * NaN is NaN.
    """
    moved = []
    for layer in range(len(new[0]) if new else len(old)):
        like = new[0][layer] if new else old[layer]
        memory = like.new_zeros(len(rows) + len(new), like.shape[1], capacity, like.shape[3])
        for place, (row, slots) in enumerate(rows):
            memory[place, :, : len(slots)] = old[layer][row][:, slots]
        for place, tree in enumerate(new, start=len(rows)):
            memory[place, :, : tree[layer].shape[2]] = tree[layer][0]
            tree[layer] = like.new_empty(0)
        if old:
            old[layer] = like.new_empty(0)
        moved.append(memory)
    return moved
