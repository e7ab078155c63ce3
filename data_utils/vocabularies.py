"""What `--tokenizer` names: the family of a checkpoint, of which no weights are read, to count tokens with."""

import os
from pathlib import Path
from typing import cast

import numpy as np

from mmrole.base.errors import UserError
from mmrole.data.images import resolve_image
from mmrole.models.checkpoints import VOCABULARY, Checkpoint, is_qwen_vl
from mmrole.models.families import Family
from mmrole.models.loading import read_family
from mmrole.models.qwen_vl import QwenVL
from mmrole.models.vlm.chat_probe import check_encoding
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.processor import image_size
from mmrole.qwen_vl import CheckpointError, QWenConfig, QWenTokenizer
from mmrole.training.encoding import PUBLISHED_SYSTEM


def load_family(place: str | os.PathLike, max_pixels: int | None = None) -> Family:
    """The family of a checkpoint directory, or Qwen-VL with a vocabulary file `qwen.tiktoken`.

    Args:
        place: the directory or file.
        max_pixels: most pixels of an image; None for the checkpoint's own limit.

    Raises:
        UserError: there is no such vocabulary, it is damaged, or `max_pixels` has no effect on it.
    """
    path = Path(place)
    if (path / "config.json").is_file() and not is_qwen_vl(path):
        family = read_family(Checkpoint(path), max_pixels)
        check_encoding(cast("Vlm", family).encoder)
        return family
    if not path.is_file() and not (path / VOCABULARY).is_file():
        lack = f"it has neither config.json nor {VOCABULARY}" if path.is_dir() else "there is no such directory or file"
        raise UserError(
            f"--tokenizer {path}: {lack}; give the directory of a checkpoint (from the model hub: hf download NAME "
            f"--local-dir DIRECTORY), of which no weights are needed, or a file {VOCABULARY}"
        )
    if max_pixels is not None:
        raise UserError(
            f"--max_pixels has no effect on {path}: Qwen-VL stretches every image to one size; leave it out"
        )
    try:
        return QwenVL(QWenTokenizer(path / VOCABULARY if path.is_dir() else path), QWenConfig())
    except CheckpointError as error:
        raise UserError(f"--tokenizer: {error}") from None


def images_matter(family: Family) -> bool:
    """Whether the tokens of an image follow from its size. One of Qwen-VL has always as many."""
    return not isinstance(family, QwenVL)


def training_system(family: Family) -> str | None:
    """The system message that the recipe of a family gives all training samples; None where each has its own."""
    return PUBLISHED_SYSTEM if isinstance(family, QwenVL) else None


def image_file(image_dir: str | os.PathLike, image: str) -> Path | None:
    """The file of an image that a record names; None if its size cannot be read, of which the check of images tells.

    Args:
        image_dir: the image folder.
        image: path relative to it.
    """
    try:
        path = resolve_image(image_dir, image)
        image_size(path)
    except Exception:  # of nearly any kind: it is damaged
        return None
    return path


def reply_length(family: Family, input_ids: np.ndarray, targets: np.ndarray) -> tuple[int, int]:
    """Where the reply of a sample begins, and how many tokens it has, without what ends it.

    Args:
        family: of the tokenizer.
        input_ids: int [length], of a sample whose last turn is the reply.
        targets: bool [length], its loss positions.
    """
    learned = np.flatnonzero(targets)
    if not learned.size:  # an empty reply, which the template leaves out
        return len(input_ids), 0
    stop = int(learned[-1]) + 1
    start = int(np.flatnonzero(~targets[:stop])[-1]) + 1
    ends = np.flatnonzero(np.isin(input_ids[start:stop], list(family.stop_ids)))
    return start, int(ends[0]) if ends.size else stop - start
