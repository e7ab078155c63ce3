"""How many positions a KV cache may have in the memory that is free."""

from __future__ import annotations

import os

import psutil
import torch

from mmrole.models.families import TreeModel

# The rest is for activations, logits, and one layer's cache that exists twice while a batch is rebuilt.
SHARE_OF_GPU, SHARE_OF_HOST = 0.7, 0.4
MOST_POSITIONS = 262_144


def bytes_per_position(model: TreeModel) -> int:
    """Bytes of a position's keys and values in all layers."""
    return sum(2 * shape.heads * shape.head_size * shape.dtype.itemsize for shape in model.kv_shapes)


def free_positions(model: TreeModel) -> int:
    """The token budget of a batch for the memory that is free on the model's device."""
    if model.device.type == "cuda":
        free = SHARE_OF_GPU * torch.cuda.mem_get_info(model.device)[0]
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun: they share the host
        free = SHARE_OF_HOST * psutil.virtual_memory().available / processes
    return max(1, min(MOST_POSITIONS, int(free / bytes_per_position(model))))
