"""What lies beside trained weights: the files of tokenizer, chat template, image processor and generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmrole.base.files import read_json, write_json
from mmrole.models.checkpoints import IMAGE_PROCESSOR, PROCESSOR_FILES
from mmrole.models.generation_config import FILE_NAME


def save_processor(source: Path, directory: Path, max_pixels: int | None) -> None:
    """Copies a checkpoint's files into a directory, as they are but for the limit of an image.

    What transformers has made of its own settings is replaced: it would drop some, and refuse others.

    Args:
        source: of the checkpoint.
        directory: of the trained weights.
        max_pixels: most pixels of an image; None for the checkpoint's own limit.
    """
    for name in (*PROCESSOR_FILES, FILE_NAME):
        (directory / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    for name in IMAGE_PROCESSOR:
        if max_pixels is not None and (directory / name).is_file():
            fields = read_json(directory / name, dict)
            _set_limit(fields, max_pixels)
            write_json(directory / name, fields)


def _set_limit(fields: dict[str, Any], max_pixels: int) -> None:
    """Sets the limit where a file has an image processor's settings, which may be a part of a processor's."""
    if isinstance(fields.get("image_processor"), dict):
        _set_limit(fields["image_processor"], max_pixels)
    if "image_processor_type" in fields or "max_pixels" in fields:
        fields["max_pixels"] = max_pixels
        if "longest_edge" in (fields.get("size") or {}):
            fields["size"]["longest_edge"] = max_pixels
