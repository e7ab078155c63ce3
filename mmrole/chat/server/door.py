"""Who may come in: requests to this host, from no web site elsewhere, with the key where there is one."""

from __future__ import annotations

import hmac
import ipaddress
import traceback
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from starlette.types import Message as AsgiEvent
from starlette.types import Receive, Scope, Send

from mmrole.chat.server.access_log import AccessLine
from mmrole.chat.server.completions import encoded, send_json
from mmrole.chat.server.refusals import Refusal
from mmrole.chat.web_guard import is_from_here

_OPEN = ("/health",)
"""Paths that need no key."""


class Door:
    """Passes on to an ASGI application what may come in, answers what is refused, and logs a line for each.

    Args:
        app: behind the door.
        hosts: names by which the server may be called, in lower case.
        key: that each request must carry; None where there is none.
        by_address: whether it may be called by any address in place of a name. A web site elsewhere can have a name
            lead here, but no address.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Collection[str],
        key: str | None,
        *,
        by_address: bool = False,
    ) -> None:
        self._app, self._hosts, self._key, self._by_address = app, hosts, key, by_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        client = scope.get("client") or ("?", 0)
        access = scope["access"] = AccessLine(str(client[0]), scope["method"], scope["path"])

        async def noting(event: AsgiEvent) -> None:
            if event["type"] == "http.response.start":
                access.status = event["status"]
            await send(event)

        try:
            await self._answer(scope, receive, noting)
        finally:
            access.print()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except Refusal as refusal:
            await send_json(send, refusal.status, encoded(refusal.body), refusal.headers)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # a bug, of which the client has been told
            traceback.print_exception(error)

    def _check(self, scope: Scope) -> None:
        """Raises a Refusal of what may not come in."""
        headers = [(name.lower().decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        named = [value for name, value in headers if name == "host"]
        if not is_from_here(headers, self._hosts) and not (
            self._by_address and len(named) == 1 and _is_address(named[0]) and is_from_here(headers, [_host(named[0])])
        ):
            raise Refusal(
                403, "this server is called by another name, and by no web site", headers={"Connection": "close"}
            )
        if self._key is None or scope["path"] in _OPEN:
            return
        given = [value for name, value in headers if name == "authorization"]
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key.encode()):
            raise Refusal(401, "the key is wrong or missing", code="invalid_api_key")


def _host(header: str) -> str:
    try:
        return urlsplit(f"http://{header}").hostname or ""
    except ValueError:
        return ""


def _is_address(header: str) -> bool:
    try:
        ipaddress.ip_address(_host(header))
    except ValueError:
        return False
    return True
