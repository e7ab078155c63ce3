"""One try at a request: what is sent of it, what comes back, what that tells about the server, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache

from mmrole.backends.api.access import Access
from mmrole.backends.api.bodies import INSTEAD, body_of, fields_of
from mmrole.backends.api.client import ApiClient
from mmrole.backends.api.costs import Budget
from mmrole.backends.api.failures import ApiFailure
from mmrole.backends.api.options import ApiOptions
from mmrole.backends.api.probes import PREFIX
from mmrole.backends.api.replies import read_completion
from mmrole.base.errors import UserError, shown
from mmrole.base.json_values import JsonObject
from mmrole.data.requests import NO_USAGE, ChatReply, ChatRequest, Origin

_MAY_COST = ("timeout", "unreadable", "cut off")


class Asking:
    """How a server is asked, as far as it is known by now.

    Attributes:
        budget: what was spent.
        not_honoured: what probes found.
    """

    def __init__(self, options: ApiOptions, access: Access, say: Callable[[str], None]) -> None:
        self._options, self._access, self._say = options, access, say
        self._client = ApiClient(options, access)
        self._left_out: dict[str, None] = {}
        self._taken: set[str] = set()
        self._model: str | None = None
        self.budget = Budget(options.prices, options.max_cost, options.image_pixels)
        self.not_honoured: tuple[str, ...] = ()

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Sends a request, for which there is money, once.

        Raises:
            ApiFailure: no reply came of it. If its kind is "setting", it can be asked again at once, without that.
            UserError: a picture cannot be used.
        """
        usage = NO_USAGE
        try:
            body = await self._body(request)
            data = await self._client.send(request.id, body)
            usage = None  # it may cost something, whatever it is
            completion = read_completion(data, request.complete_settings().max_new_tokens)
            usage = completion.usage
        except ApiFailure as failure:
            usage = None if failure.kind in _MAY_COST else NO_USAGE
            if failure.kind == "setting":
                self._leave_out(failure)
            if failure.kind == "refused":
                return ChatReply(request.id, "", "refused", error=self._access.without_key(str(failure)))
            raise
        finally:
            self.budget.settle(request.id, usage)
        clean = self._access.without_key
        model = clean(completion.model)
        if not request.id.startswith(PREFIX):
            self._note_model(model)
        return ChatReply(
            request.id,
            clean(completion.text),
            completion.finish_reason,
            completion.usage or NO_USAGE,
            error=None if completion.error is None else clean(completion.error),
            origin=self._origin(model, request, body),
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def _body(self, request: ChatRequest) -> JsonObject:
        if not request.images:
            return body_of(request, self._options, tuple(self._left_out))
        try:  # they are read and encoded
            return await asyncio.to_thread(body_of, request, self._options, tuple(self._left_out))
        except OSError as error:
            raise UserError(
                f"an image cannot be read any more: {error}; what is finished is kept: run the same command again to "
                "go on"
            ) from None

    def _leave_out(self, failure: ApiFailure) -> None:
        """Goes on without a setting, unless it has been taken before."""
        name = failure.setting
        if name in self._taken:
            raise ApiFailure("failed", str(failure))
        if name in self._left_out:
            return
        self._left_out[name] = None
        instead = f"; {INSTEAD[name]} is sent in its place" if name in INSTEAD else ""
        self._say(f"{self._options.model} does not take {name}, and is asked without it{instead} ({failure})")

    def _origin(self, model: str, request: ChatRequest, body: JsonObject) -> Origin:
        sent = [name for name in body if name not in ("model", "messages")]
        self._taken.update(sent)
        wanted = {*sent, *_wanted(request, self._options)}
        left_out = tuple(sorted(name for name in self._left_out if name in wanted and name not in sent))
        return _origin(self._access.url, model, tuple(sorted(sent)), left_out, self.not_honoured)

    def _note_model(self, model: str) -> None:
        if self._model is not None:
            return
        self._model = model
        if not model:
            self._say(f"{self._options.base} does not say which model replies")
        elif model != self._options.model:
            self._say(f"{self._options.model} replies as {shown(model)}")


@lru_cache(maxsize=16)
def _origin(
    url: str, model: str, sent: tuple[str, ...], left_out: tuple[str, ...], not_honoured: tuple[str, ...]
) -> Origin:
    """One object for all replies that are made alike."""
    return Origin(url, model, sent, left_out, not_honoured)


def _wanted(request: ChatRequest, options: ApiOptions) -> list[str]:
    """The names of all fields that say how a request is answered."""
    return [*fields_of(request, options), *INSTEAD.values()]
