"""Messages of a request to turns of a chat. Texts stay texts, whatever is in them; pictures are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from mmrole.base.errors import shown
from mmrole.base.json_values import Json, JsonObject
from mmrole.chat.server.image_urls import Pictures
from mmrole.chat.server.limits import Limits
from mmrole.chat.server.refusals import Refusal, unusable
from mmrole.data.messages import Message, Role

if TYPE_CHECKING:
    from PIL import Image

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_FIELDS = {"role", "content", "name"}
_NOTHING = (None, "", [], {})
_LONGEST_NAME = 64
_BETWEEN = "\n\n"

_Content: TypeAlias = "tuple[str | Image.Image, ...]"


class ClientChat(NamedTuple):
    """A chat as it is answered.

    Attributes:
        system: what its first messages say, those of the system; empty where there are none.
        turns: of user and assistant in turn, the user's first and last. What the system says later on is the user's.
        has_notes: whether anything is said by the system, at the beginning or later.
    """

    system: str
    turns: tuple[Message, ...]
    has_notes: bool

    @property
    def messages(self) -> tuple[Message, ...]:
        """As a request holds them."""
        return (Message("system", (self.system,)), *self.turns) if self.system else self.turns

    @property
    def pixels(self) -> int:
        """Of all pictures."""
        pictures = [part for turn in self.turns for part in turn.content if not isinstance(part, str)]
        # A client's images are decoded pictures, of the kinds of content that a message may have.
        return sum(picture.width * picture.height for picture in pictures)  # pyright: ignore[reportAttributeAccessIssue]


def read_chat(messages: Json, limits: Limits, pictures: Pictures) -> ClientChat:
    """The chat that messages in OpenAI's form make up.

    Messages of the same side that follow each other are one turn. A chat that begins with the assistant's words has an
    empty turn of the user before it.

    Raises:
        Refusal: they have another form, are too many or too large, or end with the assistant's words.
    """
    if not isinstance(messages, list) or not messages:
        raise unusable("messages", "messages must be a list with at least one message")
    if len(messages) > limits.messages:
        raise unusable("messages", f"messages: {len(messages):,} of them, of {limits.messages:,} at most")
    read = _Reading(limits, pictures)
    said = [read.message(message, f"messages[{number}]") for number, message in enumerate(messages)]
    start = next((place for place, (role, _) in enumerate(said) if role != "system"), len(said))
    system = _BETWEEN.join(text for _, content in said[:start] if (text := "".join(map(str, content))))
    turns = _turns(said[start:])
    if not turns:
        raise unusable("messages", "messages: there is no message of a user to reply to")
    if turns[-1].role == "assistant":
        raise unusable(
            "messages",
            "messages: the last one is the assistant's, and what it has begun is not gone on with; end with one of the "
            "user's",
        )
    if not turns[-1].content:
        raise unusable("messages", "messages: the last one says nothing")
    if turns[0].role == "assistant":
        turns.insert(0, Message("user", ()))
    turns = [Message(role, content or ("",)) for role, content in turns]
    return ClientChat(system, tuple(turns), any(role == "system" and content for role, content in said))


def _turns(said: Sequence[tuple[Role, _Content]]) -> list[Message]:
    """Turns of user and assistant."""
    turns: list[Message] = []
    for role, content in said:
        side = "assistant" if role == "assistant" else "user"
        if turns and turns[-1].role == side:
            before = turns[-1].content
            turns[-1] = Message(side, (*before, _BETWEEN, *content) if before and content else (*before, *content))
        else:
            turns.append(Message(side, content))
    return turns


class _Reading:
    """Reads messages of one request, which have limits together."""

    def __init__(self, limits: Limits, pictures: Pictures) -> None:
        self._limits, self._pictures = limits, pictures
        self._characters = self._images = self._pixels = 0

    def message(self, message: Json, param: str) -> tuple[Role, _Content]:
        """Who says what."""
        if not isinstance(message, dict):
            raise unusable(param, f"{param} must be an object")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise unusable(f"{param}.role", f"{param}.role must be one of {', '.join(_ROLES)}, not {shown(role)}")
        for field, value in message.items():
            if field not in _FIELDS and value not in _NOTHING:
                raise unusable(f"{param}.{shown(field)[1:-1]}", f"{param}: {shown(field)} is not supported")
        name = _name(message, param)
        content = self._content(message.get("content"), _ROLES[role], f"{param}.content")
        return _ROLES[role], (f"{name}: ", *content) if name else content

    def _content(self, content: Json, role: Role, param: str) -> _Content:
        if content is None and role == "assistant":
            return ()
        if isinstance(content, str):
            return (self._text(content),) if content else ()
        if not isinstance(content, list):
            raise unusable(param, f"{param} must be a text or a list of parts, not {shown(content)}")
        parts = (self._part(part, role, f"{param}[{number}]") for number, part in enumerate(content))
        return tuple(part for part in parts if part != "")

    def _part(self, part: Json, role: Role, param: str) -> str | Image.Image:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return self._text(part["text"])
        if kind != "image_url":
            raise unusable(param, f"{param} must be of the type text or image_url, not {shown(kind)}")
        if role != "user":
            raise unusable(param, f"{param}: only messages of the user show images")
        return self._image(part, f"{param}.image_url")

    def _image(self, part: JsonObject, param: str) -> Image.Image:
        value = part.get("image_url")
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str):
            raise unusable(param, f"{param} holds no url")
        self._images += 1
        if self._images > self._limits.images:
            raise unusable(param, f"{param}: more than {self._limits.images} images", code="too_many_images")
        picture = self._pictures.read(url, self._limits.pixels - self._pixels, param)
        self._pixels += picture.width * picture.height
        return picture

    def _text(self, text: str) -> str:
        self._characters += len(text)
        if self._characters > self._limits.characters:
            raise Refusal(
                400,
                f"messages: more than {self._limits.characters:,} characters",
                code="context_length_exceeded",
                param="messages",
            )
        return text


def _name(message: JsonObject, param: str) -> str:
    """Who speaks among several on the same side; empty where that is not said."""
    name = message.get("name")
    if name is None or name == "":
        return ""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
        raise unusable(f"{param}.name", f"{param}.name must be a text of at most {_LONGEST_NAME} printable characters")
    return name
