"""What a server asks of its engine, and what comes back: an order, and its events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from mmrole.chat.server.refusals import Refusal
from mmrole.data.messages import Message
from mmrole.data.requests import AskedSettings, ChatReply


@dataclass(frozen=True)
class Order:
    """What is asked: a chat, to be answered once or several times.

    Attributes:
        id: names it, for scripted replies among others. Of the second choice it is `ID/choice-2`, and so on.
        messages: of the chat.
        settings: how tokens are chosen; what is open is for the backend.
        draws: seeds the draws, as an id does.
        choices: how many replies there are to be.
        stops: texts that end a reply.
    """

    id: str
    messages: tuple[Message, ...]
    settings: AskedSettings = AskedSettings()  # noqa: RUF009
    draws: str = ""
    choices: int = 1
    stops: tuple[str, ...] = ()


class Accepted(NamedTuple):
    """The order fits, and its replies will come."""


class Words(NamedTuple):
    """A piece of a choice's reply."""

    choice: int
    text: str


class Ended(NamedTuple):
    """A choice has ended: its whole reply, up to a text that ends it."""

    choice: int
    reply: ChatReply


Event: TypeAlias = "Accepted | Words | Ended | Refusal"


class Ticket:
    """An order at work; its events are read in the event loop in which it was made."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def tell(self, event: Event) -> None:
        """Adds an event; to be called in the event loop."""
        self._events.put_nowait(event)

    async def next(self) -> Accepted | Words | Ended:
        """The next event.

        Raises:
            Refusal: there are no more.
        """
        event = await self._events.get()
        if isinstance(event, Refusal):
            raise event
        return event
