"""Polite transfers over HTTP: a rate that all threads share, retries with growing waits, and single small files."""

import contextlib
import email.utils
import functools
import http.client
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.message import Message
from typing import NamedTuple, TypeVar

from mmrole.base.errors import shown

T = TypeVar("T")

LARGEST = 64 << 20
"""Bytes of the largest body that `get` reads; a COCO image has about 163,000."""
LONGEST_WAIT = 300
"""Seconds that a server may ask for in Retry-After before the file counts as failed."""
SLOWEST = 10
"""A transfer may take this many times its timeout: a server that sends a byte now and then must not hold a thread."""

_LONGEST_BACKOFF = 60
_LONGEST_REASON = 300
_LENGTH_DIGITS = 18
_AGENT = "mmrole-download/1 (research data; single files)"


class Failure(Exception):
    """A transfer that did not succeed; the text says why.

    Args:
        text: the reason.
        transient: another try may succeed.
        wait: seconds that the server asked to wait before it.
        status: of the server's answer, if there was one.
    """

    def __init__(
        self, text: str, transient: bool = False, wait: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(text)
        self.transient, self.wait, self.status = transient, wait, status


class Stopped(Exception):
    """The download as a whole has been stopped; raised in the threads that were waiting."""


class Patience(NamedTuple):
    """How long a transfer is tried."""

    retries: int = 5
    wait: float = 1.0
    """Seconds before the first retry, doubled for each further one, and spread by half either way."""
    timeout: float = 20.0
    """Seconds without an answer or a byte after which a connection counts as dead."""


class Pace:
    """When requests may start: `rate` a second (0: no limit) over all threads, none while a server asked to wait."""

    def __init__(self, rate: float = 0) -> None:
        self._interval = 1 / rate if rate else 0
        self._lock = threading.Lock()
        self._next = self._held_until = 0.0
        self._stopped = threading.Event()

    def turn(self) -> None:
        """Waits until a request may start.

        Raises:
            Stopped: `stop` was called.
        """
        while (wait := self._reserve()) < 0:
            self.sleep(-wait)
        self.sleep(wait)

    def hold(self, seconds: float) -> None:
        """Lets no request start for so long."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Waits, or raises `Stopped` as soon as `stop` is called."""
        if self._stopped.wait(max(0, seconds)):
            raise Stopped

    def stop(self) -> None:
        """Ends all waiting, now and later."""
        self._stopped.set()

    def _reserve(self) -> float:
        """Takes a place in the queue: seconds until its turn. Negative: none is given for so long."""
        with self._lock:
            now = time.monotonic()
            if now < self._held_until:
                return now - self._held_until
            start = max(now, self._next)
            self._next = start + self._interval
            return start - now


def retrying(action: Callable[[], T], patience: Patience, pace: Pace) -> T:
    """The result of `action`, which is called again after transient failures, each time later.

    Raises:
        Failure: of the last try.
        Stopped: the download was stopped in between.
    """
    attempt = 0
    while True:
        pace.turn()
        try:
            return action()
        except Failure as failure:
            if not failure.transient or attempt == patience.retries:
                raise
            wait = min(_LONGEST_BACKOFF, patience.wait * 2 ** min(attempt, 30)) * random.uniform(0.5, 1.5)
            if failure.wait is not None:
                if failure.wait > LONGEST_WAIT:
                    raise Failure(f"{failure}; the server asks to come back in {failure.wait:.0f} s") from None
                pace.hold(failure.wait)
                wait = max(wait, failure.wait)
        pace.sleep(wait)
        attempt += 1


def get(url: str, timeout: float) -> bytes:
    """The body of one small file, as long as the server announced it.

    Raises:
        Failure: another status than 200, another length than announced, no connection, a stall.
    """
    deadline = time.monotonic() + SLOWEST * timeout
    with _failures(), _open(url, "GET", timeout) as response:
        if response.status != 200:
            raise Failure(first_line(f"HTTP {response.status} {response.reason}"), status=response.status)
        announced = _length(response.headers)
        if announced is not None and announced > LARGEST:
            raise Failure(f"{announced:,} bytes announced, which is no single image")
        body = bytearray()
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > LARGEST:
                raise Failure(f"more than {LARGEST:,} bytes, which is no single image")
            if time.monotonic() > deadline:
                raise Failure(f"{len(body):,} bytes in {SLOWEST * timeout:.0f} s, too slow", transient=True)
    if announced is not None and len(body) != announced:
        raise Failure(f"{len(body):,} of {announced:,} bytes received", transient=True)
    return bytes(body)


def size_of(url: str, timeout: float) -> int | None:
    """The length in bytes that the server announces for a file, if it does.

    Raises:
        Failure: another status than 200, no connection, a stall.
    """
    with _failures(), _open(url, "HEAD", timeout) as response:
        return _length(response.headers)


def is_transient(status: int) -> bool:
    """Whether a request that got this HTTP status may succeed later."""
    return status in (408, 425, 429) or status >= 500


def retry_after(headers: Mapping[str, str] | Message) -> float | None:
    """The seconds to wait of a Retry-After header, which is a number or a date; None without a usable one."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def first_line(text: str) -> str:
    """The first line of somebody else's words, fit for a terminal."""
    line = (text.splitlines() or [""])[0].strip()
    return line if line.isprintable() and len(line) <= _LONGEST_REASON else shown(line)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turns the library's many errors into `Failure`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        text = first_line(f"HTTP {error.code} {error.reason}")
        raise Failure(text, is_transient(error.code), retry_after(error.headers), error.code) from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)  # a URLError wraps what happened, or has a mere text (no such scheme)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise Failure(f"the server's certificate is not valid: {cause.verify_message}") from None
        if isinstance(cause, TimeoutError):
            raise Failure("no answer in time", transient=True) from None
        text = first_line(getattr(cause, "strerror", None) or str(cause)) or type(cause).__name__
        raise Failure(f"no connection: {text}", transient=not isinstance(cause, str)) from None
    except (ValueError, OverflowError) as error:  # a redirection to what is no address, to a port of six digits
        raise Failure(f"no usable answer: {first_line(str(error))}") from None


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only: the default one would follow a redirection to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _open(url: str, method: str, timeout: float) -> http.client.HTTPResponse:
    return _opener().open(urllib.request.Request(url, method=method, headers={"User-Agent": _AGENT}), timeout=timeout)


def _length(headers: Message) -> int | None:
    value = (headers.get("Content-Length") or "").strip()
    return int(value) if value.isascii() and value.isdigit() and len(value) <= _LENGTH_DIGITS else None
