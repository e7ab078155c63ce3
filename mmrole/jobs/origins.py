"""What servers let be known about how they made a job's replies: one model, asked in one way."""

from __future__ import annotations

from collections.abc import Iterable

from mmrole.base.errors import UserError, listed, shown
from mmrole.base.json_values import JsonObject
from mmrole.data.requests import ChatReply, Origin

_LISTED = 10


class Origins:
    """Those of the replies so far. Every further one must fit to them."""

    def __init__(self) -> None:
        self._seen: set[Origin] = set()
        self._model: str | None = None
        self._sent: set[str] = set()
        self._left_out: set[str] = set()

    def add(self, reply: ChatReply) -> None:
        """Takes a reply's origin, if it has one.

        Raises:
            UserError: it is another model's, or was made with other settings than those before.
        """
        origin = reply.origin
        if origin is None or origin in self._seen:
            return
        keep = "what is finished is kept: run the same command again when the server has it, or start anew"
        if self._model is not None and origin.model != self._model:
            raise UserError(
                f"{origin.url} now answers as {_model(origin.model)}, the replies so far are of {_model(self._model)}; "
                f"{keep} with --overwrite"
            )
        if changed := {*origin.sent} & self._left_out:
            raise UserError(
                f"{origin.url} now takes {_names(changed)}, the replies so far were made without; {keep} with "
                "--overwrite"
            )
        if changed := {*origin.left_out} & self._sent:
            raise UserError(
                f"{origin.url} now refuses {_names(changed)}, the replies so far were made with it; {keep} with "
                "--overwrite"
            )
        self._seen.add(origin)
        self._model = origin.model
        self._sent |= {*origin.sent}
        self._left_out |= {*origin.left_out}


def noted(replies: Iterable[ChatReply]) -> JsonObject:
    """What is noted of the origins of an output's replies, beside what it was made with: `reported_model`, `urls`,
    `left_out` and `not_honoured`. Empty where no server made them."""
    origins = sorted({reply.origin for reply in replies if reply.origin is not None})
    if not origins:
        return {}
    return {
        "urls": sorted({origin.url for origin in origins}),
        "reported_model": origins[0].model,
        "left_out": sorted({name for origin in origins for name in origin.left_out}),
        "not_honoured": sorted({name for origin in origins for name in origin.not_honoured}),
    }


def _model(name: str) -> str:
    return shown(name) if name else "a model that it does not name"


def _names(names: Iterable[str]) -> str:
    return listed(sorted(names), _LISTED)
