"""How many positions a KV cache may have in the memory that is free, and how many nodes a prefill may read at once."""

from __future__ import annotations

import os

import psutil
import torch

from mmrole.models.families import TreeModel

# The rest is for activations, logits, and one layer's cache that exists twice while a batch is rebuilt.
SHARE_OF_GPU, SHARE_OF_HOST = 0.7, 0.4
MOST_POSITIONS = 262_144
# Of a GPU besides weights, KV cache and a prefill's nodes: images in the vision tower, logits, libraries' workspaces.
WORKSPACE_BYTES = 512 << 20
# What a node takes while a layer is computed, in hidden states: queries, keys and values and their rotated copies, the
# inner states of the MLP.
HIDDEN_STATES_PER_NODE = 24
# Matrix products reach their rate at some thousands on a GPU, and between two passes it waits for the host; a CPU gains
# nothing beyond hundreds.
FEWEST_NODES, MOST_NODES, NODES_ON_CPU = 512, 16_384, 1024


def bytes_per_position(model: TreeModel) -> int:
    """Bytes of a position's keys and values in all layers."""
    return sum(2 * shape.heads * shape.head_size * shape.dtype.itemsize for shape in model.kv_shapes)


def free_positions(device: torch.device, bytes_each: int) -> int:
    """The token budget of a batch, whose positions take so many bytes each, for the memory that is free on a device."""
    if device.type == "cuda":
        free = SHARE_OF_GPU * free_gpu_bytes(device)
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun: they share the host
        free = SHARE_OF_HOST * psutil.virtual_memory().available / processes
    return max(1, min(MOST_POSITIONS, int(free / bytes_each)))


def nodes_at_once(model: TreeModel, positions: int) -> int:
    """How many nodes of several trees a prefill reads in one pass, beside a KV cache of so many positions.

    A single tree may have more.
    """
    if model.device.type != "cuda":
        return NODES_ON_CPU
    left = free_gpu_bytes(model.device) - positions * bytes_per_position(model) - WORKSPACE_BYTES
    per_node = HIDDEN_STATES_PER_NODE * model.family.hidden_size * model.kv_shapes[0].dtype.itemsize
    return max(FEWEST_NODES, min(MOST_NODES, left // per_node))


def free_gpu_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process may still use: free, or reserved by torch and unused, and within its limit.

    The limit is that of `torch.cuda.set_per_process_memory_fraction`.
    """
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    limit = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + torch.cuda.memory_reserved(device) - used, limit - used))
