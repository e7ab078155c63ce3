"""Transfers from a server that misbehaves: every fault is seen, told in a line, and tried again where that may help."""

import re
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_utils.download import web
from data_utils.download.web import Failure, Pace, Patience, Stopped, get, retry_after, retrying, size_of

CONTENT = bytes(range(256)) * 40
QUICK = Patience(retries=2, wait=0.01, timeout=1)


@pytest.fixture
def url(server) -> str:
    server.files["/file"] = CONTENT
    return server.url + "/file"


def fail(action: Callable[[], object]) -> Failure:
    with pytest.raises(Failure) as caught:
        action()
    return caught.value


def test_a_file(server, url):
    assert get(url, 1) == CONTENT
    assert size_of(url, 1) == len(CONTENT)
    server.faults["/file"] = ["no length", "redirect /other"]
    server.files["/other"] = b"elsewhere"
    assert get(url, 1) == CONTENT
    assert get(url, 1) == b"elsewhere"


@pytest.mark.parametrize(
    ("fault", "transient", "text"),
    [
        ("404", False, "HTTP 404 Not Found"),
        ("403", False, "HTTP 403 Forbidden"),
        ("204", False, "HTTP 204 No Content"),
        ("500", True, "HTTP 500 Internal Server Error"),
        ("503", True, "HTTP 503 Service Unavailable"),
        ("429 7", True, "HTTP 429 Too Many Requests"),
        ("stall", True, "no answer in time"),
        ("silence", True, "no answer in time"),
        ("trickle", True, r"\d+ bytes in 1 s, too slow"),
        ("close", True, "5,120 of 10,240 bytes received"),
        ("too long", True, "10,240 of 11,240 bytes received"),
        ("huge", False, "10,000,000,000 bytes announced, which is no single image"),
        ("hang up", True, "no connection: Remote end closed connection"),
        ("redirect ftp://127.0.0.1/file", False, "no connection: unknown url type: ftp$"),
        ("redirect file:///etc/passwd", False, "HTTP 302 .*not allowed$"),
        ("redirect /file", False, "HTTP 302 .*loop.$"),
    ],
)
def test_faults(server, url, monkeypatch, fault, transient, text):
    monkeypatch.setattr(web, "SLOWEST", 1)
    server.faults["/file"] = [fault] * (20 if fault == "redirect /file" else 1)
    failure = fail(lambda: get(url, 1))
    assert re.match(text, str(failure)), str(failure)
    assert failure.transient == transient
    assert failure.wait == (7 if fault == "429 7" else None)


def test_no_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        failure = fail(lambda: get(f"http://127.0.0.1:{free.getsockname()[1]}/file", 1))
    assert (str(failure), failure.status) == ("no connection: Connection refused", None)
    assert "no connection" in str(fail(lambda: get("http://nowhere.invalid/file", 1)))


def test_tries_again_and_then_not(server, url):
    server.faults["/file"] = ["500", "close"]
    assert retrying(lambda: get(url, 1), QUICK, Pace()) == CONTENT
    server.faults["/file"] = ["500"] * 9
    server.log.clear()
    assert str(fail(lambda: retrying(lambda: get(url, 1), QUICK, Pace()))) == "HTTP 500 Internal Server Error"
    assert len(server.log) == 3
    server.faults["/file"] = ["404"] * 9
    server.log.clear()
    assert str(fail(lambda: retrying(lambda: get(url, 1), QUICK, Pace()))) == "HTTP 404 Not Found"
    assert len(server.log) == 1


def test_waits_grow(server, url, monkeypatch):
    waits = []
    monkeypatch.setattr(Pace, "sleep", lambda self, seconds: waits.append(seconds))
    server.faults["/file"] = ["500"] * 9
    fail(lambda: retrying(lambda: get(url, 1), Patience(retries=8, wait=1), Pace()))
    waits = [wait for wait in waits if wait > 0]
    assert len(waits) == 8
    for attempt, wait in enumerate(waits):
        assert 0.5 * min(60, 2**attempt) <= wait <= 1.5 * min(60, 2**attempt)
    assert len({wait / min(60, 2**attempt) for attempt, wait in enumerate(waits)}) == 8  # not all clients at once


def test_a_server_that_asks_to_wait_is_left_alone(server, url):
    server.faults["/file"] = ["429 1"]
    pace = Pace()
    assert retrying(lambda: get(url, 1), QUICK, pace) == CONTENT
    first, second = (request.time for request in server.log)
    assert second - first >= 1
    server.faults["/file"] = [f"429 {web.LONGEST_WAIT + 1}"]
    server.log.clear()
    assert "asks to come back in 301 s" in str(fail(lambda: retrying(lambda: get(url, 1), QUICK, pace)))
    assert len(server.log) == 1


def test_others_wait_too():
    pace = Pace()
    pace.hold(0.2)
    started = time.monotonic()
    pace.turn()
    assert time.monotonic() - started >= 0.19


def test_the_rate_holds():
    pace = Pace(rate=50)
    started = time.monotonic()
    for _ in range(11):
        pace.turn()
    assert time.monotonic() - started >= 10 / 50 - 0.001


def test_stopping_ends_all_waiting():
    pace = Pace()
    pace.stop()
    with pytest.raises(Stopped):
        pace.sleep(1000)
    with pytest.raises(Stopped):
        pace.turn()


@pytest.mark.parametrize(
    ("value", "seconds"), [("12", 12), ("0", 0), ("", None), ("soon", None), ("-1", None), ("²", None), ("1.5", None)]
)
def test_retry_after(value: str, seconds: float | None):
    assert retry_after({"Retry-After": value}) == seconds


def test_retry_after_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert 98 < retry_after({"Retry-After": format_datetime(soon, usegmt=True)}) <= 100
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
