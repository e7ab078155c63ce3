"""What a chat consists of: messages of text, images, and text that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from mmrole.data.image_file import ImageFile

if TYPE_CHECKING:
    from PIL import Image

Role = Literal["system", "user", "assistant"]

ImageSource: TypeAlias = "Path | ImageFile | Image.Image"
"""An image: its file, its file as it was when a job began, or the picture itself."""


@dataclass(frozen=True, slots=True)
class Quotation:
    """Text that somebody else wrote. It stands after a line break.

    Attributes:
        text: what it says.
        apart: whatever it says, the token ids of the rest of its message are the same; and a prompt that is too long is
            cut here. Otherwise it is encoded with the text around it, and never cut.
    """

    text: str
    apart: bool = True


class LabelledImage(NamedTuple):
    """An image, and the text before it that names it in place of the model's own (`Picture 1: `)."""

    image: ImageSource
    label: str


_TEXTS = (str, Quotation)

Part: TypeAlias = "str | Quotation | ImageSource | LabelledImage"


class Message(NamedTuple):
    """What is said in one go. No text in it is markup or a special token."""

    role: Role
    content: tuple[Part, ...]
    """Texts and images in the order in which the model reads them; texts that follow each other are one."""

    @property
    def text(self) -> str:
        """Its texts, quotations among them, without the images."""
        parts = [part for part in self.content if isinstance(part, _TEXTS)]
        return "".join([part.text if isinstance(part, Quotation) else part for part in parts])

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Its images, in order."""
        return tuple(
            [
                part.image if isinstance(part, LabelledImage) else part
                for part in self.content
                if not isinstance(part, _TEXTS)
            ]
        )


def one_turn(system: str, *content: Part | None) -> tuple[Message, Message]:
    """MMRole's own prompts: a system message, then a user turn. None is left out: there may be no image."""
    return Message("system", (system,)), Message("user", tuple(part for part in content if part is not None))
