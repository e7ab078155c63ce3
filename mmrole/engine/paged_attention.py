"""Attention of the leaves of many trees to a paged KV cache: one custom operator, and what it computes in plain words.

A layer's keys and values are a pool of pages; a tree has a list of pages, and its slots are those of the first page,
then those of the second, and so on. Who sees a slot is an int64: bit i belongs to leaf i of the tree. So a slot that
several leaves share is in memory once and is read once for all of them.
"""

import torch
from torch import Tensor

from mmrole.base.triton_support import has_triton

MOST_LEAVES = 64
"""Of a tree: bits of an int64."""
PAGE_SIZE = 64
"""Slots of a page. A tile of the kernel lies in one page and has at most 64 slots; larger pages would be emptier."""


@torch.library.custom_op("mmrole::paged_tree_attention", mutates_args=())
def paged_tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    first_row: Tensor,
    leaves: Tensor,
    visible: Tensor,
    scaling: float,
    window: int = 0,
    positions: Tensor | None = None,
    slot_positions: Tensor | None = None,
) -> Tensor:
    """softmax(scaling * query @ keys^T) @ values of each leaf, as far as it sees.

    On CUDA a Triton kernel (`mmrole/engine/paged_attention_kernel.py`) that reads lengths on the device, so that a CUDA
    graph can hold it; elsewhere, and without Triton, PyTorch, tree by tree. The softmax is computed in at least
    float32. What pages hold beyond the slots that a leaf sees is never read into a result, NaN included.

    Args:
        query: [rows, heads, d], a row for each leaf; more rows are allowed.
        keys: [pages, page_size, kv_heads, d], one layer's pool, d contiguous; page_size is a power of two, at least 16,
            and heads a multiple of kv_heads.
        values: the same.
        page_table: int32 [trees, max_pages], the pages of each tree in the order of its slots.
        lengths: int32 [trees], slots in use, those of this step included; 0 where a tree is padding.
        first_row: int32 [trees]; a tree's leaves are rows `first_row` to `first_row + leaves - 1` of `query`.
        leaves: int32 [trees], at most 64 each.
        visible: int64 [trees, max_slots], bit i of a slot says whether leaf i of the tree sees it.
        scaling: factor of the scores.
        window: if not 0, a leaf sees a slot only if its position less the slot's is smaller than this.
        positions: int32 [rows], of the leaves' tokens; only with a window.
        slot_positions: int32 [trees, max_slots]; only with a window.

    Returns:
        [rows, heads, d], 0 in rows that belong to no leaf or see nothing.

    Raises:
        ValueError: a window without positions, or a page size that the kernel cannot take.
    """
    output = torch.zeros_like(query)
    wide = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // keys.shape[2]
    extents = torch.stack((lengths, first_row, leaves), dim=1).tolist()
    for tree, (length, start, count) in enumerate(extents):
        if length == 0 or count == 0:
            continue
        rows = slice(start, start + count)
        sees = (visible[tree, :length] >> torch.arange(count, device=query.device)[:, None]) & 1 == 1
        if window:
            if positions is None or slot_positions is None:
                raise ValueError("a window needs positions and slot_positions")
            sees &= positions[rows, None] - slot_positions[tree, :length] < window
        pages = page_table[tree, : -(-length // keys.shape[1])]
        key, value = (_slots(pool, pages, sees, group).to(wide) for pool in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[rows].to(wide) * scaling, key)
        weights = scores.masked_fill(~sees, -torch.inf).softmax(dim=-1)
        # A leaf that sees nothing has the softmax of nothing but minus infinity: NaN.
        output[rows] = torch.einsum("hqk,khd->qhd", weights.masked_fill(~sees, 0), value).to(query.dtype)
    return output


def _slots(pool: Tensor, pages: Tensor, sees: Tensor, group: int) -> Tensor:
    """A tree's slots [slots, heads, d]; those that no leaf sees are 0, since 0 * NaN would be NaN."""
    slots = pool[pages].flatten(0, 1)[: sees.shape[1]]
    return slots.masked_fill(~sees.any(0)[:, None, None], 0).repeat_interleave(group, dim=1)


@paged_tree_attention.register_fake
def _shape_of_output(query: Tensor, *args: object, **kwargs: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _on_cuda(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    first_row: Tensor,
    leaves: Tensor,
    visible: Tensor,
    scaling: float,
    window: int = 0,
    positions: Tensor | None = None,
    slot_positions: Tensor | None = None,
) -> Tensor:
    from mmrole.engine.paged_attention_kernel import PagedInputs, launch  # imports Triton

    inputs = PagedInputs(query, keys, values, page_table, lengths, first_row, leaves, visible)
    return launch(inputs, scaling, window, positions, slot_positions)


if has_triton():
    paged_tree_attention.register_kernel("cuda")(_on_cuda)
