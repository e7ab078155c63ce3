"""Attention in flattened trees without an N x N mask: blocks of queries meet only the keys that one of them sees.

Training and generation share it, and any model whose attention hands over its queries, keys and values.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrole.prompt_tree.mask import ancestor_rows

# Smaller blocks compute fewer scores in vain, larger ones run faster for each score.
BLOCK_SIZE = 256


class TreeAttention(Protocol):
    """What the layers of a model hand their queries, keys and values to: it knows who sees whom."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """A layer's [1, heads, N, d] each → [1, N, heads, d]; keys and values may have fewer heads."""
        ...


class _Block(NamedTuple):
    """Queries that follow one another in a tree, the nodes that at least one of them sees, and who sees which.

    `keys` [keys] int64 (indices in the tree) is None where it would be all nodes up to the last query. `mask` is None
    where a whole tree is one block in which each node sees all before it.
    """

    queries: int
    keys: Tensor | None
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

    Equal to attention with the trees' dense mask. Scores are computed for the ancestors of each block of queries, not
    for other branches and other trees, and no mask of the whole row exists.
    """

    def __init__(
        self,
        last: Tensor,
        implementation: str = "sdpa",
        block_size: int = BLOCK_SIZE,
        device: torch.device | str | None = None,
    ) -> None:
        """Cuts a forest into trees and blocks.

        Args:
            last: [N] int64, `PromptTree.last`. In the memory of the CPU, nothing here waits for the device.
            implementation: "sdpa" or "eager".
            block_size: most queries of a block.
            device: of the queries and keys; by default that of `last`.
        """
        self._device = last.device if device is None else torch.device(device)
        self.implementation = implementation
        self.trees = _tree_lengths(last)
        self.blocks = [self._cut(tree, block_size) for tree in self._shifted(last)]

    def _cut(self, last: Tensor, block_size: int) -> list[_Block]:
        if self.implementation == "sdpa" and bool((last == len(last) - 1).all()):
            return [_Block(len(last), None, None)]  # causal without a mask is SDPA's fastest way
        return _blocks(last, block_size, self._device)

    def _shifted(self, last: Tensor) -> list[Tensor]:
        starts = np.cumsum([0, *self.trees[:-1]]).tolist()
        return [tree - start for tree, start in zip(last.split(self.trees), starts, strict=True)]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """[1, heads, N, d] each → [1, N, heads, d]; keys and values may have fewer heads. The same for every layer."""
        outputs = []
        trees = zip(*(states.split(self.trees, dim=2) for states in (query, key, value)), self.blocks, strict=True)
        for tree_query, tree_key, tree_value, blocks in trees:
            stop = 0
            for block, block_query in zip(
                blocks, tree_query.split([block.queries for block in blocks], dim=2), strict=True
            ):
                stop += block.queries
                seen = slice(stop) if block.keys is None else block.keys
                seen_key, seen_value = tree_key[:, :, seen], tree_value[:, :, seen]
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


def _blocks(last: Tensor, block_size: int, device: torch.device) -> list[_Block]:
    blocks, there = [], last.to(device, non_blocking=True)
    for start in range(0, len(last), block_size):
        stop = min(start + block_size, len(last))
        seen = last[:stop] >= start
        keys = None if bool(seen.all()) else seen.nonzero()[:, 0].to(device, non_blocking=True)
        mask = ancestor_rows(there[:stop], torch.arange(start, stop, device=device))
        blocks.append(_Block(stop - start, keys, mask if keys is None else mask[:, keys]))
    return blocks
