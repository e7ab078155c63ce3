"""The flags of the server, and what they mean as typed options."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrole.base.arguments import at_least
from mmrole.base.errors import UserError

_SHORTEST_KEY = 12


@dataclass(frozen=True)
class ServerOptions:
    """Where a server is, who may ask it, and as whom it answers.

    Attributes:
        host: the address to listen at.
        port: of it.
        key: that each request must carry; None where this machine alone can ask.
        hosts: further names by which it may be called, in lower case.
        role: who answers; None for the model as it is.
        data_root: where the characters are that have names of their own; None for none.
        takes_notes: whether a client's system messages are put into a character's frame.
        requests: the most that are answered or wait.
    """

    host: str
    port: int
    key: str | None
    hosts: tuple[str, ...]
    role: str | None
    data_root: Path | None
    takes_notes: bool
    requests: int

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> ServerOptions:
        """The options that the flags of a script mean, by name.

        Raises:
            UserError: flags do not go together, or there is no key.
        """
        host, name = flags["host"], flags["server_key_env"]
        if name is None and not is_local(host):
            raise UserError(
                f"--host {host} lets other machines ask: give --server_key_env NAME as well, the environment variable "
                "with a key that they must send, or listen at 127.0.0.1"
            )
        if flags["system_notes"] == "refuse" and flags["role"] is None and flags["data_root"] is None:
            raise UserError("--system_notes is about characters; give --role or --data_root as well, or leave it out")
        return cls(
            host,
            flags["port"],
            None if name is None else _key(name),
            tuple(host.lower() for host in flags["allowed_hosts"]),
            flags["role"],
            flags["data_root"],
            flags["system_notes"] == "append",
            flags["max_requests"],
        )


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the server."""
    add = parser.add_argument_group("server (docs/serving.md)").add_argument
    add("--port", type=at_least(1, most=65535), default=8000, help="of the server (default: %(default)s)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where it listens (default: %(default)s)")
    add(
        "--server_key_env",
        metavar="NAME",
        help="environment variable with the key that clients must send; needed where other machines can ask",
    )
    add(
        "--allowed_hosts",
        nargs="+",
        default=(),
        metavar="NAME",
        help="further names by which the server may be called, such as host.docker.internal",
    )
    add(
        "--max_requests",
        type=at_least(1),
        default=256,
        metavar="N",
        help="requests that are answered or wait; more are told to ask later (default: %(default)s)",
    )
    add = parser.add_argument_group("characters").add_argument
    add("--role", help="who answers, as profiles.json names the character; else messages go to the model as they are")
    add(
        "--data_root",
        type=Path,
        metavar="DIR",
        help="folder with profiles/{in,out-of}-distribution/: each character is a model as well, mmrole/NAME",
    )
    add(
        "--system_notes",
        choices=("append", "refuse"),
        default="append",
        help="what becomes of a client's system messages to a character: they are put behind the frame's, or refused "
        "(default: %(default)s)",
    )


def is_local(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _key(name: str) -> str:
    """The key in an environment variable; what is given for its name can be the key itself, so it is not shown."""
    key = os.environ.get(name, "").strip()
    if not re.fullmatch(rf"[\x21-\x7e]{{{_SHORTEST_KEY},}}", key):
        raise UserError(
            "--server_key_env: the variable of this name must hold a key of at least "
            f"{_SHORTEST_KEY} characters without blanks; export it, and give its name, not the key"
        )
    return key
