"""Counts the tokens of chats as training and inference encode them; text that samples repeat is encoded once."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import cast

from data_utils.checks.surroundings import Lengths
from data_utils.vocabularies import image_file, images_matter, load_family, training_system
from mmrole.data.messages import LabelledImage, Message, Role
from mmrole.data.pictures import Picture, below_folder


def load_lengths(
    place: str | os.PathLike, most: int, *, max_pixels: int | None = None, look_at_images: bool = True
) -> Lengths:
    """Loads a tokenizer, and limits the length of samples.

    Args:
        place: a checkpoint directory, or a vocabulary file `qwen.tiktoken`.
        most: the most tokens that a sample may have.
        max_pixels: most pixels of an image; None for the checkpoint's own limit.
        look_at_images: whether image files are opened, where the tokens of an image follow from its size; otherwise
            those are not counted.

    Raises:
        UserError: there is no such vocabulary, or it is damaged.
    """
    family = load_family(place, max_pixels)
    by_size = images_matter(family)
    find = lru_cache(1 << 16)(image_file)

    def part(given: str | Picture, image_dir: Path | None) -> str | LabelledImage | None:
        if isinstance(given, str):
            return given
        path: Path | None = Path(given.path)
        if by_size:
            below = given.path if image_dir is None else below_folder(given.path, image_dir) or given.path
            path = find(image_dir, below) if image_dir is not None and look_at_images else None
        return None if path is None else LabelledImage(path, given.label)

    def tokens(chat: Iterable[tuple[str, Iterable[str | Picture]]], image_dir: Path | None) -> int:
        messages = []
        for speaker, content in chat:
            parts = [found for given in content if (found := part(given, image_dir)) is not None]
            messages.append(Message(cast("Role", speaker), tuple(parts)))
        return len(family.encode(messages, for_training=True).input_ids)

    return Lengths(tokens, most, by_size, training_system(family))
