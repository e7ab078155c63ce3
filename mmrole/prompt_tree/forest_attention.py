"""Attention of a forward pass over many trees, on a GPU: one Triton kernel for all blocks of all trees and heads."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrole.base.triton_support import can_compile
from mmrole.prompt_tree.attention import BlockwiseAttention, TreeAttention
from mmrole.prompt_tree.mask import Visibility


def forward_attention(
    visibility: Visibility, implementation: str, head_size: int, dtype: torch.dtype, device: torch.device
) -> TreeAttention:
    """The attention of a forest that is read without gradients: on CUDA the kernel, else SDPA or eager in blocks.

    What has no fast matrix product (float32) goes through SDPA on CUDA too, and so does all where Triton cannot
    compile, and what the kernel does not know: windows, and images that see themselves both ways.

    Args:
        visibility: of its N nodes.
        implementation: "sdpa" or "eager"; what is eager stays so, on every device.
        head_size: d of the keys.
        dtype: of queries, keys and values.
        device: of these.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    last, first, depths = visibility
    if device.type == "cuda" and implementation == "sdpa" and half and visibility.is_plain and can_compile():
        # Larger blocks do not fit into a multiprocessor.
        return ForestAttention(last, device) if head_size <= 128 else ForestAttention(last, device, 64, 32)
    return BlockwiseAttention(last, implementation, device=device, first=first, depths=depths)


class ForestAttention:
    """Attention of a forest of trees that lie end to end in one row; it has no gradient.

    Equal to attention with the dense mask; its softmax is computed in float32. A block of queries meets the blocks of
    keys that one of them sees, and no others.
    """

    def __init__(self, last: Tensor, device: torch.device, query_block: int = 128, key_block: int = 64) -> None:
        """Lists for each block of queries the blocks of keys that it meets.

        Args:
            last: [N] int64 in the memory of the CPU, `PromptTree.last`.
            device: of the queries and keys.
            query_block: queries of a block, a power of two, at least 16.
            key_block: keys of a block, the same.
        """
        self.query_block, self.key_block = query_block, key_block
        seen = seen_blocks(last, query_block, key_block)
        listed = seen.int().argsort(dim=1, descending=True, stable=True)
        self.last, self.blocks, self.counts = (
            tensor.to(device, torch.int32, non_blocking=True) for tensor in (last, listed, seen.sum(dim=1))
        )

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
        """See `TreeAttention.attend`. The same for every layer.

        Raises:
            ValueError: dropout or a window is asked for.
        """
        if dropout or window:
            raise ValueError("this attention drops no weights and has no window")
        from mmrole.prompt_tree.forest_kernel import attend_forest  # Triton, only where it is used

        lists = self.last, self.blocks, self.counts
        return attend_forest(query[0], key[0], value[0], lists, scaling, self.query_block, self.key_block)[None]


def seen_blocks(last: Tensor, query_block: int, key_block: int) -> Tensor:
    """bool [blocks of queries, blocks of keys]: whether a query of the one sees a key of the other.

    Args:
        last: [N] int64, `PromptTree.last`.
        query_block: queries of a block.
        key_block: keys of a block.
    """
    nodes, device = len(last), last.device
    n_keys = -(-nodes // key_block)
    padded = torch.nn.functional.pad(last, (0, n_keys * key_block - nodes), value=-1)
    furthest = padded.view(n_keys, key_block).amax(dim=1)
    first_query = torch.arange(0, nodes, query_block, device=device)[:, None]
    first_key = torch.arange(0, nodes, key_block, device=device)
    return (first_key < first_query + query_block) & (furthest >= first_query)
