"""The thread in which a generator takes its steps. Requests come in and words go out through queues.

All that uses the model is done there, its tokenizer among it: nothing of it need be safe in several threads.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from mmrole.backends.backend import Generator
from mmrole.base.errors import UserError
from mmrole.chat.conversation import Fit
from mmrole.chat.server.orders import Accepted, Ended, Event, Order, Ticket, Words
from mmrole.chat.server.refusals import Refusal
from mmrole.chat.server.stop_strings import StopStrings
from mmrole.data.requests import NO_USAGE, ChatReply, ChatRequest, Piece, Usage

_EXPECTED = (OSError, FloatingPointError, MemoryError)
_OUT_OF_MEMORY = "OutOfMemoryError"
"""Of torch, which a backend need not have."""


@dataclass(eq=False)
class _Open:
    """A choice at work.

    Attributes:
        request: what is asked for it.
        stops: reads its reply.
        text: what it says so far.
        told: what of that is on its way to the client; more than `text` where it began anew.
        usage: what it has cost.
    """

    ticket: Ticket
    choice: int
    request: ChatRequest
    stops: StopStrings
    text: str = ""
    told: str = ""
    usage: Usage = NO_USAGE

    def begin_anew(self) -> None:
        """Forgets all but what the client is told."""
        self.stops, self.text, self.usage = StopStrings(self.ticket.order.stops), "", NO_USAGE


class EngineThread:
    """Has a generator answer orders that come and go.

    Args:
        fit: that of the backend.
        generator: what the backend is when it is open. Nobody else uses it.
    """

    def __init__(self, fit: Fit, generator: Generator) -> None:
        self._fit, self._generator = fit, generator
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: dict[str, _Open] = {}
        self._left = False
        self._suspects: deque[list[_Open]] = deque()
        self._held: list[Ticket] = []
        self._news: list[tuple[Ticket, Event]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def at_work(self) -> int:
        """Choices that are neither finished nor left."""
        return len(self._open) + sum(map(len, [*self._suspects])) + len(self._held)

    @property
    def is_alive(self) -> bool:
        """Whether it takes steps."""
        return self._thread.is_alive()

    def ask(self, order: Order) -> Ticket:
        """Lets an order join, at the next step; to be called in an event loop."""
        ticket = Ticket(order)
        if not self.is_alive:
            ticket.tell(Refusal(500, "the engine has ended; the server must be started again"))
        self._inbox.put(partial(self._join, ticket))
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Lets an order leave, if it is there; its places are free at the next step."""
        self._inbox.put(partial(self._drop, ticket))

    def close(self) -> None:
        """Ends the thread; what is open gets no reply."""
        self._inbox.put(None)
        self._thread.join()

    # In the thread.

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # nobody may wait for what does not come
            refusal = _failure(error)
            waiting = {open_.ticket for choices in self._suspects for open_ in choices} | {*self._held}
            for ticket in waiting - {open_.ticket for open_ in self._open.values()}:
                self._tell(ticket, refusal)
            with suppress(Exception):
                self._end_all(refusal)
            self._deliver()

    def _work(self) -> None:
        while True:
            for command in self._commands():
                if command is None:
                    return
                command()
            self._let_in()
            if self._open or self._left:
                self._step()
            self._deliver()

    def _commands(self) -> list[Callable[[], None] | None]:
        """What has come in; waits for it where there is nothing else to do."""
        idle = not (self._open or self._left or self._suspects or self._held)
        commands = [self._inbox.get()] if idle else []
        with suppress(queue.Empty):
            while True:
                commands.append(self._inbox.get_nowait())
        return commands

    def _let_in(self) -> None:
        """After a failure for which any may be to blame: lets orders in one by one, and then those that came since."""
        while self._suspects and not self._open:
            for open_ in self._suspects.popleft():
                open_.begin_anew()
                self._open[open_.request.id] = open_
                self._generator.add(open_.request)
        if self._held and not self._suspects and not self._open:
            held, self._held = self._held, []
            for ticket in held:
                self._join(ticket)

    def _join(self, ticket: Ticket) -> None:
        if self._suspects or self._held:
            self._held.append(ticket)
            return
        try:
            requests = self._fitting(self._requests(ticket.order))
            for choice, request in enumerate(requests):
                self._generator.add(request)
                self._open[request.id] = _Open(ticket, choice, request, StopStrings(ticket.order.stops))
        except Refusal as refusal:
            self._tell(ticket, refusal)
        except UserError as error:
            self._tell(ticket, Refusal(400, str(error)))
        except Exception as error:
            self._tell(ticket, _failure(error))
        else:
            self._tell(ticket, Accepted())

    def _requests(self, order: Order) -> list[ChatRequest]:
        """The requests of an order, with ids that no other one at work has."""
        requests = []
        for suffix in ("", *(f"/choice-{number}" for number in range(2, order.choices + 1))):
            id_ = order.id + suffix
            others = itertools.count(2)
            while id_ in self._open:
                id_ = f"{order.id}{suffix}/again-{next(others)}"
            requests.append(ChatRequest(id_, order.messages, order.settings, order.draws + suffix))
        return requests

    def _fitting(self, requests: list[ChatRequest]) -> list[ChatRequest]:
        """The requests as they are asked: their replies at most as long as the context has room for."""
        fitted, notes = self._fit(requests)
        excess = max((note.excess for note in notes), default=0)
        if not excess:
            return fitted
        asked = fitted[0].complete_settings()
        room = asked.max_new_tokens - excess
        if room < 1:
            raise Refusal(
                400,
                f"the chat is too long: it has {1 - room:,} positions more than the context has besides one token of a "
                "reply",
                code="context_length_exceeded",
                param="messages",
            )
        return [replace(request, settings=replace(asked, max_new_tokens=room)) for request in fitted]

    def _drop(self, ticket: Ticket) -> None:
        for id_ in [id_ for id_, open_ in self._open.items() if open_.ticket is ticket]:
            self._cancel(id_)
        self._suspects = deque(choices for choices in self._suspects if choices[0].ticket is not ticket)
        self._held = [held for held in self._held if held is not ticket]

    def _cancel(self, id_: str) -> None:
        self._generator.cancel(id_)
        del self._open[id_]
        self._left = True

    def _step(self) -> None:
        """Goes on. What fails ends the order that is at work alone; where there are several, each is tried alone."""
        self._left = False
        try:
            events = self._generator.step()
        except Exception as error:
            if len({open_.ticket for open_ in self._open.values()}) > 1:
                self._suspect(error)
            else:
                self._end_all(_failure(error))
            return
        for event in events:
            open_ = self._open.get(event.id)
            if open_ is not None and isinstance(event, Piece):
                self._read(open_, event)
            elif open_ is not None and isinstance(event, ChatReply):
                self._end(open_, event)

    def _read(self, open_: _Open, piece: Piece) -> None:
        open_.usage = piece.usage
        self._say(open_, open_.stops.read(piece.text))
        if open_.stops.found:
            self._cancel(piece.id)
            reply = ChatReply(piece.id, open_.text, "stop", open_.usage)
            self._tell(open_.ticket, Ended(open_.choice, reply))

    def _end(self, open_: _Open, reply: ChatReply) -> None:
        self._say(open_, open_.stops.end())
        del self._open[reply.id]
        if open_.ticket.order.stops and reply.error is None:
            reply = replace(reply, text=open_.text)
        self._tell(open_.ticket, Ended(open_.choice, reply))

    def _say(self, open_: _Open, text: str) -> None:
        """Tells what is new. One that began anew says the same again, but for ties that are rounded otherwise."""
        open_.text += text
        new = open_.text[len(open_.told) :]
        if new and open_.text.startswith(open_.told):
            open_.told = open_.text
            self._tell(open_.ticket, Words(open_.choice, new))

    def _suspect(self, error: Exception) -> None:
        """Has all orders begin anew, each alone."""
        print(f"a step has failed; each request of it is tried alone: {error!r:.200}", file=sys.stderr, flush=True)
        by_ticket: dict[Ticket, list[_Open]] = {}
        for open_ in self._open.values():
            by_ticket.setdefault(open_.ticket, []).append(open_)
        ids = [*self._open]
        self._open.clear()
        self._suspects.extend(by_ticket.values())
        for id_ in ids:
            self._generator.cancel(id_)

    def _end_all(self, refusal: Refusal) -> None:
        print(f"the model has failed: {refusal}", file=sys.stderr, flush=True)
        for ticket in {open_.ticket for open_ in self._open.values()}:
            self._tell(ticket, refusal)
        ids = [*self._open]
        self._open.clear()
        self._left = False
        for id_ in ids:
            self._generator.cancel(id_)

    def _tell(self, ticket: Ticket, event: Event) -> None:
        self._news.append((ticket, event))

    def _deliver(self) -> None:
        """Hands all news over at once: each time wakes the event loop."""
        news, self._news = self._news, []
        for loop in {ticket.loop for ticket, _ in news}:
            told = [(ticket, event) for ticket, event in news if ticket.loop is loop]
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(_hand_over, told)


def _hand_over(told: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in told:
        ticket.tell(event)


def _failure(error: Exception) -> Refusal:
    """What clients are told of an error; of one that nobody expects the terminal gets all."""
    if isinstance(error, UserError):
        return Refusal(500, str(error))
    name = type(error).__name__
    if not isinstance(error, _EXPECTED) and name != _OUT_OF_MEMORY:
        traceback.print_exception(error)
    first = (str(error).splitlines() or [""])[0]
    return Refusal(500, f"the model fails: {name}: {first}")
