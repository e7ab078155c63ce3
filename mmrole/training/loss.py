"""The summed loss of a micro-batch of trees: that of its samples one by one."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from mmrole.models.families import Family
from mmrole.training.batches import TreeBatch


class LossSum(NamedTuple):
    """A loss before it is averaged.

    Attributes:
        sum: [] at least float32, the cross entropy summed over all loss positions of all samples.
        n_targets: the number of these loss positions.
    """

    sum: Tensor
    n_targets: int


def tree_loss(model: nn.Module, batch: TreeBatch, family: Family) -> LossSum:
    """Runs a model, or what wraps it (DDP, DeepSpeed, PEFT), on a micro-batch.

    The gradients are those of the same samples run one by one: `sum.backward()` after a division by the number of loss
    positions of the global batch gives its mean. Training's rules hold in evaluation mode as well.

    Args:
        model: a module of the family, or its wrapper.
        batch: on the model's device.
        family: of the model.
    """
    return LossSum(model(**batch.inputs(family, attn_implementation_of(model))).loss, batch.n_targets)


def attn_implementation_of(model: nn.Module) -> str:
    """The attention implementation of a language model inside of its wrappers."""
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    return inner.config.get_text_config()._attn_implementation
