"""Attention masks of flattened prompt trees: dense for eager and SDPA, `mask_mod` and `block_mask` for FlexAttention.

Everything follows from `last` (`PromptTree.last`), and every function takes one tree [N] or a batch of trees [B, N],
where a padding node is its own last. True means that the query may attend to the key.

Where the rows of an image see each other both ways, `first` says which node is the first that sees each one, else each
node is its own first. In a layer with a window, a node sees only what lies fewer than so many positions before it:
`depths` (`PromptTree.depths`) are the positions, counted along the sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from mmrole.prompt_tree.image_keys import first_viewers
from mmrole.prompt_tree.tree import PromptTree


class Visibility(NamedTuple):
    """Who sees whom in a tree or forest, in the memory of the CPU.

    Node q sees node k if `first[k] <= q <= last[k]` and, in a layer with a window, `depths[q] - depths[k] < window`.

    Attributes:
        last: int64 [N], `PromptTree.last`.
        first: int64 [N], `first_viewers`; None where each node is its own.
        depths: int64 [N], `PromptTree.depths`; None where no layer has a window.
    """

    last: Tensor
    first: Tensor | None = None
    depths: Tensor | None = None

    @classmethod
    def of(cls, tree: PromptTree, images_both_ways: bool = False, windows: Sequence[int] = ()) -> Visibility:
        """That of a tree in a model, see `Family.images_both_ways` and `Family.windows`."""
        return cls(
            torch.from_numpy(tree.last),
            torch.from_numpy(first_viewers(tree.image_keys)) if images_both_ways else None,
            torch.from_numpy(tree.depths) if any(windows) else None,
        )

    @property
    def is_plain(self) -> bool:
        """Whether a node sees its ancestors and itself in every layer."""
        return self.first is None and self.depths is None


def ancestor_rows(
    last: Tensor, nodes: Tensor, first: Tensor | None = None, depths: Tensor | None = None, window: int = 0
) -> Tensor:
    """The rows of the mask that belong to the given nodes: each one's ancestors and itself.

    In decoding these are the rows of the leaves, `ancestor_rows(last, leaf)`: a leaf goes on seeing them, and to their
    right what it has generated itself.

    Args:
        last: [N] or [B, N] int64.
        nodes: [Q] or [B, Q] int64.
        first: like `last`; without it no node sees a later one.
        depths: like `last`; only with a window.
        window: 0 for none.

    Returns:
        [Q, N] or [B, Q, N] bool on the device of `last`.

    Raises:
        ValueError: a window without depths.
    """
    keys = torch.arange(last.shape[-1], device=last.device) if first is None else first[..., None, :]
    queries = nodes[..., None]
    sees = (keys <= queries) & (queries <= last[..., None, :])
    if window:
        positions = _checked(depths)
        sees &= positions.gather(-1, nodes)[..., None] - positions[..., None, :] < window
    return sees


def dense_mask(last: Tensor, first: Tensor | None = None, depths: Tensor | None = None, window: int = 0) -> Tensor:
    """The whole mask, [N, N] or [B, N, N] bool (query, key) on the device of `last`; see `ancestor_rows`."""
    nodes = torch.arange(last.shape[-1], device=last.device).expand_as(last)
    return ancestor_rows(last, nodes, first, depths, window)


def mask_mod(
    last: Tensor, first: Tensor | None = None, depths: Tensor | None = None, window: int = 0
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as FlexAttention's function (batch, head, query, key) -> bool; see `ancestor_rows`.

    A tree [N] serves every batch row; of a batch [B, N] each row has its own tree.
    """
    positions = _checked(depths) if window else last

    def of(values: Tensor, batch: Tensor, node: Tensor) -> Tensor:
        return values[node] if values.ndim == 1 else values[batch, node]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        lowest = key if first is None else of(first, batch, key)
        seen = (lowest <= query) & (query <= of(last, batch, key))
        if window:
            seen = seen & (of(positions, batch, query) - of(positions, batch, key) < window)
        return seen

    return sees


def block_mask(
    last: Tensor,
    block_size: int = 128,
    first: Tensor | None = None,
    depths: Tensor | None = None,
    window: int = 0,
) -> BlockMask:
    """The mask in FlexAttention's block-sparse form, on the device of `last`; see `ancestor_rows`.

    Without `first` and window equal to `create_block_mask(mask_mod(last), ...)`, without its N x N intermediate: a
    block of keys before a block of queries is seen if any of its subtrees reaches the first query, and seen whole if
    all of them reach the last one. With them some blocks count as seen in part which are seen whole or not at all.

    Args:
        last: [N] (serves every batch row) or [B, N] int64.
        block_size: queries and keys of a block.
        first: like `last`.
        depths: like `last`; only with a window.
        window: 0 for none.

    Raises:
        ValueError: a window without depths.
    """
    length = last.shape[-1]
    n_blocks = -(-length // block_size)
    padding = n_blocks * block_size - length

    def blocks(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, padding)).reshape(-1, 1, n_blocks, block_size)

    index = torch.arange(n_blocks, device=last.device)
    query, first_query = index[:, None], index[:, None] * block_size
    ends = blocks(last)
    if first is None:
        seen, whole = index <= query, index < query
    else:
        begins = blocks(first)
        seen = begins.amin(-1)[..., None, :] < first_query + block_size
        whole = begins.amax(-1)[..., None, :] <= first_query
    seen = seen & (ends.amax(-1)[..., None, :] >= first_query)
    whole = whole & (ends.amin(-1)[..., None, :] >= first_query + block_size - 1)
    if window:
        places = blocks(_checked(depths))
        least, most = places.amin(-1), places.amax(-1)
        seen = seen & (least[..., :, None] - most[..., None, :] < window)
        whole = whole & (most[..., :, None] - least[..., None, :] < window)
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole),
        *_listed(whole),
        BLOCK_SIZE=block_size,
        mask_mod=mask_mod(last, first, depths, window),
        seq_lengths=(length, length),
    )


def _checked(depths: Tensor | None) -> Tensor:
    if depths is None:
        raise ValueError("a window needs depths")
    return depths


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [B, 1, Q] and indices [B, 1, Q, K] (the true ones first, ascending) of a bool [B, 1, Q, K], int32."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), indices.int()
