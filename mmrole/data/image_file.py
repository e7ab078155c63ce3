"""The picture that a request shows, named by what its file held when the job began."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mmrole.base.errors import UserError
from mmrole.base.files import sha256

if TYPE_CHECKING:
    from mmrole.base.pillow import Image


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file and the SHA-256 of what it held."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file as it is now.

        Raises:
            UserError: it cannot be read.
        """
        return cls(path, sha256(path))

    def read(self) -> bytes:
        """The bytes that were compared.

        Raises:
            OSError: the file cannot be read.
            UserError: it holds something else by now.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(
                f"{self.path} is another picture than when this job began; what is finished is kept: put the first one "
                "back and run the same command again to go on, or start anew with --overwrite"
            )
        return data

    def open(self) -> Image.Image:
        """Opens the picture, not yet decoded, from the very bytes that were compared.

        Raises:
            OSError, UserError: as `read`.
        """
        from mmrole.base.pillow import FORMATS, Image

        return Image.open(io.BytesIO(self.read()), formats=FORMATS)
