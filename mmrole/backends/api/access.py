"""Where a server is, and the key to it, which is for that server alone and is shown to nobody."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from mmrole.base.errors import UserError, shown

OPENAI_HOST = "api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"

# A shorter one is no secret, but a word such as EMPTY, which may stand in any reply.
_SHORTEST_SECRET = 12


@dataclass(frozen=True)
class Access:
    """A server's address and the key to it.

    Attributes:
        url: the address, without a slash at its end.
        key: sent to this address only; None where it asks for none.
    """

    url: str
    key: str | None = field(default=None, repr=False)

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own."""
        return _is_openai(self.url)

    @property
    def exposes_key(self) -> bool:
        """Whether the key goes unencrypted to another machine."""
        parts = urlsplit(self.url)
        return self.key is not None and parts.scheme == "http" and not _is_local(parts.hostname or "")

    def without_key(self, text: str) -> str:
        """A text of the server's, in which the key may be repeated, without it."""
        if self.key is None or len(self.key) < _SHORTEST_SECRET:
            return text
        return text.replace(self.key, "(the key)")


def find_access(base: str, key_env: str | None, environment: Mapping[str, str]) -> Access:
    """The server at an address, with its key from the environment.

    Args:
        base: the address.
        key_env: the variable with the key; None for `OPENAI_API_KEY` where the address is OpenAI's own, and no key
            elsewhere.
        environment: its variables.

    Raises:
        UserError: it is no address, or there is no such key.
    """
    url = find_url(base)
    if key_env is None and not _is_openai(url):
        return Access(url)
    name = key_env or OPENAI_KEY
    # What is given for a name can be the key itself, so it is not shown.
    variable = f"the environment variable {OPENAI_KEY}" if name == OPENAI_KEY else "the variable of --api_key_env"
    key = environment.get(name, "").strip()
    if not key:
        raise UserError(f"there is no key for {url}: {variable} is empty; export it, and give its name, not the key")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"{variable} holds blanks or other characters that no key has; correct it")
    return Access(url, key)


def find_url(base: str) -> str:
    """The address, without a slash at its end.

    Raises:
        UserError: it is none.
    """
    url = base.rstrip("/")
    remedy = "give it as in https://api.openai.com/v1 or http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        parts, host = None, None
    if parts is None or not host or parts.scheme not in ("http", "https") or not url.isascii() or not url.isprintable():
        raise UserError(f"--api_base {shown(url) if '@' not in url else ''} is no address of a server; {remedy}")
    if parts.username is not None or parts.password is not None:
        raise UserError(f"--api_base holds a name or a password, which others could read; {remedy}")
    if parts.query or parts.fragment or " " in url:
        raise UserError(f"--api_base must end with a path, without ? and #; {remedy}")
    if parts.path.endswith("/completions"):
        raise UserError(f"--api_base must end before /chat/completions, which is added; {remedy}")
    if _is_openai(url) and parts.scheme != "https":
        raise UserError(f"--api_base {url} would send the key unencrypted; write https")
    return url


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")
