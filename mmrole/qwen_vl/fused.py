"""Chains of small operations as one Triton kernel each, for a GPU that computes no gradients.

They round as the chains do: to the working dtype wherever a chain would write a tensor.
"""

# Triton types a kernel as the Python function it is written as: without the launch's options, with constexpr objects.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["rows", "positions"])
def _rotate(
    states,
    cos,
    sin,
    output,
    rows,
    positions,
    states_batch,
    states_head,
    states_position,
    table_batch,
    table_position,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    batch, position = row // positions, row % positions
    there = (row < rows)[:, None] & (channel < D)[None, :]
    turned = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    other = (channel + CHANNELS // 2) % CHANNELS
    source = states + (batch.to(tl.int64) * states_batch + position.to(tl.int64) * states_position)[:, None]
    source += head * states_head
    table = (batch.to(tl.int64) * table_batch + position.to(tl.int64) * table_position)[:, None] + channel[None, :]
    own = tl.load(source + channel[None, :], mask=there, other=0.0)
    swapped = tl.load(source + other[None, :], mask=turned, other=0.0).to(tl.float32)
    result = own.to(tl.float32) * tl.load(cos + table, mask=turned, other=1.0)
    result += swapped * tl.load(sin + table, mask=turned, other=0.0)
    place = (row.to(tl.int64)[:, None] * tl.num_programs(1) + head) * D + channel[None, :]
    tl.store(output + place, result.to(own.dtype), mask=there)


def rotate_fused(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `mmrole.qwen_vl.rotary.rotate`; tables in float32. The result lies in memory position by position."""
    batch, heads, positions, d = states.shape
    output = torch.empty((batch, positions, heads, d), dtype=states.dtype, device=states.device)
    cos, sin = (table.expand(batch, -1, -1) for table in (cos, sin))
    block = 16
    _rotate[triton.cdiv(batch * positions, block), heads](
        states,
        cos,
        sin,
        output,
        batch * positions,
        positions,
        *states.stride()[:3],
        *cos.stride()[:2],
        CHANNELS=cos.shape[-1],
        D=d,
        WIDTH=triton.next_power_of_2(d),
        BLOCK=block,
    )
    return output.transpose(1, 2)


@triton.jit
def _gate(states, gate, output, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < size
    value = tl.load(gate + place, mask=there, other=0.0)
    wide = value.to(tl.float32)
    opened = (wide / (1.0 + tl.exp(-wide))).to(value.dtype).to(tl.float32)
    result = tl.load(states + place, mask=there, other=0.0).to(tl.float32) * opened
    tl.store(output + place, result.to(value.dtype), mask=there)


def gate_fused(states: Tensor, gate: Tensor) -> Tensor:
    """states * silu(gate), contiguous tensors of one shape."""
    output = torch.empty_like(states)
    block = 1024
    _gate[(triton.cdiv(states.numel(), block),)](states, gate, output, states.numel(), BLOCK=block)
    return output
