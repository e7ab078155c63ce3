"""Weights that a model has in two places, such as an embedding that is the LM head, too: saved once."""

from __future__ import annotations

from torch import Tensor, nn


def tie_again(state_dict: dict[str, Tensor], model: nn.Module) -> None:
    """Makes one tensor again of the copies that DeepSpeed (ZeRO-2) has made of a parameter with several names.

    transformers saves under one of its names what is one tensor, and copies all.

    Args:
        state_dict: of the model; changed in place.
        model: whose parameters say what is one.
    """
    kept: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state_dict:
            state_dict[name] = state_dict[kept.setdefault(id(parameter), name)]
