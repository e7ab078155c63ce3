"""Who may come in: asked as ASGI, without a socket."""

import asyncio
import json

import pytest

from mmrole.chat.server.door import Door

KEY = "0123456789abcdef"
LOCAL = ("127.0.0.1", "localhost", "::1")


async def behind(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def ask(*headers: tuple[str, str], path: str = "/v1/models", key: str | None = None, by_address: bool = False):
    """Status, headers and body of the response."""
    sent: list[dict] = []

    async def send(event) -> None:
        sent.append(event)

    coded = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": "GET", "path": path, "headers": coded, "client": ("127.0.0.1", 5)}
    asyncio.run(Door(behind, (*LOCAL, "box.lan"), key, by_address=by_address)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


HERE = ("host", "127.0.0.1:8000")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "box.lan:8000"])
def test_its_own_names(host):
    assert ask(("host", host))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("host", "evil.example")],
        [("host", "127.0.0.1.evil.example")],
        [("host", "10.0.0.1")],
        [("host", "[")],
        [HERE, ("host", "evil.example")],
        [HERE, ("origin", "http://evil.example")],
        [HERE, ("origin", "null")],
        [HERE, ("origin", "http://localhost:3000")],
    ],
)
def test_foreign_hosts_and_pages_are_refused(headers, capsys):
    status, headers, body = ask(*headers)
    assert (status, body["error"]["type"]) == (403, "invalid_request_error")
    assert not any(b"access-control" in name for name in headers)
    assert capsys.readouterr().err.startswith("127.0.0.1 GET /v1/models 403 ")


def test_at_an_address_for_others_any_address_is_its_name_and_no_other_name():
    for host in ("10.0.0.1:8000", "[fe80::1]:8000"):
        assert ask(("host", host), by_address=True)[0] == 200
        assert ask(("host", host), ("origin", "http://evil.example"), by_address=True)[0] == 403
    for headers in ([("host", "evil.example")], [("host", "10.0.0.1"), ("host", "10.0.0.2")], [("host", "[")], []):
        assert ask(*headers, by_address=True)[0] == 403


def test_the_key():
    assert ask(HERE, ("authorization", f"Bearer {KEY}"), key=KEY)[0] == 200
    assert ask(HERE, path="/health", key=KEY)[0] == 200
    for headers in (
        [],
        [("authorization", KEY)],
        [("authorization", "Bearer ключ")],
        [("authorization", f"Basic {KEY}")],
        [("authorization", f"Bearer {KEY}0")],
        [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")],
    ):
        status, _, body = ask(HERE, *headers, key=KEY)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")


def test_no_websocket():
    sent = []

    async def send(event) -> None:
        sent.append(event)

    asyncio.run(Door(behind, LOCAL, None)({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_control_characters_of_a_path_stay_out_of_the_log(capsys):
    ask(HERE, path="/a\nb\x1b[2J" + "x" * 200)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"127.0.0.1 GET /a\nb\x1b[2Jxxx")
    assert len(line) < 150
