"""How many requests are under way at once: as many as the server bears."""

from __future__ import annotations

_FIRST = 8
_MOST = 256
_FEWEST_REPLIES = 8
"""Of which a rate is taken."""
_GAIN = 1.1
_PATIENCE = 8
"""Rounds without a change, after which more is tried again."""


class Window:
    """The number of requests that may be under way.

    The first one goes alone: it finds out whether the server replies at all. Then there are eight, and twice as many
    each time that the server has kept up with it, until more of them bring no more replies a second: they would only
    wait longer at the server. At 429 or a time-out they are halved, and from then on grow by an eighth. With a number
    that is given, they are so many, but for such troubles.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._most = _MOST if fixed is None else fixed
        self.limit = 1
        self.round = 0
        """Changes with the limit. A request belongs to the round in which it was sent."""
        self._is_alone = True
        self._had_trouble = False
        self._began = 0.0
        self._replies = self._own_replies = 0
        self._best = 0.0
        self._before = self.limit
        self._held = 0

    def well(self, round_: int, now: float) -> None:
        """Notes a reply.

        Args:
            round_: in which the request was sent.
            now: the time, in seconds from any moment.
        """
        if self._is_alone:
            self._is_alone = False
            self._set(min(_FIRST, self._most) if self._fixed is None else self._fixed, now)
            return
        self._replies += 1
        self._own_replies += round_ == self.round
        if self._own_replies >= max(self.limit, _FEWEST_REPLIES):
            self._end_round(now)

    def trouble(self, round_: int, now: float) -> None:
        """Notes that the server has too much to do; what was sent in an earlier round says nothing new."""
        if round_ == self.round:
            self._had_trouble = True
            self._best, self._before = 0.0, self._most
            self._set(max(1, self.limit // 2), now)

    def _end_round(self, now: float) -> None:
        """Allows more if the last change brought more replies a second, and takes it back if it did not."""
        rate = self._replies / max(now - self._began, 1e-9)
        if rate > _GAIN * self._best or self._held > _PATIENCE:
            self._best, self._before = rate, self.limit
            more = max(1, self.limit // 8) if self._had_trouble else self.limit
            self._set(min(self._most, self.limit + more), now)
        elif self._before < self.limit:
            self._set(self._before, now)
        else:
            self._held += 1
            self._begin(now)

    def _set(self, limit: int, now: float) -> None:
        self.limit = limit
        self.round += 1
        self._held = 0
        self._begin(now)

    def _begin(self, now: float) -> None:
        """Begins to measure: until as many requests as may be under way have been sent since then and replied to."""
        self._began, self._replies, self._own_replies = now, 0, 0
