"""A request as its body goes to a server: standard fields, messages, pictures."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mmrole.backends.api.data_urls import data_url
from mmrole.backends.api.options import ApiOptions
from mmrole.base.json_values import JsonObject
from mmrole.data.messages import ImageSource, LabelledImage, Message, Part, Quotation
from mmrole.data.quotations import neutralise
from mmrole.data.requests import ChatRequest, GenerationSettings

INSTEAD = {"max_tokens": "max_completion_tokens"}
"""Under what name a field is sent where the first one is refused."""


def setting_fields(settings: GenerationSettings, left_out: Collection[str] = ()) -> JsonObject:
    """How tokens are chosen, in standard fields, without those that the server refuses.

    Greedy is temperature 0; top_p then says nothing and is not sent.
    """
    fields: dict[str, Any] = {"max_tokens": settings.max_new_tokens}
    if settings.do_sample:
        fields |= {"temperature": settings.temperature, "top_p": settings.top_p}
    else:
        fields["temperature"] = 0
    fields["seed"] = settings.seed
    for name, other in INSTEAD.items():
        if name in left_out:
            fields[other] = fields[name]
    return {name: value for name, value in fields.items() if name not in left_out}


def body_of(request: ChatRequest, options: ApiOptions, left_out: Collection[str] = ()) -> JsonObject:
    """The body of a request.

    Args:
        request: with complete settings.
        options: the model, and what is sent besides.
        left_out: names of fields that the server refuses.

    Raises:
        OSError, UserError: a picture cannot be used.
    """
    return {
        "model": options.model,
        "messages": [_message(message, options.image_pixels) for message in request.messages],
        **fields_of(request, options, left_out),
    }


def fields_of(request: ChatRequest, options: ApiOptions, left_out: Collection[str] = ()) -> JsonObject:
    """All fields of a body but the model and the messages. What is null in `options.extra` is left out as well."""
    left_out = {*left_out, *(name for name, value in options.extra.items() if value is None)}
    extra = {name: value for name, value in options.extra.items() if name not in left_out}
    return setting_fields(request.complete_settings(), left_out) | extra


def _divided(part: Part) -> tuple[str, ImageSource | None]:
    """The text of a part and its picture."""
    if isinstance(part, str):
        return part, None
    if isinstance(part, Quotation):
        return neutralise(part.text), None
    if isinstance(part, LabelledImage):
        return part.label, part.image
    return "", part


def _message(message: Message, most_pixels: int) -> JsonObject:
    """A message; its texts and pictures in their order, texts that follow each other as one."""
    parts: list[JsonObject] = []
    for part in message.content:
        text, image = _divided(part)
        text = _sendable(text)
        if text and parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += text
        elif text:
            parts.append({"type": "text", "text": text})
        if image is not None:
            parts.append({"type": "image_url", "image_url": {"url": data_url(image, most_pixels)}})
    if all(part["type"] == "text" for part in parts):
        return {"role": message.role, "content": "".join(part["text"] for part in parts)}
    return {"role": message.role, "content": parts}


def _sendable(text: str) -> str:
    """The text with a mark for each half of a surrogate pair, which no UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
