"""Replies in OpenAI's form: whole, and in chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from starlette.types import Send

from mmrole.base.json_values import JsonObject
from mmrole.data.requests import ChatReply, Usage


class Naming(NamedTuple):
    """What all chunks of a completion have in common.

    Attributes:
        id: of the completion.
        created: seconds since 1970.
        model: as it was asked for.
    """

    id: str
    created: int
    model: str

    def whole(self, replies: Sequence[ChatReply]) -> JsonObject:
        """A completion, from the replies of its choices, in order."""
        choices = [
            {"index": index, "message": _message(reply), "finish_reason": _reason(reply), "logprobs": None}
            for index, reply in enumerate(replies)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": _usage(replies)}

    def chunk(self, choice: int, delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
        """A piece of one."""
        choices = [{"index": choice, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]
        return {**self._head("chat.completion.chunk"), "choices": choices}

    def opening(self, choice: int) -> JsonObject:
        """The first chunk of a choice."""
        return self.chunk(choice, {"role": "assistant", "content": ""})

    def ending(self, choice: int, reply: ChatReply) -> JsonObject:
        """The last one."""
        return self.chunk(choice, {} if reply.error is None else {"refusal": reply.error}, _reason(reply))

    def cost(self, replies: Sequence[ChatReply]) -> JsonObject:
        """The chunk that says what all choices have cost."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(replies)}

    def _head(self, kind: str) -> JsonObject:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(data: JsonObject) -> bytes:
    """A server-sent event."""
    return b"data: " + encoded(data) + b"\n\n"


async def send_json(send: Send, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    """Sends a response of JSON."""
    head = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    coded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in head.items()]
    await send({"type": "http.response.start", "status": status, "headers": coded})
    await send({"type": "http.response.body", "body": body})


LAST_EVENT = b"data: [DONE]\n\n"


def encoded(data: JsonObject) -> bytes:
    """JSON in UTF-8; a lone half of a surrogate pair becomes an escape."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode()


def total_usage(replies: Sequence[ChatReply]) -> Usage:
    """What a completion has cost; its prompt counts once."""
    return Usage(replies[0].usage.prompt_tokens, sum(reply.usage.new_tokens for reply in replies))


def _usage(replies: Sequence[ChatReply]) -> JsonObject:
    prompt, new = total_usage(replies)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _message(reply: ChatReply) -> JsonObject:
    if reply.error is not None:
        return {"role": "assistant", "content": reply.text or None, "refusal": reply.error}
    return {"role": "assistant", "content": reply.text, "refusal": None}


def _reason(reply: ChatReply) -> str:
    return "length" if reply.finish_reason == "length" else "stop"
