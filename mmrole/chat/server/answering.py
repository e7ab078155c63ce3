"""One request from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mmrole.base.errors import in_one_line
from mmrole.base.files import parse_json
from mmrole.chat.server.access_log import AccessLine
from mmrole.chat.server.body_fields import Fields, read_fields
from mmrole.chat.server.chat_messages import ClientChat, read_chat
from mmrole.chat.server.completions import LAST_EVENT, Naming, encoded, event, send_json, total_usage
from mmrole.chat.server.engine_thread import EngineThread
from mmrole.chat.server.image_urls import Pictures
from mmrole.chat.server.limits import Limits, Places, TakenPlace
from mmrole.chat.server.orders import Accepted, Ended, Order, Ticket, Words
from mmrole.chat.server.refusals import Refusal
from mmrole.chat.server.served_models import ServedModels
from mmrole.data.requests import ChatReply

REQUEST_ID = "x-client-request-id"
"""The header with a request's id, percent-encoded."""

_LONGEST_ID = 4096


@dataclass
class Desk:
    """What requests are answered with.

    Attributes:
        engine: has them answered.
        models: as whom.
        limits: of one request.
        places: for all of them.
    """

    engine: EngineThread
    models: ServedModels
    limits: Limits
    places: Places
    pictures: Pictures = field(default_factory=Pictures)
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))


class Understood(NamedTuple):
    """A request that was read.

    Attributes:
        fields: what it asks for.
        chat: what it tells.
        order: both, for the engine.
    """

    fields: Fields
    chat: ClientChat
    order: Order


class ChatAnswer(Response):
    """The response to a request for a chat completion: reads it, has it answered, and sends what comes."""

    def __init__(self, desk: Desk, request: Request) -> None:
        super().__init__()
        self._desk, self._request = desk, request
        self._access: AccessLine = request.scope["access"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers.

        Raises:
            Refusal: it is not answered, and nothing was sent.
        """
        try:
            await self._answer(receive, send)
        except ClientDisconnect:
            self._access.gone()

    async def _answer(self, receive: Receive, send: Send) -> None:
        with self._desk.places.place() as place:
            body = await read_body(self._request, self._desk.limits, place)
            asked = await asyncio.to_thread(self._read, body)
            del body
            place.hold_pixels(asked.chat.pixels)
            place.take(asked.fields.choices - 1)
            self._access.note(f"{asked.fields.model} images={sum(len(turn.images) for turn in asked.chat.turns)}")
            ticket = self._desk.engine.ask(asked.order)
            try:
                answer = self._stream if asked.fields.stream else self._whole
                await _while_connected(answer(asked.fields, ticket, send), receive)
            finally:
                self._desk.engine.leave(ticket)

    def _read(self, body: bytes) -> Understood:
        """Reads a body; in a thread, for pictures take time."""
        limits, models = self._desk.limits, self._desk.models
        obj = _parse(body)
        fields = read_fields(obj, limits)
        models.find(fields.model)
        chat = read_chat(obj.get("messages"), limits, self._desk.pictures)
        messages = models.messages(fields.model, chat)
        id_ = _decoded(self._request.headers.get(REQUEST_ID, ""))
        # Equal seeds draw alike, and without a seed no two requests do, unless their ids say so.
        draws = id_ or ("" if fields.settings.seed is not None else uuid.uuid4().hex)
        order = Order(
            id_ or str(next(self._desk.numbers)), messages, fields.settings, draws, fields.choices, fields.stops
        )
        return Understood(fields, chat, order)

    async def _whole(self, fields: Fields, ticket: Ticket, send: Send) -> None:
        replies: dict[int, ChatReply] = {}
        while len(replies) < fields.choices:
            said = await ticket.next()
            if isinstance(said, Words):
                self._access.begun()
            elif isinstance(said, Ended):
                replies[said.choice] = _sound(said.reply)
        in_order = self._finished(replies)
        await send_json(send, 200, encoded(_naming(fields).whole(in_order)))

    async def _stream(self, fields: Fields, ticket: Ticket, send: Send) -> None:
        naming, replies = _naming(fields), dict[int, ChatReply]()
        assert isinstance(await ticket.next(), Accepted)  # else it is refused, with a status of its own
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_part(send, b"".join(event(naming.opening(choice)) for choice in range(fields.choices)))
        try:
            while len(replies) < fields.choices:
                said = await ticket.next()
                if isinstance(said, Words):
                    self._access.begun()
                    await _send_part(send, event(naming.chunk(said.choice, {"content": said.text})))
                elif isinstance(said, Ended):
                    replies[said.choice] = _sound(said.reply)
                    await _send_part(send, event(naming.ending(said.choice, said.reply)))
        except Refusal as refusal:
            self._access.note(f"failed: {refusal}")
            await _send_part(send, event(refusal.body), more=False)
            return
        in_order = self._finished(replies)
        cost = event(naming.cost(in_order)) if fields.include_usage else b""
        await _send_part(send, cost + LAST_EVENT, more=False)

    def _finished(self, replies: dict[int, ChatReply]) -> list[ChatReply]:
        """The replies in order, which are noted for the log."""
        in_order = [replies[choice] for choice in sorted(replies)]
        prompt, new = total_usage(in_order)
        reasons = "+".join(dict.fromkeys(reply.finish_reason for reply in in_order))
        self._access.note(f"choices={len(in_order)} prompt={prompt} new={new} {reasons}")
        return in_order


async def read_body(request: Request, limits: Limits, place: TakenPlace) -> bytes:
    """The body of a request.

    Raises:
        Refusal: it is too large, or does not come.
        ClientDisconnect: the client goes away.
    """
    told = request.headers.get("content-length", "")
    length = int(told) if told.isdecimal() and len(told) <= 15 else None
    # Many clients hear nothing before all is sent, and of a connection that is closed under them only that it is. So
    # what is told to be not much too large is let come, and thrown away.
    comes_whole = length is not None and length <= 2 * limits.body and "expect" not in request.headers
    too_large = Refusal(
        413,
        f"the body has more than {limits.body:,} bytes",
        code="request_too_large",
        headers={} if comes_whole else {"Connection": "close"},
    )
    if told.isdecimal() and (length is None or length > limits.body):
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                data += part
                if len(data) > limits.body:
                    raise too_large
                place.hold(len(data))
    except TimeoutError:
        raise Refusal(
            408, f"the body did not come within {limits.body_seconds:g} s", headers={"Connection": "close"}
        ) from None
    return bytes(data)


async def _send_part(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _while_connected(answering: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Answers until that is done.

    Raises:
        ClientDisconnect: the client goes away before.
    """
    answer, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        answer.result()
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _decoded(id_: str) -> str:
    """A request's id as its client has it: of ids with halves of surrogate pairs, too."""
    data = unquote_to_bytes(id_[:_LONGEST_ID])
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def _parse(body: bytes) -> dict[str, Any]:
    try:
        obj = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is no JSON: {in_one_line(why)}") from None
    if not isinstance(obj, dict):
        raise Refusal(400, 'the body must be a JSON object, such as {"model": "…", "messages": […]}')
    return obj


def _sound(reply: ChatReply) -> ChatReply:
    """A reply that has not failed."""
    if reply.finish_reason == "failed":
        raise Refusal(500, f"there is no reply: {reply.error}")
    return reply


def _naming(fields: Fields) -> Naming:
    return Naming(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), fields.model)
