"""The configuration of a model with few of its layers: enough to try how the whole one attends."""

from __future__ import annotations

import copy
from typing import Any

from mmrole.models.vlm.facts import text_config

FEWEST_LAYERS = 2
WINDOW = 6
"""Positions that a query sees in layers that have a window."""

_DEPTHS = ("depth", "num_hidden_layers")
_WINDOWS = ("sliding_window", "attention_chunk_size")
# Of a vision tower: which of its layers do something of their own.
_VISION_LAYERS = ("deepstack_visual_indexes", "fullatt_block_indexes")


def reduced(config: Any) -> Any:
    """A copy with the first layers of the language model, up to where each kind of them has come and deepstack ends, a
    short window, and the first layers of the vision tower. The shapes of what is left are the same.

    Args:
        config: of a model.
    """
    small = copy.deepcopy(config)
    text = text_config(small)
    _keep_layers(text, min(_layers(text, _deepstack(small)), text.num_hidden_layers))
    for name in _WINDOWS:
        if getattr(text, name, None):
            setattr(text, name, WINDOW)
    _reduce_vision(small)
    return small


def _layers(text: Any, deepstack: int) -> int:
    """How many of the first layers show all kinds of them."""
    kinds = getattr(text, "layer_types", None) or []
    return max(FEWEST_LAYERS, deepstack, *(kinds.index(kind) + 1 for kind in set(kinds)), 0)


def _deepstack(config: Any) -> int:
    """How many layers of the language model get features of an image once more."""
    return len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or [])


def _keep_layers(text: Any, layers: int) -> None:
    """Shortens all that has an entry for each layer, too."""
    before = text.num_hidden_layers
    text.num_hidden_layers = layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == before:
            setattr(text, name, value[:layers])


def _reduce_vision(config: Any) -> None:
    """Keeps as few layers as there can be for what is taken from them; all where that is counted from the first."""
    vision = getattr(config, "vision_config", None)
    taken = getattr(config, "vision_feature_layer", -1)
    name = next((name for name in _DEPTHS if isinstance(getattr(vision, name, None), int)), None)
    if name is None or not isinstance(taken, int) or taken >= 0:
        return
    special = {each: len(getattr(vision, each, None) or []) for each in _VISION_LAYERS}
    layers = max(FEWEST_LAYERS, 1 - taken, *special.values())
    if layers >= getattr(vision, name):
        return
    for each, number in special.items():
        if number:
            setattr(vision, each, list(range(number)))
    _keep_vision_layers(vision, name, layers)


def _keep_vision_layers(vision: Any, name: str, layers: int) -> None:
    before = getattr(vision, name)
    setattr(vision, name, layers)
    for other, value in vars(vision).items():
        if isinstance(value, list) and len(value) == before:
            setattr(vision, other, value[:layers])
