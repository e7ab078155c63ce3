"""What a model of transformers makes of images: the rows of features that its language model takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrole.models.families import Pixels
from mmrole.models.vlm.parts import part_of


def vision_features(inner: Any, pixels: Pixels, device: torch.device | None) -> Tensor:
    """The features of all images, one behind the other: [rows, (1 + D) * hidden_size].

    Args:
        inner: the model without LM head.
        pixels: of the image processor, of any device.
        device: of the vision tower's inputs; None where they are there.

    D of the parts are for the first layers (Qwen3-VL's deepstack), 0 for most models.
    """
    return torch.cat(_vision_features(inner, pixels, device), dim=0)


def features_of_each(inner: Any, images: Sequence[Pixels], device: torch.device) -> list[Tensor]:
    """The same of each of some images of the same shapes: [rows, (1 + D) * hidden_size], perhaps not of equal rows."""
    together = {name: torch.cat([image[name] for image in images]) for name in images[0]}
    features = _vision_features(inner, together, device)
    if len(features) == len(images):
        return features
    return list(torch.cat(features).unflatten(0, (len(images), -1)))


def _vision_features(inner: Any, pixels: Pixels, device: torch.device | None) -> list[Tensor]:
    """Features as a model hands them out: those of each image, or of several as one."""
    known = inspect.signature(inner.get_image_features).parameters
    given = {
        name: value.to(device=device, dtype=inner.dtype if value.is_floating_point() else value.dtype)
        for name, value in pixels.items()
        if name in known
    }
    output = inner.get_image_features(**given, return_dict=True)
    deep = getattr(output, "deepstack_features", None) or []
    parts = [_rows(features) for features in (output.pooler_output, *deep)]
    if len({len(rows) for rows in parts}) > 1:
        parts = [[torch.cat(rows)] for rows in parts]
    return [torch.cat(rows, dim=-1) for rows in zip(*parts, strict=True)]


def _rows(features: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """[…, rows, size], or those of each image, as [rows, size] each."""
    return [each.flatten(0, -2) for each in ((features,) if isinstance(features, Tensor) else features)]


def without_effect(empty: Any, pixels: Pixels) -> frozenset[str]:
    """Names of parameters beside the language model that no feature depends on, such as LLaVA's last vision layers.

    Args:
        empty: the model with LM head on the meta device.
        pixels: of any image.

    Towers that cannot run without data (Qwen's, which ask for the sizes of images) are taken to use all they have.
    """
    # Sizes are looked at, which only values can be.
    given = {name: value.to(empty.device) if value.is_floating_point() else value for name, value in pixels.items()}
    try:
        features = vision_features(empty.model, given, None)
    except (RuntimeError, NotImplementedError):
        return frozenset()
    named = {name: weight for name, weight in empty.named_parameters() if part_of(name) != "language"}
    used = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
    return frozenset(name for name, gradient in zip(named, used, strict=True) if gradient is None)
