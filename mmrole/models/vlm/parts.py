"""Where transformers' vision-language models have their vision tower, projector and language model."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import nn

# Names below the base model, `model.…` of the class with an LM head. Modules between tower and language model are the
# projector, wherever a model has them.
_PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|connector|aligner|embed_vision|image_newline|"
    r"visual\.(merger|deepstack_merger_list|downsample|post_conv_layernorm))(\.|$)"
)
_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model)(\.|$)")

PARTS = ("vision", "projector", "language")


def part_of(name: str) -> str:
    """The part that a parameter or module of this name belongs to, one of `PARTS`."""
    if _PROJECTOR.search(name):
        return "projector"
    return "vision" if _VISION.search(name) else "language"


def language_model(module: nn.Module) -> nn.Module:
    """The decoder without LM head.

    Raises:
        AttributeError: it is not where the models of transformers have it.
    """
    inner = cast("Any", module).model
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model
