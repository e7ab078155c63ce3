"""From options to a server that runs until it is told to end."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

import uvicorn

from mmrole.backends.backend import Backend
from mmrole.base.errors import UserError, reason
from mmrole.chat.server.answering import Desk
from mmrole.chat.server.app import make_app
from mmrole.chat.server.door import Door
from mmrole.chat.server.engine_thread import EngineThread
from mmrole.chat.server.limits import Limits, Places
from mmrole.chat.server.options import ServerOptions, is_local
from mmrole.chat.server.served_models import ServedModels

_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_SILENT_SECONDS = 60
"""After which a client that takes nothing of its answer loses it."""


def run_server(backend: Backend, models: ServedModels, options: ServerOptions) -> None:
    """Serves a model until SIGTERM or Ctrl-C, after which what runs is finished; the second of them ends at once.

    Args:
        backend: what answers.
        models: as whom.
        options: of the server.

    Raises:
        UserError: the address cannot be used, or the backend cannot answer.
    """
    with _listening(options) as listening:
        backend.fit([])
        print(backend, file=sys.stderr, flush=True)
        with backend.open() as generator, closing(EngineThread(backend.fit, generator)) as engine:
            limits = Limits(choices=min(Limits.choices, options.requests))
            desk = Desk(engine, models, limits, Places(options.requests))
            hosts = {*_LOCAL_NAMES, options.host.lower(), *options.hosts}
            door = Door(make_app(desk), hosts, options.key, by_address=not is_local(options.host))
            listening.listen(socket.SOMAXCONN)
            host = f"[{options.host}]" if ":" in options.host else options.host
            print(f"http://{host}:{options.port}/v1 answers as {models.name} (Ctrl-C ends)", flush=True)
            config = uvicorn.Config(
                door, log_level="critical", lifespan="off", ws="none", server_header=False, proxy_headers=False
            )
            _Server(config).run(sockets=[listening])


@contextmanager
def _listening(options: ServerOptions) -> Iterator[socket.socket]:
    """The socket, bound before the model loads, and not yet listening.

    Raises:
        UserError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_SECONDS * 1000)
        try:
            listening.bind((options.host, options.port))
        except OSError as error:
            raise UserError(
                f"{options.host}, port {options.port}: {reason(error)}; give another --port or --host"
            ) from None
        yield listening


class _Server(uvicorn.Server):
    """Finishes what runs at the first signal, and ends at the second, whichever they are."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGTERM and SIGINT."""
        if self.should_exit:
            os._exit(128 + sig)
        print(f"{signal.Signals(sig).name}: what runs is finished; once more ends at once", file=sys.stderr, flush=True)
        self.should_exit = True
