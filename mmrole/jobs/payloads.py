"""A reply as it stands in a journal: its fields but the id, and the hash of the images that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from mmrole.base.errors import shown
from mmrole.base.json_values import Json, JsonObject
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource
from mmrole.data.requests import ChatReply, ChatRequest, Origin, Usage


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


def _are_names(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_IS_ORIGIN: dict[str, Callable[[Json], bool]] = {
    "url": lambda value: isinstance(value, str),
    "model": lambda value: isinstance(value, str),
    "sent": _are_names,
    "left_out": _are_names,
    "not_honoured": _are_names,
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
    if reply.error is not None:
        payload["error"] = reply.error
    if reply.origin is not None:
        payload["origin"] = reply.origin._asdict()
    return payload


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
    if "origin" in payload:
        expected = expected | {"origin": lambda value: isinstance(value, dict)}
    _check_fields(payload, expected)
    usage = Usage(payload["prompt_tokens"], payload["new_tokens"])
    origin = _decode_origin(payload["origin"]) if "origin" in payload else None
    return ChatReply(id_, payload["text"], payload["finish_reason"], usage, error=payload.get("error"), origin=origin)


def _decode_origin(origin: JsonObject) -> Origin:
    _check_fields(origin, _IS_ORIGIN)
    names = (tuple(origin[name]) for name in ("sent", "left_out", "not_honoured"))
    return _once(Origin(origin["url"], origin["model"], *names))


@lru_cache(maxsize=16)
def _once(origin: Origin) -> Origin:
    """The same object for equal origins: nearly all replies of a job have the same one."""
    return origin


def _check_fields(obj: JsonObject, expected: Mapping[str, Callable[[Json], bool]]) -> None:
    for name, is_right in expected.items():
        if name not in obj:
            raise ValueError(f"{name} is missing")
        if not is_right(obj[name]):
            raise ValueError(f"{name} is {shown(obj[name])}")
    unknown = obj.keys() - expected.keys()
    if unknown:
        raise ValueError(f"the field {shown(min(unknown))} is not known")
