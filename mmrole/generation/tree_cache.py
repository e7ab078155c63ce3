"""Keys and values of the trees that are being decoded: shared nodes once, what the leaves generate after them.

A batch row is one tree. Its slots hold the tree's nodes in depth-first order, then, step by step, one slot for each
leaf. `visible` says which slots a leaf sees: its ancestors, itself, and what it has generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mmrole.qwen_vl import QWenLMHeadModel

# Steps of decoding that fit into the memory taken at once: growing copies everything.
STEPS_AHEAD = 32


class TreeCache:
    """Memory of a batch of trees, used by the model like a transformers Cache while it decodes.

    Attributes:
        visible: bool [rows, leaves, capacity]; rows with fewer leaves are filled up with columns that see slot 0 only
            (a query that sees nothing would give NaN).
        widths: number of real leaves of each row.
        length: slots in use, the same for all rows; what a row has unused is visible to none of its leaves.
    """

    def __init__(self, model: QWenLMHeadModel) -> None:
        heads, head_dim = model.config.num_attention_heads, model.config.kv_channels
        # Per layer [rows, heads, capacity, head_dim], where that layer's weights are.
        self.keys = [block.attn.c_attn.weight.new_empty(0, heads, 0, head_dim) for block in model.transformer.h]
        self.values = [block.attn.c_attn.weight.new_empty(0, heads, 0, head_dim) for block in model.transformer.h]
        self.visible = torch.zeros(0, 0, 0, dtype=torch.bool, device=model.device)
        self.widths: list[int] = []
        self.length = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another step before the next `rebuild`."""
        leaves, capacity = self.visible.shape[1:]
        return self.length + leaves > capacity

    def get_seq_length(self) -> int:
        """Slots in use before this step."""
        return self.length

    def begin_step(self) -> Tensor:
        """Opens one more slot for each leaf; returns the step's mask, bool [rows, 1, leaves, slots]."""
        leaves = self.visible.shape[1]
        own = torch.arange(leaves, device=self.visible.device)
        self.visible[:, own, self.length + own] = own < torch.tensor(self.widths, device=own.device)[:, None]
        return self.visible[:, None, :, : self.length + leaves]

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Stores the step's [rows, heads, leaves, head_dim] and returns all slots in use."""
        stop = self.length + key.shape[2]
        self.keys[layer_idx][:, :, self.length : stop] = key
        self.values[layer_idx][:, :, self.length : stop] = value
        return self.keys[layer_idx][:, :, :stop], self.values[layer_idx][:, :, :stop]

    def end_step(self) -> None:
        """Counts the step's slots as used."""
        self.length += self.visible.shape[1]

    def rebuild(self, keep: Sequence[tuple[int, Sequence[int]]], new: Sequence[Tensor]) -> None:
        """Lays the memory out anew: kept rows with their kept leaves first, then room for new trees.

        What only dropped leaves could see is freed. Layers are moved one by one, so at most one of them exists twice.

        Args:
            keep: rows to keep, and the columns of their leaves that go on.
            new: masks of trees to add, bool [leaves, nodes]; a `RowCache` then takes in their keys and values.
        """
        old_masks = [self.visible[row, list(columns), : self.length] for row, columns in keep]
        slots = [mask.any(0).nonzero().flatten() for mask in old_masks]
        masks = [mask[:, kept] for mask, kept in zip(old_masks, slots, strict=True)] + list(new)
        lengths = [mask.shape[1] for mask in masks]
        self.widths = [mask.shape[0] for mask in masks]
        self.length = max(lengths, default=0)
        leaves = max(self.widths, default=0)
        capacity = self.length + leaves * STEPS_AHEAD
        rows = [(row, kept) for (row, _), kept in zip(keep, slots, strict=True)]
        for layers in (self.keys, self.values):
            for layer, old in enumerate(layers):
                layers[layer] = _moved(old, rows, lengths, capacity)
        self.visible = self.visible.new_zeros(len(masks), leaves, capacity)
        for row, mask in zip(self.visible, masks, strict=True):
            row[: mask.shape[0], : mask.shape[1]] = mask
            row[mask.shape[0] :, 0] = True


class RowCache(DynamicCache):
    """Takes the keys and values of one forward pass over a tree straight into its row of a TreeCache."""

    def __init__(self, memory: TreeCache, row: int) -> None:
        super().__init__()
        self._memory, self._row = memory, row

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        """Stores [1, heads, nodes, head_dim] of a layer and gives them back to be attended to."""
        nodes = key_states.shape[2]
        self._memory.keys[layer_idx][self._row, :, :nodes] = key_states[0]
        self._memory.values[layer_idx][self._row, :, :nodes] = value_states[0]
        return key_states, value_states


def _moved(old: Tensor, rows: list[tuple[int, Tensor]], lengths: list[int], capacity: int) -> Tensor:
    """One layer's [len(lengths), heads, capacity, head_dim]: the given slots of rows of `old` first.

    Slots after a row's length are zero: masked slots still enter the weighted sum with weight 0, and 0 * NaN is NaN.
    """
    memory = old.new_empty(len(lengths), old.shape[1], capacity, old.shape[3])
    for place, (row, slots) in enumerate(rows):
        memory[place, :, : len(slots)] = old[row][:, slots.to(old.device)]
    for place, length in enumerate(lengths):
        memory[place, :, length:] = 0
    return memory
