"""Replies that are given: by a Python function, or by a file of JSON Lines."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmrole.backends.backend import NoReplyError, Note
from mmrole.base.errors import UserError, shown
from mmrole.base.files import parse_json, read_text_file
from mmrole.base.json_values import Json, JsonObject
from mmrole.data.requests import ChatReply, ChatRequest, Piece

_REASONS = ("stop", "length", "refused", "failed")
_FIELDS = {"id", "text", "finish_reason", "error"}


@dataclass(frozen=True)
class ScriptedBackend:
    """Replies from a function, as they are asked for.

    Attributes:
        reply: gives the reply to a request.
        name: what is used, in a line.
        made_with: its fingerprint.
        check: told requests before they are asked; raises a NoReplyError where there will be no reply to some.
    """

    reply: Callable[[ChatRequest], ChatReply]
    name: str = "scripted replies"
    made_with: JsonObject = field(default_factory=lambda: {"model": "scripted replies"})
    check: Callable[[Sequence[ChatRequest]], None] = lambda requests: None

    def __str__(self) -> str:
        return self.name

    def fingerprint(self) -> JsonObject:
        """Whatever it was made with."""
        return self.made_with

    def fit(self, requests: Sequence[ChatRequest]) -> tuple[list[ChatRequest], list[Note]]:
        """The requests with MMRole's settings where they are open: a script has no context.

        Raises:
            NoReplyError: the script has no reply to some.
        """
        self.check(requests)
        return [replace(request, settings=request.complete_settings()) for request in requests], []

    @contextmanager
    def open(self) -> Iterator[ScriptedGenerator]:
        """Costs nothing."""
        yield ScriptedGenerator(self.reply)


class ScriptedGenerator:
    """Gives a reply a step, in the order of the requests."""

    def __init__(self, reply: Callable[[ChatRequest], ChatReply]) -> None:
        self._reply = reply
        self._waiting: deque[ChatRequest] = deque()
        self._last: list[ChatReply] = []

    def add(self, request: ChatRequest) -> None:
        """Lets a request join."""
        self._waiting.append(request)

    def cancel(self, id_: str) -> None:
        """Lets a request leave."""
        self._waiting = deque(request for request in self._waiting if request.id != id_)

    def step(self) -> list[Piece | ChatReply]:
        """The next reply, its text in one piece; nothing if nothing was asked."""
        self._last = []
        if not self._waiting:
            return []
        reply = self._reply(self._waiting.popleft())
        self._last = [reply]
        return [Piece(reply.id, reply.text), reply] if reply.text else [reply]

    def arrived(self) -> list[ChatReply]:
        """What the last step returned."""
        return self._last

    def status(self) -> str:
        """Nothing: a script has no work."""
        return ""


def read_replies(path: Path) -> dict[str, ChatReply]:
    """The replies in a file, by id.

    Each line is an object with `id` and `text`; `finish_reason` ("stop" where it is not given) may be "length", or
    "refused" or "failed" with the reason as `error`, and then there need be no text. Blank lines are passed over.

    Raises:
        UserError: the file cannot be read, or a line is of another form or repeats an id.
    """
    replies: dict[str, ChatReply] = {}
    try:
        text = read_text_file(path)
    except UserError as error:
        raise UserError(f"{error}; give another file as --replies") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            reply = _read_reply(_parse(line))
            if reply.id in replies:
                raise ValueError(f"the id {shown(reply.id)} is in an earlier line, too")
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}; correct the file") from None
        replies[reply.id] = reply
    return replies


def replies_of_file(path: Path) -> ScriptedBackend:
    """The replies in a file (see `read_replies`). It may hold more than are asked for.

    The fingerprint names the file, not what is in it: replies that failed may be mended there. A reply that was
    journaled is not read again.

    Raises:
        UserError: the file cannot be used.
    """
    replies = read_replies(path)

    def check(requests: Sequence[ChatRequest]) -> None:
        if lacking := [request.id for request in requests if request.id not in replies]:
            raise NoReplyError(path, lacking)

    made_with = {"model": "scripted replies", "replies": str(path)}
    return ScriptedBackend(lambda request: replies[request.id], f"replies from {path}", made_with, check)


def _parse(line: str) -> Json:
    """The value in a line, None if it is not JSON; ValueError where something else is wrong, such as a key twice."""
    try:
        return parse_json(line)
    except (json.JSONDecodeError, RecursionError):
        return None


def _read_reply(obj: Json) -> ChatReply:
    """Raises ValueError if a line has another form."""
    if not isinstance(obj, dict):
        raise ValueError('it is no JSON object, such as {"id": "…", "text": "…"}')
    if unknown := obj.keys() - _FIELDS:
        raise ValueError(f"the field {shown(min(unknown))} is not known")
    finish_reason = obj.get("finish_reason", "stop")
    if finish_reason not in _REASONS:
        raise ValueError(f"finish_reason is {shown(finish_reason)}, not one of {', '.join(_REASONS)}")
    is_reply = finish_reason in ("stop", "length")
    for name in ("id", "text") if is_reply else ("id", "error"):
        if name not in obj:
            raise ValueError(f"{name} is missing")
    for name, value in obj.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} is {shown(value)}, not a text")
    if is_reply and "error" in obj:
        raise ValueError('error is given, but finish_reason is neither "refused" nor "failed"')
    return ChatReply(obj["id"], obj.get("text", "").strip(), finish_reason, error=obj.get("error"))
