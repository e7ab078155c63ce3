"""What answers requests: the seam between jobs or talks and an engine, a server or a script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from mmrole.base.errors import UserError, listed, shown
from mmrole.base.json_values import Json
from mmrole.data.requests import ChatReply, ChatRequest, Piece

_LISTED = 10


class Note(NamedTuple):
    """What a backend has to say about the length of a record's prompts.

    Attributes:
        kind: "cut" where a quotation was cut to fit, "long" where the prompts are asked although they are longer than
            they should be, "too long" where they cannot be asked.
        text: how far, in words.
        room: what they have to fit into, in words.
        excess: positions that they have too many.
    """

    kind: Literal["cut", "long", "too long"]
    text: str
    room: str
    excess: int = 0


class NoReplyError(UserError):
    """Requests to which there will be no reply.

    Attributes:
        source: what lacks the replies.
        ids: those of the requests.
    """

    def __init__(self, source: object, ids: Sequence[str]) -> None:
        first = listed([shown(id_) for id_ in ids], _LISTED)
        text = (
            f"there is no reply to {first}, which is asked; add a line with this id"
            if len(ids) == 1
            else f"there are no replies to {len(ids):,} requests that are asked: {first}; add a line for each"
        )
        super().__init__(f"{source}: {text}")
        self.source, self.ids = source, ids


class ProcessPlace(NamedTuple):
    """The process in which a backend runs, among those of its machine, and whether it may show progress."""

    local_rank: int = 0
    local_world_size: int = 1
    progress: bool = False
    world_size: int = 1
    """The processes of all machines."""


ALONE = ProcessPlace()
"""The only process."""


class Generator(Protocol):
    """A loop that requests join and leave at any time."""

    def add(self, request: ChatRequest) -> None:
        """Lets a request join. It comes from `Backend.fit`."""

    def cancel(self, id_: str) -> None:
        """Lets the request with this id leave, if it is there: no reply to it comes."""

    def step(self) -> Sequence[Piece | ChatReply]:
        """Goes on; returns new pieces of replies, and behind its last piece each reply that is finished."""
        ...

    def arrived(self) -> Sequence[ChatReply]:
        """Finished replies that must not be lost where the loop is left: those that the last step returned, and those
        that no step has returned yet, whether they were cancelled or not."""
        ...

    def status(self) -> str:
        """What there is to say about the work so far beside replies and tokens, in a few words; may be empty."""
        ...


class Backend(Protocol):
    """What answers requests. Making it ready (`open`) may take minutes; all else is known before."""

    def __str__(self) -> str:
        """What is used, in a line."""
        ...

    def fingerprint(self) -> Json:
        """Everything that changes replies, by name."""
        ...

    def fit(self, requests: Sequence[ChatRequest]) -> tuple[list[ChatRequest], list[Note]]:
        """The requests of one record as they will be asked, and what there is to say about them.

        Settings that were open are filled in; quotations are cut, alike in all requests, where these would be too long.
        Without requests it makes sure of what can be known before `open`.

        Raises:
            NoReplyError: some cannot be answered.
            UserError: none can, for want of something that can be known before `open`.
        """
        ...

    def open(self) -> AbstractContextManager[Generator]:
        """Makes it ready, as long as the context lasts.

        Raises:
            UserError: something that a person can mend is wrong, now or while the context lasts.
        """
        ...


@runtime_checkable
class Rehearsing(Protocol):
    """A backend that can do something else with requests than ask them: say what they cost, or write them down."""

    def rehearse(self, requests: Sequence[ChatRequest]) -> str:
        """Does that; says what has come of it, in a line.

        Raises:
            UserError: it cannot be done.
        """
        ...


def generate(generator: Generator, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
    """Yields a reply to each request, in the order in which they are finished.

    Given up half-way (the iterator is closed), the requests without a reply leave.
    """
    for event in _events(generator, requests):
        if isinstance(event, ChatReply):
            yield event


def stream(generator: Generator, request: ChatRequest) -> Iterator[Piece | ChatReply]:
    """Yields the pieces of the reply to a request, and at last the reply; given up half-way, the request leaves."""
    yield from _events(generator, [request])


def _events(generator: Generator, requests: Iterable[ChatRequest]) -> Iterator[Piece | ChatReply]:
    open_: set[str] = set()
    try:
        for request in requests:
            open_.add(request.id)
            generator.add(request)
        while open_:
            for event in generator.step():
                if event.id in open_:
                    if isinstance(event, ChatReply):
                        open_.remove(event.id)
                    yield event
    finally:
        for id_ in open_:
            generator.cancel(id_)
