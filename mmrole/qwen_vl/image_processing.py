"""Images to pixel tensors: what the original's torchvision transforms compute, with Pillow and torch (spec §3.1)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from mmrole.base.pillow import FORMATS, Image, decode

ImageOrPath = Image.Image | str | os.PathLike[str]

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # red, green, blue, of values in 0 … 1
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def load_image(source: ImageOrPath) -> Image.Image:
    """Opens an image and converts it to RGB as Pillow does.

    The first frame of an animation; no rotation by EXIF data; an alpha channel is dropped, not blended.

    Args:
        source: a PIL image or the path of a file. Nothing is ever fetched from a network.

    Raises:
        ValueError: for a URL.
        FileNotFoundError, IsADirectoryError, PIL.UnidentifiedImageError, OSError: if there is no such file, if it is
            not an image of one of `FORMATS`, if it is damaged or has more pixels than Pillow's
            `Image.MAX_IMAGE_PIXELS` allows; the message is one line that names the file. All of these are OSErrors.
    """
    if isinstance(source, Image.Image):
        try:
            return source.convert("RGB")
        except Exception as error:
            raise _damaged(f"an image of mode {source.mode}", error) from error
    path = os.fspath(source)
    if path.lower().startswith(("http://", "https://", "ftp://", "data:")):
        raise ValueError(f"{path[:100]}: is a URL; download the image and give its path")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: is a directory, not an image file")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path!r}: no such image file")
    try:
        return decode(path)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"{path}: not an image of a format that is read ({', '.join(FORMATS)})") from None
    except Exception as error:
        raise _damaged(path, error) from error


def preprocess(images: Sequence[ImageOrPath], size: int = 448) -> Tensor:
    """Resizes and normalises images.

    Args:
        images: PIL images or paths of files.
        size: height and width, in pixels, to which every image is stretched (bicubic, on 8-bit values).

    Returns:
        float32 [images, 3, size, size], (value / 255 - mean) / standard deviation.

    Raises:
        As `load_image`.
    """
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None] for values in (IMAGE_MEAN, IMAGE_STD))
    # A channel of a pixel has 256 values: they are normalised once, then looked up, which is exact and fast.
    tables = ((torch.arange(256, dtype=torch.float32) / 255 - mean) / std).numpy()  # [3, 256]
    pixel_values = torch.empty(len(images), 3, size, size, dtype=torch.float32)
    for image, pixels in zip(images, pixel_values.numpy(), strict=True):
        resized = np.asarray(_stretched(load_image(image), size))
        for table, channel, values in zip(tables, np.moveaxis(resized, 2, 0), pixels, strict=True):
            np.take(table, channel, out=values, mode="clip")
    return pixel_values


def _stretched(image: Image.Image, size: int) -> Image.Image:
    # Whoever changes what comes out here counts `mmrole.data.images.PIXELS` up.
    # In one call Pillow 13 takes the height of some images first, which rounds otherwise than Pillow 9 to 12, and with
    # those the published models were trained.
    return image.resize((size, image.height), Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.BICUBIC)


def _damaged(name: str, error: Exception) -> OSError:
    # Decoders raise nearly anything on broken files (SyntaxError, struct.error, EOFError, …).
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return OSError(f"{name}: too many pixels for an image ({reason})")
    return OSError(f"{name}: damaged image ({reason})")
