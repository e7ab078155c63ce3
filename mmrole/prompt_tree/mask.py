"""Attention masks of flattened prompt trees: dense for eager and SDPA, `mask_mod` and `block_mask` for FlexAttention.

Everything follows from `last` (`PromptTree.last`), and every function takes one tree [N] or a batch of trees [B, N],
where a padding node is its own last. True means that the query may attend to the key.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


def ancestor_rows(last: Tensor, nodes: Tensor) -> Tensor:
    """The rows of the mask that belong to the given nodes: each one's ancestors and itself.

    In decoding these are the rows of the leaves, `ancestor_rows(last, leaf)`: a leaf goes on seeing them, and to their
    right what it has generated itself.

    Args:
        last: [N] or [B, N] int64.
        nodes: [Q] or [B, Q] int64.

    Returns:
        [Q, N] or [B, Q, N] bool on the device of `last`.
    """
    keys = torch.arange(last.shape[-1], device=last.device)
    queries = nodes[..., None]
    return (keys <= queries) & (queries <= last[..., None, :])


def dense_mask(last: Tensor) -> Tensor:
    """The whole mask, [N, N] or [B, N, N] bool (query, key) on the device of `last`."""
    return ancestor_rows(last, torch.arange(last.shape[-1], device=last.device))


def mask_mod(last: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as FlexAttention's function (batch, head, query, key) -> bool.

    A tree [N] serves every batch row; of a batch [B, N] each row has its own tree.
    """
    if last.ndim == 1:
        return lambda batch, head, query, key: (key <= query) & (query <= last[key])
    return lambda batch, head, query, key: (key <= query) & (query <= last[batch, key])


def block_mask(last: Tensor, block_size: int = 128) -> BlockMask:
    """The mask in FlexAttention's block-sparse form, on the device of `last`.

    Equal to `create_block_mask(mask_mod(last), ...)`, without its N x N intermediate: a block of keys before a block of
    queries is seen if any of its subtrees reaches the first query, and seen whole if all of them reach the last one.

    Args:
        last: [N] (serves every batch row) or [B, N] int64.
        block_size: queries and keys of a block.
    """
    length = last.shape[-1]
    n_blocks = -(-length // block_size)
    padding = n_blocks * block_size - length
    blocks = torch.nn.functional.pad(last, (0, padding)).reshape(-1, 1, n_blocks, block_size)
    index = torch.arange(n_blocks, device=last.device)
    query, first_query = index[:, None], index[:, None] * block_size
    seen = (index <= query) & (blocks.amax(-1)[..., None, :] >= first_query)
    whole = (index < query) & (blocks.amin(-1)[..., None, :] >= first_query + block_size - 1)
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole),
        *_listed(whole),
        BLOCK_SIZE=block_size,
        mask_mod=mask_mod(last),
        seq_lengths=(length, length),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [B, 1, Q] and indices [B, 1, Q, K] (the true ones first, ascending) of a bool [B, 1, Q, K], int32."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), indices.int()
