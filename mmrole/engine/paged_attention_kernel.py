"""The Triton kernel behind `mmrole.engine.paged_attention`: partial results over runs of slots, then their sum.

A program of the first kernel takes a tree, a head of keys, a tile of (leaf, head of queries) pairs that use it, and a
run of the tree's slots. It keeps a running maximum m, the sum l of exp(score - m) and the values weighted with these;
the second kernel brings the runs of a row to the same maximum and adds them. The grid follows from shapes alone;
lengths are read on the device, and programs without work end at once.
"""

# Triton types a kernel as the Python function it is written as: without the launch's options, with constexpr objects.
# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmrole.engine.paged_attention import MOST_LEAVES

# A run of fewer slots costs more in partial results than it gains.
SHORTEST_RUN = tl.constexpr(128)
MOST_RUNS = 64
MOST_CHANNELS = 256
_LEAST = tl.constexpr(-1.0e30)  # finite: the maximum of nothing, less itself, is 0 and not NaN


class PagedInputs(NamedTuple):
    """The tensors of `paged_tree_attention`."""

    query: Tensor
    keys: Tensor
    values: Tensor
    page_table: Tensor
    lengths: Tensor
    first_row: Tensor
    leaves: Tensor
    visible: Tensor


class Tiling(NamedTuple):
    """How the work is cut.

    Attributes:
        slots: of a tile, a power of two; at most a page.
        warps: of a program.
        stages: tiles that are on their way at once.
        programs_per_sm: with which the number of runs is chosen: programs for each multiprocessor.
    """

    slots: int
    warps: int
    stages: int
    programs_per_sm: int


@triton.jit
def _run_length(length, runs, TILE: tl.constexpr):
    return tl.maximum(tl.cdiv(tl.cdiv(length, runs), TILE) * TILE, SHORTEST_RUN)


