"""What keeps the chat page to this machine and its talks to whoever has it open."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

LARGEST_UPLOAD = 20 << 20
"""Bytes of a picture."""

_LARGEST_BODY = LARGEST_UPLOAD + (1 << 20)
_NAMES = ("127.0.0.1", "localhost", "::1")
_SETTINGS, _FOLDER = "GRADIO_", "GRADIO_TEMP_DIR"

AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]


def forget_settings() -> None:
    """Takes gradio's settings out of the environment, to be called before it is imported.

    Hosted notebooks set some that publish a page, and others serve folders or run code.
    """
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        del os.environ[name]


@contextlib.contextmanager
def private_uploads() -> Iterator[None]:
    """Keeps what is uploaded in a folder that only this user can read, and removes it in the end."""
    with tempfile.TemporaryDirectory(prefix="mmrole-page-", ignore_cleanup_errors=True) as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[_FOLDER]


class ThisMachineOnly:
    """Passes on to an ASGI application what a page of this machine asks for, and refuses all else.

    A web site elsewhere can send a browser here, under its own name even (DNS rebinding); the browser then says so in
    Host or Origin. The port may be another one: that of an SSH tunnel.
    """

    def __init__(self, app: Callable[[AsgiMessage, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = [(name.lower().decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        if not is_from_here(headers):
            await _refuse(scope, send, 403, b"This page is for this machine only.")
        elif not _fits(headers):
            await _refuse(scope, send, 413, b"This is too large.")
        else:
            await self.app(scope, _limited(receive), send)


def is_from_here(headers: list[tuple[str, str]], names: Collection[str] = _NAMES) -> bool:
    """Whether a request calls this machine by one of some names, and was sent by no page of another one.

    Args:
        headers: names in lower case, and values.
        names: in lower case.
    """
    hosts = [value for name, value in headers if name == "host"]
    origins = [value for name, value in headers if name == "origin"]
    try:
        local = len(hosts) == 1 and urlsplit(f"http://{hosts[0]}").hostname in names
    except ValueError:
        return False
    return local and all(origin == f"http://{hosts[0]}" for origin in origins)


def _fits(headers: list[tuple[str, str]]) -> bool:
    lengths = [value for name, value in headers if name == "content-length"]
    return all(len(value) < 12 and value.isdecimal() and int(value) <= _LARGEST_BODY for value in lengths)


def _limited(receive: Receive) -> Receive:
    """Ends a request whose body, of a length that was not told, gets too long."""
    size = 0

    async def receive_some() -> AsgiMessage:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= _LARGEST_BODY else {"type": "http.disconnect"}

    return receive_some


async def _refuse(scope: AsgiMessage, send: Send, status: int, words: bytes) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(words)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words})
