"""Chains of small operations that become one kernel on a GPU: compiled where gradients are computed, else Triton's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrole.base.triton_support import can_compile
from mmrole.qwen_vl.rotary import rotate


def compiled_in_training(*dims: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Compiles a function of tensors once, for all numbers of positions, when it is called on a GPU with gradients.

    Elsewhere it runs as it stands. Without gradients (evaluation, generation) nobody should wait for torch's compiler.

    Args:
        dims: of each argument the dimension whose size is the number of positions.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        compiled = compiled_once(function, dims)

        @wraps(function)
        def call(*tensors: Tensor) -> Tensor:
            if tensors[0].is_cuda and torch.is_grad_enabled() and can_compile():
                return compiled(*tensors)
            return function(*tensors)

        return call

    return decorate


def compiled_once(function: Callable[..., Tensor], dims: tuple[int, ...]) -> Callable[..., Tensor]:
    """The compiled function of `compiled_in_training`, for any device."""

    @cache
    def compiled() -> Any:
        return torch.compile(function, fullgraph=True)

    def call(*tensors: Tensor) -> Tensor:
        for tensor, dim in zip(tensors, dims, strict=True):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return compiled()(*tensors)

    return call


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `rotate`."""
    if _goes_fused(states):
        from mmrole.qwen_vl.fused import rotate_fused

        return rotate_fused(states, cos, sin)
    return _rotated(states, cos, sin)


def gated(states: Tensor, gate: Tensor) -> Tensor:
    """states * silu(gate), [batch, positions, width] each."""
    if _goes_fused(states):
        from mmrole.qwen_vl.fused import gate_fused

        return gate_fused(states, gate)
    return _gated(states, gate)


def _goes_fused(states: Tensor) -> bool:
    # float32 stays with torch's own operations, to the last bit.
    half = states.dtype in (torch.bfloat16, torch.float16)
    return states.is_cuda and half and not torch.is_grad_enabled() and can_compile()


@compiled_in_training(2, 1, 1)
def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(states, cos, sin)


@compiled_in_training(1, 1)
def _gated(states: Tensor, gate: Tensor) -> Tensor:
    return states * F.silu(gate)
