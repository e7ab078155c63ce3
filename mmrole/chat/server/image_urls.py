"""Pictures that clients send as data URLs. Nothing is opened or fetched."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import threading
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from mmrole.chat.server.refusals import Refusal, unusable

if TYPE_CHECKING:
    from PIL import Image

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40}(?:;[a-z0-9=.+-]{1,40})*;base64,", re.IGNORECASE)


class Pictures:
    """Reads pictures; those of the same bytes are one for as long as one of them is in use, so that the engine reads
    chats about it together."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, Image.Image] = WeakValueDictionary()
        self._lock = threading.Lock()

    def read(self, url: str, most_pixels: int, param: str) -> Image.Image:
        """The picture in a data URL, in RGB: the first frame, not turned by EXIF data, as of records.

        Args:
            url: of base64. What it says of the format does not count.
            most_pixels: that it may have.
            param: the field of the request, for messages.

        Raises:
            Refusal: it is another URL, too large, or no picture of a format that records may have.
        """
        found = _DATA_URL.match(url)
        if found is None:
            raise unusable(
                param, f"{param}: only data:image/…;base64,… is taken; nothing is opened or fetched for a request"
            )
        try:
            data = base64.b64decode(url[found.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise unusable(param, f"{param}: it is not base64") from None
        key = hashlib.sha256(data).digest()
        with self._lock:
            picture = self._known.get(key)
        if picture is None:
            picture = _decode(data, most_pixels, param)
            with self._lock:
                picture = self._known.setdefault(key, picture)
        if picture.width * picture.height > most_pixels:
            raise _too_large(picture.size, most_pixels, param)
        return picture


def _decode(data: bytes, most_pixels: int, param: str) -> Image.Image:
    from mmrole.base.pillow import FORMATS, Image, decode

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            size = opened.size
        if size[0] * size[1] > most_pixels:
            raise _too_large(size, most_pixels, param)
        return decode(io.BytesIO(data))
    except Refusal:
        raise
    except Image.DecompressionBombError as error:
        raise unusable(param, f"{param}: {error}", code="image_too_large") from None
    except Exception:  # Pillow raises nearly any kind of damaged files
        formats = ", ".join(FORMATS)
        raise unusable(param, f"{param}: no picture that can be read ({formats})", code="invalid_image") from None


def _too_large(size: tuple[int, int], most_pixels: int, param: str) -> Refusal:
    width, height = size
    return unusable(
        param,
        f"{param}: a picture of {width:,} × {height:,} pixels; at most {most_pixels:,} of a request are left for it",
        code="image_too_large",
    )
