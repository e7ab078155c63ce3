"""The Triton kernel behind `mmrole.prompt_tree.forest_attention`: flash attention whose blocks of keys are listed."""

# Triton types a kernel as the Python function it is written as: without the launch's options, with constexpr objects.
# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST = tl.constexpr(-1.0e30)  # finite: the maximum of nothing, less itself, is 0 and not NaN


@triton.jit(do_not_specialize=["nodes", "most_blocks"])
def _forest(
    query,
    key,
    value,
    last,
    blocks,
    counts,
    output,
    scaling,
    nodes,
    most_blocks,
    query_head,
    query_row,
    key_head,
    key_row,
    value_head,
    value_row,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # those that see most begin first
    head = tl.program_id(1)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    dims = tl.arange(0, WIDTH)
    in_block = tl.arange(0, KEYS)
    q = tl.load(
        query + head.to(tl.int64) * query_head + rows.to(tl.int64)[:, None] * query_row + dims[None, :],
        mask=(rows < nodes)[:, None] & (dims < D)[None, :],
        other=0.0,
    )
    key_dims = key + (head // GROUP).to(tl.int64) * key_head + dims[None, :]
    value_dims = value + (head // GROUP).to(tl.int64) * value_head + dims[None, :]
    maximum = tl.full([QUERIES], _LEAST, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, WIDTH], tl.float32)
    count = tl.load(counts + block)
    listed = blocks + block * most_blocks
    # The number of the next block and its subtrees' ends are fetched while this one is computed.
    start = tl.load(listed) * KEYS
    ends = tl.load(last + start + in_block, mask=start + in_block < nodes, other=-1)
    for place in range(count):
        columns = start + in_block
        there = (columns < nodes)[:, None]
        sees = (columns[None, :] <= rows[:, None]) & (rows[:, None] <= ends[None, :])
        start = tl.load(listed + place + 1, mask=place + 1 < count, other=0) * KEYS
        ends = tl.load(last + start + in_block, mask=start + in_block < nodes, other=-1)
        if D != WIDTH:
            there = there & (dims < D)[None, :]
        offsets = columns.to(tl.int64)[:, None]
        k = tl.load(key_dims + offsets * key_row, mask=there, other=0.0)
        scores = tl.where(sees, tl.dot(q, tl.trans(k), input_precision="ieee") * scaling, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))
        shrink = tl.exp2(maximum - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(value_dims + offsets * value_row, mask=there, other=0.0)
        result = tl.dot(weights.to(v.dtype), v, result * shrink[:, None], input_precision="ieee")
        maximum = higher
    result = result / total[:, None]  # every node sees itself
    tl.store(
        output + (rows.to(tl.int64) * tl.num_programs(1) + head)[:, None] * D + dims[None, :],
        result.to(output.dtype.element_ty),
        mask=(rows < nodes)[:, None] & (dims < D)[None, :],
    )


def attend_forest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: tuple[Tensor, Tensor, Tensor],
    scaling: float,
    query_block: int,
    key_block: int,
) -> Tensor:
    """[heads, N, d] each → [N, heads, d]; keys and values may have fewer heads.

    Args:
        query: with contiguous d, like key and value.
        key: see there.
        value: see there.
        lists: int32: `PromptTree.last` [N]; for each block of queries the blocks of keys that it meets, the true ones
            first; and how many those are.
        scaling: factor of the scores.
        query_block: queries of a block.
        key_block: keys of a block.
    """
    last, blocks, counts = lists
    heads, nodes, d = query.shape
    output = torch.empty((nodes, heads, d), dtype=query.dtype, device=query.device)
    _forest[len(counts), heads](
        query,
        key,
        value,
        last,
        blocks,
        counts,
        output,
        scaling * math.log2(math.e),
        nodes,
        blocks.shape[1],
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        GROUP=heads // len(key),
        D=d,
        WIDTH=max(16, triton.next_power_of_2(d)),
        QUERIES=query_block,
        KEYS=key_block,
        num_warps=8 if query_block >= 128 else 4,
        num_stages=3 if key_block <= 64 else 2,
    )
    return output
