"""DeepSpeed's AdamW on the CPU after a checkpoint was loaded: made to compute as if it had never stopped."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from torch.optim import Optimizer


def restore_powers(optimizer: Optimizer) -> None:
    """Brings the powers of β₁ and β₂ that DeepSpeed's C++ code keeps to where they were when the checkpoint was saved.

    They are no part of a checkpoint. At each step the code multiplies them by β, in float32; at its first step after
    loading it takes `pow(β, step)` instead, which rounds otherwise, and from there on all weights are others. Steps
    with a single weight at rate 0 multiply the powers as the steps before the checkpoint did.

    Args:
        optimizer: with the states of the checkpoint. Others than DeepSpeed's for the CPU keep no powers.
    """
    inner: Any = optimizer
    while not isinstance(inner, DeepSpeedCPUAdam | FusedAdam) and hasattr(inner, "optimizer"):
        inner = inner.optimizer  # accelerate's and DeepSpeed's wrappers
    group = inner.param_groups[0]
    done = max((int(state.get("step", 0)) for state in inner.state.values()), default=0)
    settings = (*group["betas"], group["eps"])
    weight, gradient, mean, square = (torch.zeros(1) for _ in range(4))
    if isinstance(inner, DeepSpeedCPUAdam):  # with offload
        for step in range(1, done + 1):
            inner.ds_opt_adam.adam_update(inner.opt_id, step, 0.0, *settings, 0.0, True, weight, gradient, mean, square)
    elif isinstance(inner, FusedAdam) and inner._dummy_overflow_buf.device.type == "cpu":
        tensors = [[gradient], [weight], [mean], [square]]
        for step in range(1, done + 1):
            inner.multi_tensor_adam(
                0, inner._dummy_overflow_buf, tensors, 0.0, *settings, step, inner.adam_w_mode, 1, 0.0
            )
