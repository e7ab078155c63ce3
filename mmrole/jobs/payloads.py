"""A reply as it stands in a journal: its fields but the id, and the hash of the images that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mmrole.base.errors import shown
from mmrole.base.json_values import Json, JsonObject
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource
from mmrole.data.requests import ChatReply, ChatRequest, Usage


def _is_number(value: Json) -> bool:
    return type(value) is int and value >= 0


_IS_RIGHT: dict[str, Callable[[Json], bool]] = {
    "text": lambda value: isinstance(value, str),
    "token_ids": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "finish_reason": lambda value: value in ("stop", "length", "refused"),
    "prompt_tokens": _is_number,
    "new_tokens": _is_number,
    "image": lambda value: isinstance(value, str),
}


def encode_reply(request: ChatRequest, reply: ChatReply) -> JsonObject:
    """What is journaled of a reply."""
    payload = {
        "text": reply.text,
        "token_ids": reply.token_ids,
        "finish_reason": reply.finish_reason,
        **reply.usage._asdict(),
        "image": hash_of_images(request.images),
    }
    return payload if reply.error is None else payload | {"error": reply.error}


def hash_of_images(images: Iterable[ImageSource]) -> str:
    """The SHA-256 of an image file, of several one after the other; empty if there is none."""
    return "".join([image.sha256 for image in images if isinstance(image, ImageFile)])


def decode_reply(id_: str, payload: Json) -> ChatReply:
    """The reply of `encode_reply`, without its token ids: no output holds them, and they take most of the memory.

    Raises:
        ValueError: the payload has another form; says what is wrong.
    """
    if not isinstance(payload, dict):
        raise ValueError(f"{shown(payload)} is no reply")
    is_refused = payload.get("finish_reason") == "refused"
    expected = _IS_RIGHT | ({"error": _IS_RIGHT["text"]} if is_refused else {})
    for name, is_right in expected.items():
        if name not in payload:
            raise ValueError(f"{name} is missing")
        if not is_right(payload[name]):
            raise ValueError(f"{name} is {shown(payload[name])}")
    unknown = payload.keys() - expected.keys()
    if unknown:
        raise ValueError(f"the field {shown(min(unknown))} is not known")
    usage = Usage(payload["prompt_tokens"], payload["new_tokens"])
    return ChatReply(id_, payload["text"], payload["finish_reason"], usage, error=payload.get("error"))
