"""Which parts of the model are computed again in the backward pass instead of being kept (gradient checkpointing)."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mmrole.base.errors import UserError
from mmrole.models.families import Family


def check_checkpoint_layers(number: int | None, family: Family) -> None:
    """Checks --checkpoint_layers against the model.

    Raises:
        UserError: the model has fewer blocks.
    """
    if number is not None and number > family.layers:
        raise UserError(
            f"--checkpoint_layers {number}: the model has {family.layers} blocks; give less, or leave it out for all"
        )


def limit_recomputation(model: nn.Module, family: Family, layers: int | None) -> None:
    """Turns gradient checkpointing off again for a part of the model, once it is on for the whole.

    Of the language model's blocks those behind the first `layers` keep their activations. Other frozen blocks, the
    vision tower's, have no backward pass: nothing is kept for one, and nothing is to be computed again.

    Args:
        model: the module, or what wraps it.
        family: of the model.
        layers: None for all blocks of the language model.
    """
    blocks = family.blocks(model)
    kept = set() if layers is None else set(blocks[layers:])
    for module in model.modules():
        if not isinstance(module, GradientCheckpointingLayer):
            continue
        is_frozen = module not in blocks and not any(parameter.requires_grad for parameter in module.parameters())
        if module in kept or is_frozen:
            module.gradient_checkpointing = False
