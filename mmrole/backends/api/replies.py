"""What a server has sent, read as a reply. It is somebody else's text: anything can be in it."""

from __future__ import annotations

import json
import re
from typing import NamedTuple, TypeGuard

from mmrole.backends.api.failures import ApiFailure, failure_of_error
from mmrole.base.errors import shown
from mmrole.base.files import parse_json
from mmrole.base.json_values import Json, JsonObject
from mmrole.data.requests import FinishReason, Usage

_LONGEST_MODEL = 200
_LENGTH = ("length", "max_tokens", "MAX_TOKENS")
_FILTERED = ("content_filter", "SAFETY", "refusal")

_REASONING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_REASONING = re.compile(r"\A.*</think>", re.DOTALL | re.IGNORECASE)  # its beginning can be part of the prompt


class Completion(NamedTuple):
    """A reply as a server has sent it.

    Attributes:
        text: what is said, without reasoning.
        finish_reason: why it ends; never "failed".
        model: the model's id, as reported; empty where none is.
        usage: what it took; None where that is not said.
        error: why it is refused; None of others.
    """

    text: str
    finish_reason: FinishReason
    model: str
    usage: Usage | None
    error: str | None = None


def read_completion(data: bytes, max_new_tokens: int) -> Completion:
    """The reply in the body of a response.

    Args:
        data: the body.
        max_new_tokens: that were asked for. A reply of so many is cut, whatever the server calls it.

    Raises:
        ApiFailure: it is none.
    """
    try:
        obj = parse_json(data.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError):
        raise ApiFailure("unreadable", f"the reply is no JSON: {shown(data[:60])}") from None
    if isinstance(obj, dict) and obj.get("error") and not obj.get("choices"):
        raise failure_of_error(obj["error"])
    message, reason = _first_choice(obj)
    text = _without_reasoning(_text(message.get("content"))).strip()
    model = obj.get("model")
    usage = _usage(obj.get("usage"))
    finish_reason, error = _finish(message, reason, text)
    if finish_reason == "stop" and usage is not None and usage.new_tokens >= max_new_tokens:
        finish_reason = "length"
    return Completion(text, finish_reason, model[:_LONGEST_MODEL] if isinstance(model, str) else "", usage, error)


def _first_choice(obj: Json) -> tuple[JsonObject, Json]:
    """The message of the first choice, and why it ends."""
    choices = obj.get("choices") if isinstance(obj, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ApiFailure("unreadable", f"the reply holds no choices[0].message: {shown(obj)}")
    return message, choice.get("finish_reason")


def _text(content: Json) -> str:
    """The text of a message, of its parts of text where it has parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise ApiFailure("unreadable", f"the reply's content is {shown(content)}")
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _without_reasoning(text: str) -> str:
    return _END_OF_REASONING.sub("", _REASONING.sub("", text))


def _finish(message: JsonObject, reason: Json, text: str) -> tuple[FinishReason, str | None]:
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return "refused", refusal.strip()
    if reason in _FILTERED:
        return "refused", f"finish_reason is {reason}" + ("" if text else ", and there is no text")
    return ("length" if reason in _LENGTH else "stop"), None


def _usage(obj: Json) -> Usage | None:
    if not isinstance(obj, dict):
        return None
    prompt_tokens, new_tokens = obj.get("prompt_tokens"), obj.get("completion_tokens")
    return Usage(prompt_tokens, new_tokens) if _is_count(prompt_tokens) and _is_count(new_tokens) else None


def _is_count(value: Json) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**53
