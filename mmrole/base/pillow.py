"""Pillow, told once to read what every viewer shows, without a word on stderr: the door for image files."""

import os
import warnings
from typing import BinaryIO

from PIL import Image, PngImagePlugin

__all__ = ["FORMATS", "LONGEST_SIDE", "Image", "decode"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded. Pillow knows more formats, among them some that it hands to other programs (EPS)."""

LONGEST_SIDE = 100_000
"""In pixels. An image that is resized in width keeps its height, for which a pass needs a kilobyte or two a row."""

# Programs that draw pictures note how in texts of megabytes; Pillow refuses files with more than one in a text. All
# texts of a file together stay bounded, to 64 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# Many pixels, but not too many; damaged EXIF data; transparency in a palette: none of it changes the pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(file: str | os.PathLike[str] | BinaryIO, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in a file, in RGB: the first frame, not turned by EXIF data, an alpha channel dropped.

    Args:
        file: its path, or the open file.
        size: a smaller size that will do, which JPEG files are decoded to faster.

    Raises:
        PIL.UnidentifiedImageError: it is not of one of `FORMATS`.
        Exception: of nearly any kind: it is damaged (OSError, SyntaxError, struct.error, a decompression bomb), cannot
            be read, or has a side longer than `LONGEST_SIDE`.
    """
    with Image.open(file, formats=FORMATS) as image:
        if max(image.size) > LONGEST_SIDE:
            raise ValueError(f"a side of {max(image.size):,} pixels; the most are {LONGEST_SIDE:,}")
        if size is not None:
            image.draft("RGB", size)
        return image.convert("RGB")
