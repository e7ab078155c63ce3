"""How much one request may be, and how much all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mmrole.chat.server.refusals import Refusal

_RETRY_AFTER = "2"
_BYTES_A_PIXEL = 3


@dataclass(frozen=True)
class Limits:
    """The most that a request may have.

    Attributes:
        body: bytes.
        body_seconds: in which it must arrive.
        messages: of a chat.
        characters: of all its texts. How many tokens fit is asked of the backend, which has to count them for that.
        images: of all messages.
        pixels: of all images.
        choices: replies to it, `n`.
        stops: texts that end a reply.
        stop_characters: of one of these.
    """

    body: int = 32 << 20
    body_seconds: float = 60.0
    messages: int = 1000
    characters: int = 500_000
    images: int = 16
    pixels: int = 50_000_000
    choices: int = 16
    stops: int = 64
    stop_characters: int = 1000


class Places:
    """Room for the requests that are answered or wait for it.

    Args:
        requests: how many there may be; each choice of a request counts.
        nbytes: what all of them may hold: their bodies, then their pictures.
    """

    def __init__(self, requests: int, nbytes: int = 1 << 30) -> None:
        self.requests, self.nbytes = requests, nbytes
        self.taken = self.held = 0

    @contextmanager
    def place(self) -> Iterator[TakenPlace]:
        """A place for as long as the context lasts.

        Raises:
            Refusal: all are taken.
        """
        place = TakenPlace(self)
        try:
            place.take(1)
            yield place
        finally:
            place.free()


class TakenPlace:
    """What one request takes of the room.

    Raises:
        Refusal: of each method: there is no room for that.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._taken = self._held = 0

    def take(self, requests: int) -> None:
        """Takes so many places more."""
        if self._places.taken + requests > self._places.requests:
            raise _busy(f"{self._places.taken} requests are answered or wait, and more than {self._places.requests}")
        self._places.taken += requests
        self._taken += requests

    def hold(self, nbytes: int) -> None:
        """Is going to hold so many bytes, in place of what it held before."""
        if self._places.held - self._held + nbytes > self._places.nbytes:
            raise _busy("the requests that are answered or wait hold so many bytes that more")
        self._places.held += nbytes - self._held
        self._held = nbytes

    def hold_pixels(self, pixels: int) -> None:
        """The same of pictures."""
        self.hold(_BYTES_A_PIXEL * pixels)

    def free(self) -> None:
        """Gives all back."""
        self._places.taken -= self._taken
        self._places.held -= self._held
        self._taken = self._held = 0


def _busy(full: str) -> Refusal:
    return Refusal(
        503, f"{full} are not taken; ask again later", code="overloaded", headers={"Retry-After": _RETRY_AFTER}
    )
