"""Which positions of a batch of token ids take image features (spec §4)."""

import torch
from torch import Tensor

from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE


def find_image_positions(input_ids: Tensor, image_start_id: int, images: int) -> Tensor:
    """Finds the spans `<img>` … `</img>`; the j-th span in row-major order takes the features of image j.

    A `</img>` without an `<img>` before it is ordinary text.

    Args:
        input_ids: [batch, positions], int.
        image_start_id: id of `<img>`; `</img>` is the next one.
        images: number of images that were given.

    Returns:
        int64 [batch, positions]: 256 * j + i at the i-th position inside span j, -1 everywhere else: rows of the
        features when all images' features are laid one after the other.

    Raises:
        ValueError: if the number of spans is not `images`, or a span does not hold 256 positions.
    """
    is_start = input_ids == image_start_id
    spans = int(is_start.sum())
    if spans != images:
        raise ValueError(
            f"input_ids hold {spans} image spans (<img> … </img>), but {images} images were given as pixel_values; "
            "give one image for each span, or image_positions."
        )
    positions = torch.full_like(input_ids, -1, dtype=torch.int64)
    if spans == 0:
        return positions
    rows, starts = is_start.nonzero(as_tuple=True)
    ends = starts + FEATURES_PER_IMAGE + 1
    fits = ends < input_ids.shape[1]
    closed = input_ids[rows, ends.clamp(max=input_ids.shape[1] - 1)] == image_start_id + 1
    if not bool((fits & closed).all()):
        raise ValueError(
            f"an image span does not hold {FEATURES_PER_IMAGE} positions between <img> and </img>; "
            "was the sample cut inside an image?"
        )
    columns = starts[:, None] + 1 + torch.arange(FEATURES_PER_IMAGE, device=input_ids.device)
    features = torch.arange(spans * FEATURES_PER_IMAGE, device=input_ids.device).view(spans, FEATURES_PER_IMAGE)
    positions[rows[:, None], columns] = features
    return positions


def has_image_span(input_ids: Tensor, image_start_id: int) -> bool:
    """Whether a complete span `<img>`, 256 positions, `</img>` occurs in [batch, positions]."""
    width = FEATURES_PER_IMAGE + 1
    starts, ends = input_ids[:, :-width] == image_start_id, input_ids[:, width:] == image_start_id + 1
    return input_ids.shape[1] > width and bool((starts & ends).any())
