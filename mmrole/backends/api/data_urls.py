"""Pictures as data URLs: the bytes of their files where any server reads the same in them, else the decoded pixels."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmrole.base.errors import UserError
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource

if TYPE_CHECKING:
    from PIL import Image

_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_MODES = ("RGB", "L", "1")  # of others, transparent ones and CMYK among them, servers make what they like
_ORIENTATION = 0x0112
_UPRIGHT = 1
_QUALITY = 95


def data_url(image: ImageSource, most_pixels: int) -> str:
    """A picture as a URL that holds it.

    Its file is sent as it is, unless servers cannot read it or may see something else in it than a local model: bmp and
    tiff, several frames (the first one is sent), a turn that EXIF data asks for (it is not turned, as for a local
    model), transparency, CMYK. Then, and where it has too many pixels, a PNG of its pixels is sent, a JPEG where the
    file is one.

    Args:
        image: the picture.
        most_pixels: a larger one is made so small.

    Raises:
        OSError: it cannot be read.
        UserError: it cannot be decoded, or has changed since the job began.
    """
    from mmrole.base.pillow import Image

    if isinstance(image, Image.Image):
        return _encoded(image.convert("RGB"), "PNG", most_pixels)
    if isinstance(image, ImageFile):
        return _of_file(image, most_pixels)
    return _of_bytes(image.read_bytes(), image, most_pixels)


@lru_cache(maxsize=8)  # the reviews of an answer follow one another
def _of_file(file: ImageFile, most_pixels: int) -> str:
    return _of_bytes(file.read(), file.path, most_pixels)


def _of_bytes(data: bytes, path: Path, most_pixels: int) -> str:
    from mmrole.base.pillow import FORMATS, Image, decode

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            format_ = opened.format or ""
            fits = opened.width * opened.height <= most_pixels and opened.mode in _MODES
            fits = fits and getattr(opened, "n_frames", 1) == 1
            fits = fits and opened.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
        if fits and format_ in _TYPES:
            return _url(_TYPES[format_], data)
        return _encoded(decode(io.BytesIO(data)), "JPEG" if format_ in ("JPEG", "MPO") else "PNG", most_pixels)
    except Exception as error:  # Pillow raises nearly any kind of damaged files
        raise UserError(f"{path}: the picture cannot be read ({error}); replace it") from None


def _encoded(picture: Image.Image, format_: str, most_pixels: int) -> str:
    picture = _fitting(picture, most_pixels)
    file = io.BytesIO()
    options = {"quality": _QUALITY, "subsampling": 0} if format_ == "JPEG" else {}
    picture.save(file, format_, **options)
    return _url(_TYPES[format_], file.getvalue())


def _fitting(picture: Image.Image, most_pixels: int) -> Image.Image:
    """The picture, of so many pixels at most and of about the same shape."""
    from mmrole.base.pillow import Image

    width, height = picture.size
    if width * height <= most_pixels:
        return picture
    scale = (most_pixels / (width * height)) ** 0.5
    width, height = min(max(1, int(width * scale)), most_pixels), max(1, int(height * scale))
    return picture.resize((width, min(height, max(1, most_pixels // width))), Image.Resampling.LANCZOS)


def _url(type_: str, data: bytes) -> str:
    return f"data:{type_};base64,{base64.b64encode(data).decode('ascii')}"
