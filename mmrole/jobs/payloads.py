"""A reply as it stands in a journal: its fields but the id, and the hash of the image that it is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmrole.base.errors import shown
from mmrole.data.requests import ChatReply, ChatRequest, Usage

Json = Any


def _is_number(value: Json) -> bool:
    return type(value) is int and value >= 0


_IS_RIGHT: dict[str, Callable[[Json], bool]] = {
    "text": lambda value: isinstance(value, str),
    "token_ids": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "finish_reason": lambda value: value in ("stop", "length"),
    "prompt_tokens": _is_number,
    "new_tokens": _is_number,
    "image": lambda value: isinstance(value, str),
}


def encode_reply(request: ChatRequest, reply: ChatReply) -> Json:
    """What is journaled of a reply."""
    (image,) = request.images
    return {
        "text": reply.text,
        "token_ids": reply.token_ids,
        "finish_reason": reply.finish_reason,
        **reply.usage._asdict(),
        "image": image.sha256,
    }


def decode_reply(id_: str, payload: Json) -> ChatReply:
    """The reply of `encode_reply`, without its token ids: no output holds them, and they take most of the memory.

    Raises:
        ValueError: the payload has another form; says what is wrong.
    """
    if not isinstance(payload, dict):
        raise ValueError(f"{shown(payload)} is no reply")
    for name, is_right in _IS_RIGHT.items():
        if name not in payload:
            raise ValueError(f"{name} is missing")
        if not is_right(payload[name]):
            raise ValueError(f"{name} is {shown(payload[name])}")
    unknown = payload.keys() - _IS_RIGHT.keys()
    if unknown:
        raise ValueError(f"the field {shown(min(unknown))} is not known")
    usage = Usage(payload["prompt_tokens"], payload["new_tokens"])
    return ChatReply(id_, payload["text"], payload["finish_reason"], usage)
