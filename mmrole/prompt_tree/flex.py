"""Attention in flattened trees by FlexAttention, with gradients: one compiled kernel for rows of every length."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mmrole.base.triton_support import can_compile
from mmrole.prompt_tree.mask import block_mask

BLOCK = 128  # of queries and keys: what FlexAttention's kernels are tuned for
LEAST_HEAD_SIZE = 16


class FlexForestAttention:
    """Attention of a forest of trees that lie end to end in one row.

    Equal to attention with the trees' dense mask. FlexAttention is compiled for the length of its inputs, some ten
    seconds each time. So queries, keys and values are padded to one length, whatever the row has: behind it each
    position sees itself, which costs next to nothing, since blocks are skipped in which nobody sees anybody.
    """

    def __init__(
        self,
        last: Tensor,
        most: int,
        device: torch.device | str | None = None,
        *,
        first: Tensor | None = None,
        depths: Tensor | None = None,
    ) -> None:
        """Lists which blocks of keys a block of queries meets, without a wait for the device.

        Args:
            last: [N] int64, `PromptTree.last`; in pinned memory, if the device is a GPU.
            most: nodes that a row may have in the run, at least N: what is padded to.
            device: of the queries and keys; by default that of `last`.
            first: [N] int64, see `Visibility`, like `last`.
            depths: [N] int64, the same; for layers with a window.

        Raises:
            ValueError: the row is longer.
        """
        if len(last) > most:
            raise ValueError(f"a row of {len(last)} nodes is longer than the {most} that it is padded to")
        self.length = -(-most // BLOCK) * BLOCK
        self._device = last.device if device is None else torch.device(device)
        self._last = self._padded(last)
        self._first, self._depths = (None if each is None else self._padded(each) for each in (first, depths))
        self._masks = {0: block_mask(self._last, BLOCK, self._first)}

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
            ValueError: weights are to be dropped, which FlexAttention cannot do, or a window without depths.
        """
        if dropout:
            raise ValueError("FlexAttention drops no weights; use sdpa")
        nodes, heads = query.shape[2], query.shape[1]
        if heads != key.shape[1] and heads & (heads - 1):  # its kernels take groups of a power of two of heads only
            groups = heads // key.shape[1]
            key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        padding = (0, 0, 0, self.length - nodes)
        # A row that needs no padding would keep its strides, and be compiled for once more.
        padded = (F.pad(states, padding).contiguous() for states in (query, key, value))
        grouped = heads != key.shape[1]
        output = _compiled()(*padded, block_mask=self._mask(window), scale=scaling, enable_gqa=grouped)
        return output[:, :, :nodes].transpose(1, 2)

    def _padded(self, values: Tensor) -> Tensor:
        """Behind its end each is its own place."""
        padded = torch.arange(self.length, device=self._device)
        padded[: len(values)] = values.to(self._device, non_blocking=True)
        return padded

    def _mask(self, window: int) -> BlockMask:
        if window not in self._masks:
            self._masks[window] = block_mask(self._last, BLOCK, self._first, self._depths, window)
        return self._masks[window]


def flex_is_usable(head_size: int) -> bool:
    """Whether FlexAttention can be compiled for a GPU here, and takes heads of this size."""
    return head_size >= LEAST_HEAD_SIZE and can_compile()


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
