"""Where transformers' vision-language models have their vision tower, projector and language model."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

# Names below the base model, `model.…` of the class with an LM head. Modules between tower and language model are the
# projector, wherever a model has them.
_PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|connector|aligner|embed_vision|image_newline|"
    r"visual\.(merger|deepstack_merger_list|downsample|post_conv_layernorm))(\.|$)"
)
_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model)(\.|$)")

NOT_LANGUAGE = rf".*({_PROJECTOR.pattern}|{_VISION.pattern}).*"
"""What the whole name of a module of tower or projector matches."""


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
    return decoder(cast("Any", module).model)


def decoder(inner: Any) -> nn.Module:
    """The same, in the model without LM head."""
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model


def model_in(wrapped: nn.Module) -> PreTrainedModel:
    """The model of transformers inside of wrappers (DDP, DeepSpeed, PEFT)."""
    return next(each for each in wrapped.modules() if isinstance(each, PreTrainedModel))


def freeze(module: nn.Module, frozen: Collection[str], unused: Collection[str] = ()) -> None:
    """Sets which parameters are trained: those of the parts that are not frozen, but for some names."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():  # 4 bits have no gradient
            parameter.requires_grad_(part_of(name) not in frozen and name not in unused)


def matrices(module: nn.Module) -> list[str]:
    """The matrices in the language model's blocks, by the parts of their names behind the block's number."""
    blocks = cast("Any", language_model(module)).layers
    return sorted({name for block in blocks for name, each in block.named_modules() if isinstance(each, nn.Linear)})


def beside_language_model(module: nn.Module) -> list[str]:
    """Names of what is neither the language model nor a part of it: tower, projector, LM head."""
    inner = cast("Any", module).model
    language = decoder(inner)
    others = [f"model.{name}" for name, each in inner.named_children() if each is not language]
    return [*others, *(name for name, each in module.named_children() if each is not inner)]


def hold_rotary(language: nn.Module) -> None:
    """Lets rotary frequencies that are the same up to the longest sequence ("dynamic") be looked at no more.

    transformers asks at each step whether they must change, which a step of decoding on a GPU must not wait for.
    """
    for each in language.modules():
        if getattr(each, "rope_type", None) == "dynamic":
            cast("Any", each).rope_type = "default"