@triton.jit(do_not_specialize=["window", "table_row"])
def _partial(
    query,
    keys,
    values,
    page_table,
    lengths,
    first_row,
    leaves,
    visible,
    positions,
    slot_positions,
    maxima,
    sums,
    weighted,
    scaling,
    window,
    kv_heads,
    query_row,
    query_head,
    key_page,
    key_slot,
    key_head,
    value_page,
    value_slot,
    value_head,
    table_row,
    visible_row,
    slot_position_row,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    PAIRS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    kv_head = tl.program_id(0) % kv_heads
    first_pair = tl.program_id(0) // kv_heads * PAIRS
    run = tl.program_id(1)
    runs = tl.num_programs(1)
    tree = tl.program_id(2)
    length = tl.load(lengths + tree)
    count = tl.load(leaves + tree)
    run_length = _run_length(length, runs, TILE)
    begin = run * run_length
    if (begin >= length) | (first_pair >= count * GROUP):
        return
    stop = tl.minimum(begin + run_length, length)

    pairs = first_pair + tl.arange(0, PAIRS)
    is_pair = pairs < count * GROUP
    leaf = tl.minimum(pairs // GROUP, count - 1)
    rows = (tl.load(first_row + tree) + leaf).to(tl.int64)
    heads = kv_head * GROUP + pairs % GROUP
    dims = tl.arange(0, WIDTH)
    q = tl.load(
        query + (rows * query_row + heads * query_head)[:, None] + dims[None, :],
        mask=is_pair[:, None] & (dims < D)[None, :],
        other=0.0,
    )
    # Of a slot's bits, those of the tile's leaves, moved down to bit 0; half the width is enough for most tiles.
    first_leaf = (first_pair // GROUP).to(tl.int64)
    last_leaf = tl.minimum((first_pair + PAIRS - 1) // GROUP, count - 1).to(tl.int64)
    leaf_bits = (tl.full((), 2, tl.int64) << (last_leaf - first_leaf)) - 1  # 2 << 63 is 0: all 64
    shift = leaf - first_leaf
    if PAIRS // GROUP < 31:
        shift = shift.to(tl.int32)
    position = tl.zeros([PAIRS], tl.int32)
    lowest = 0
    if WINDOWED:
        position = tl.load(positions + rows)
        lowest = tl.min(position, 0)

    maximum = tl.full([PAIRS], _LEAST, tl.float32)
    total = tl.zeros([PAIRS], tl.float32)
    output = tl.zeros([PAIRS, WIDTH], tl.float32)
    in_tile = tl.arange(0, TILE)
    table = page_table + tree * table_row
    tree_bits = visible + tree.to(tl.int64) * visible_row
    tree_positions = slot_positions + tree.to(tl.int64) * slot_position_row
    key_dims = keys + kv_head * key_head + dims[None, :]
    value_dims = values + kv_head * value_head + dims[None, :]
    # Page and bits of the next tile are fetched while this one is computed: the addresses of its keys hang on them.
    next_page = tl.load(table + begin // PAGE)
    next_bits = tl.load(tree_bits + begin + in_tile, mask=begin + in_tile < stop, other=0)
    for start in range(begin, stop, TILE):
        page = next_page.to(tl.int64)
        bits = (next_bits >> first_leaf) & leaf_bits
        if PAIRS // GROUP < 31:
            bits = bits.to(tl.int32)
        ahead = start + TILE
        next_page = tl.load(table + ahead // PAGE, mask=ahead < stop, other=0)
        next_bits = tl.load(tree_bits + ahead + in_tile, mask=ahead + in_tile < stop, other=0)
        # What no leaf of the tile sees is not read: it takes no time, and may be NaN.
        needed = bits != 0
        sees = ((bits[None, :] >> shift[:, None]) & 1) != 0
        if WINDOWED:
            slot_position = tl.load(tree_positions + start + in_tile, mask=start + in_tile < stop, other=0)
            needed = needed & (lowest - slot_position < window)
            sees = sees & (position[:, None] - slot_position[None, :] < window)
        fetched = needed[:, None]
        if D != WIDTH:
            fetched = fetched & (dims < D)[None, :]
        slots = start % PAGE + in_tile
        key = tl.load(key_dims + page * key_page + (slots * key_slot)[:, None], mask=fetched, other=0.0)
        scores = tl.dot(q, tl.trans(key), input_precision="ieee") * scaling
        scores = tl.where(sees, scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))
        shrink = tl.exp2(maximum - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(value_dims + page * value_page + (slots * value_slot)[:, None], mask=fetched, other=0.0)
        output = tl.dot(weights.to(value.dtype), value, output * shrink[:, None], input_precision="ieee")
        maximum = higher

    place = (rows * (kv_heads * GROUP) + heads) * runs + run
    tl.store(maxima + place, maximum, mask=is_pair)
    tl.store(sums + place, total, mask=is_pair)
    tl.store(weighted + (place * D)[:, None] + dims[None, :], output, mask=is_pair[:, None] & (dims < D)[None, :])


@triton.jit(do_not_specialize=["trees", "runs"])
def _add(
    maxima,
    sums,
    weighted,
    lengths,
    first_row,
    leaves,
    output,
    trees,
    runs,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TREES: tl.constexpr,
    RUNS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0)
    place = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tree = tl.arange(0, TREES)
    first = tl.load(first_row + tree, mask=tree < trees, other=0)
    count = tl.load(leaves + tree, mask=tree < trees, other=0)
    is_its_tree = (first <= row) & (row < first + count)
    # 0 where the row belongs to no leaf: then there is no run, and the result is 0.
    length = tl.sum(tl.load(lengths + tree, mask=is_its_tree & (tree < trees), other=0), 0)
    run = tl.arange(0, RUNS)
    there = (run < runs) & (run * _run_length(length, runs, TILE) < length)
    dims = tl.arange(0, WIDTH)
    maximum = tl.load(maxima + place * runs + run, mask=there, other=_LEAST)
    weight = tl.exp2(maximum - tl.max(maximum, 0))
    total = tl.sum(tl.load(sums + place * runs + run, mask=there, other=0.0) * weight, 0)
    parts = tl.load(
        weighted + ((place * runs + run) * D)[:, None] + dims[None, :],
        mask=there[:, None] & (dims < D)[None, :],
        other=0.0,
    )
    result = tl.sum(parts * weight[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(output + place * D + dims, result.to(output.dtype.element_ty), mask=dims < D)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def tiling_for(d: int, dtype: torch.dtype) -> Tiling:
    """The tiling for a head size and a dtype."""
    if dtype == torch.float32:  # without tensor cores operands lie in registers
        return Tiling(slots=16, warps=4, stages=1, programs_per_sm=4)
    return Tiling(slots=64 if d <= 128 else 32, warps=4, stages=3, programs_per_sm=4)


def launch(
    inputs: PagedInputs,
    scaling: float,
    window: int = 0,
    positions: Tensor | None = None,
    slot_positions: Tensor | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Computes `paged_tree_attention` with the kernel, cut as `tiling` says or as is best.

    Raises:
        ValueError: the page size is no power of two, or less than 16; heads are too large; a window without positions.
    """
    query, keys, values, page_table, lengths, first_row, leaves, visible = inputs
    rows, heads, d = query.shape
    page_size, kv_heads = keys.shape[1:3]
    if d > MOST_CHANNELS:
        raise ValueError(f"heads have {d} channels; the kernel takes at most {MOST_CHANNELS}")
    if page_size < 16 or page_size & (page_size - 1):
        raise ValueError(f"pages have {page_size} slots; the kernel takes a power of two, at least 16")
    if window and (positions is None or slot_positions is None):
        raise ValueError("a window needs positions and slot_positions")
    trees, group, width = len(lengths), heads // kv_heads, max(16, triton.next_power_of_2(d))
    output = torch.empty((rows, heads, d), dtype=query.dtype, device=query.device)
    if output.numel() == 0:
        return output
    tiling = tiling_for(d, query.dtype) if tiling is None else tiling
    tile = min(tiling.slots, page_size)
    # As many pairs as a tree has on average: a tree with more takes several tiles, whose keys the L2 cache holds.
    pairs = min(64, max(16, triton.next_power_of_2(-(-rows // trees) * group)))
    tiles = triton.cdiv(min(MOST_LEAVES, rows) * group, pairs)
    wanted = triton.cdiv(tiling.programs_per_sm * _multiprocessors(query.device), trees * kv_heads)
    runs = max(1, min(MOST_RUNS, wanted, triton.cdiv(visible.shape[1], SHORTEST_RUN.value)))
    maxima, sums = torch.empty((2, rows, heads, runs), dtype=torch.float32, device=query.device)
    weighted = torch.empty((rows, heads, runs, d), dtype=torch.float32, device=query.device)
    unused = lengths  # a pointer that a variant without window does not read
    _partial[kv_heads * tiles, runs, trees](
        query,
        keys,
        values,
        page_table,
        lengths,
        first_row,
        leaves,
        visible,
        unused if positions is None else positions,
        unused if slot_positions is None else slot_positions,
        maxima,
        sums,
        weighted,
        scaling * math.log2(math.e),
        window,
        kv_heads,
        *query.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        page_table.stride(0),
        visible.stride(0),
        0 if slot_positions is None else slot_positions.stride(0),
        GROUP=group,
        D=d,
        WIDTH=width,
        PAGE=page_size,
        PAIRS=pairs,
        TILE=tile,
        WINDOWED=window > 0,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    _add[rows, heads](
        maxima,
        sums,
        weighted,
        lengths,
        first_row,
        leaves,
        output,
        trees,
        runs,
        D=d,
        WIDTH=width,
        TREES=triton.next_power_of_2(trees),
        RUNS=triton.next_power_of_2(runs),
        TILE=tile,
        num_warps=2,
    )
    return output
