"""Attention in flattened trees without an N x N mask: blocks of queries meet only the keys that one of them sees.

Training and generation share it, and any model whose attention hands over its queries, keys and values.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrole.prompt_tree.mask import Visibility, ancestor_rows

# Smaller blocks compute fewer scores in vain, larger ones run faster for each score.
BLOCK_SIZE = 256


class TreeAttention(Protocol):
    """What the layers of a model hand their queries, keys and values to: it knows who sees whom."""

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
        """A layer's [1, heads, N, d] each → [1, N, heads, d]; keys and values may have fewer heads.

        Args:
            layer: its index.
            query: of the nodes.
            key: the same.
            value: the same.
            scaling: factor of the scores.
            dropout: probability of dropping a weight.
            window: from how many positions, its own included, a node attends to; 0 where to all before it.
        """
        ...


class _Block(NamedTuple):
    """Queries that follow one another in a tree, the nodes that at least one of them sees, and who sees which.

    `keys` are indices in the tree, a slice or int64 [keys]. `mask` is None where a whole tree is one block in which
    each node sees all before it.
    """

    queries: int
    keys: slice | Tensor
    mask: Tensor | None


def masked_attention(
    implementation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scaling * query @ key^T) @ value, as far as a mask lets queries see.

    Args:
        implementation: "sdpa", or "eager", whose softmax runs in the dtype of its input.
        query: [batch, heads, queries, d].
        key: [batch, key_value_heads, keys, d], where heads is a multiple of key_value_heads; value: the same.
        mask: bool, broadcastable to [batch, heads, queries, keys]; True where a query may attend. Without one, queries
            and keys are the same positions, and attention is causal.
        scaling: factor of the scores.
        dropout: probability of dropping a weight.

    Returns:
        [batch, queries, heads, d].
    """
    grouped = query.shape[1] != key.shape[1]
    if implementation == "sdpa":
        output = F.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        return output.transpose(1, 2)
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query * scaling) @ key.transpose(2, 3)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return (F.dropout(weights, dropout) @ value).transpose(1, 2)


class BlockwiseAttention:
    """Attention of a forest of trees that lie end to end in one row.

    Equal to attention with the trees' dense mask. Scores are computed for what the queries of a block see, not for
    other branches, other trees, and what lies before a window, and no mask of the whole row exists.
    """

    def __init__(
        self,
        last: Tensor,
        implementation: str = "sdpa",
        block_size: int = BLOCK_SIZE,
        device: torch.device | str | None = None,
        *,
        first: Tensor | None = None,
        depths: Tensor | None = None,
    ) -> None:
        """Cuts a forest into trees and blocks; for layers with a window it is cut again when the first of them comes.

        Args:
            last: [N] int64, `PromptTree.last`. In the memory of the CPU, nothing here waits for the device.
            implementation: "sdpa" or "eager".
            block_size: most queries of a block.
            device: of the queries and keys; by default that of `last`.
            first: [N] int64, see `Visibility`, like `last`.
            depths: [N] int64, the same; for layers with a window.
        """
        self._device = last.device if device is None else torch.device(device)
        self.implementation, self._block_size = implementation, block_size
        self.trees = _tree_lengths(last)
        starts = np.cumsum([0, *self.trees]).tolist()
        whole = Visibility(last, first, depths)
        self._visible = [_part(whole, start, stop) for start, stop in pairwise(starts)]
        self._blocks = {0: [self._cut(tree, 0) for tree in self._visible]}

    def blocks(self, window: int = 0) -> list[list[_Block]]:
        """The blocks of each tree, in a layer with this window (0: none).

        Raises:
            ValueError: a window without depths.
        """
        if window not in self._blocks:
            before = zip(self._visible, self._blocks[0], strict=True)
            self._blocks[window] = [
                blocks if _reaches_all(tree, window) else self._cut(tree, window) for tree, blocks in before
            ]
        return self._blocks[window]

    def _cut(self, tree: Visibility, window: int) -> list[_Block]:
        if self.implementation == "sdpa" and not window and _is_causal(tree):
            return [_Block(len(tree.last), slice(None), None)]  # causal without a mask is SDPA's fastest way
        return _blocks(tree, window, self._block_size, self._device)

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
        """See `TreeAttention.attend`. The same for every layer that has the same window.

        Raises:
            ValueError: a window without depths.
        """
        outputs = []
        states = (each.split(self.trees, dim=2) for each in (query, key, value))
        for tree_query, tree_key, tree_value, blocks in zip(*states, self.blocks(window), strict=True):
            for block, block_query in zip(
                blocks, tree_query.split([block.queries for block in blocks], dim=2), strict=True
            ):
                seen_key, seen_value = tree_key[:, :, block.keys], tree_value[:, :, block.keys]
                outputs.append(
                    masked_attention(
                        self.implementation, block_query, seen_key, seen_value, block.mask, scaling, dropout
                    )
                )
        return torch.cat(outputs, dim=1)


def _tree_lengths(last: Tensor) -> list[int]:
    """Nodes of each tree of a forest."""
    ends, lengths, start = last.tolist(), [], 0
    while start < len(ends):
        lengths.append(ends[start] + 1 - start)
        start = ends[start] + 1
    return lengths


def _part(whole: Visibility, start: int, stop: int) -> Visibility:
    """Of some nodes that follow one another, counted from the first of them."""
    first, depths = (None if each is None else each[start:stop] for each in whole[1:])
    return Visibility(whole.last[start:stop] - start, None if first is None else first - start, depths)


def _is_causal(tree: Visibility) -> bool:
    """Whether each node sees all before it and none behind it."""
    nodes = len(tree.last)
    return bool((tree.last == nodes - 1).all()) and (
        tree.first is None or bool((tree.first == torch.arange(nodes)).all())
    )


def _reaches_all(tree: Visibility, window: int) -> bool:
    """Whether no path of a tree is longer than a window."""
    if tree.depths is None:
        raise ValueError("a window needs depths")
    return int(tree.depths.max()) < window


def _blocks(tree: Visibility, window: int, block_size: int, device: torch.device) -> list[_Block]:
    nodes, blocks = len(tree.last), []
    first, depths = (None if each is None else each.to(device, non_blocking=True) for each in tree[1:])
    there = Visibility(tree.last.to(device, non_blocking=True), first, depths)
    for start in range(0, nodes, block_size):
        stop = min(start + block_size, nodes)
        # An image that goes on behind the block is seen from within it.
        reach = stop if tree.first is None else int(torch.searchsorted(tree.first, stop))
        seen = tree.last[:reach] >= start
        if window and tree.depths is not None:
            seen &= tree.depths[:reach] > tree.depths[start:stop].min() - window
        keys = seen.nonzero()[:, 0]
        low = int(keys[0])
        part = _part(there, low, reach)
        mask = ancestor_rows(
            part.last, torch.arange(start - low, stop - low, device=device), part.first, part.depths, window
        )
        if len(keys) == reach - low:
            blocks.append(_Block(stop - start, slice(low, reach), mask))
        else:
            blocks.append(
                _Block(
                    stop - start,
                    keys.to(device, non_blocking=True),
                    mask[:, (keys - low).to(device, non_blocking=True)],
                )
            )
    return blocks
