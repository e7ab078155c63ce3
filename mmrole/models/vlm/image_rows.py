"""What a model of transformers makes of images: the rows of features that its language model takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrole.models.families import Pixels


def vision_features(inner: Any, pixels: Pixels, device: torch.device) -> Tensor:
    """The features of all images, one behind the other: [rows, (1 + D) * hidden_size].

    Args:
        inner: the model without LM head.
        pixels: of the image processor, of any device.
        device: of the vision tower's inputs.

    D of the parts are for the first layers (Qwen3-VL's deepstack), 0 for most models.
    """
    known = inspect.signature(inner.get_image_features).parameters
    given = {
        name: value.to(device, inner.dtype if value.is_floating_point() else value.dtype)
        for name, value in pixels.items()
        if name in known
    }
    output = inner.get_image_features(**given, return_dict=True)
    deep = getattr(output, "deepstack_features", None) or []
    return torch.cat([_rows(features) for features in (output.pooler_output, *deep)], dim=-1)


def joined(images: Sequence[Pixels]) -> Pixels:
    """Images of the same shapes as the arguments for all of them."""
    return {name: torch.cat([image[name] for image in images]) for name in images[0]}


def _rows(features: Tensor | Sequence[Tensor]) -> Tensor:
    """[…, rows, size], or a list of such, as one [rows, size]."""
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return torch.cat([each.flatten(0, -2) for each in features])
