"""serve.py in a process of its own, with given replies: clients, mistakes, limits, and how it ends."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest
from fixtures.doors import COMPLETIONS, ROOT, Served, free_port, image_part, png, serve, start, text_part
from fixtures.scripts import help_of

from mmrole.chat.server.body_fields import IGNORED, OBEYED
from mmrole.chat.server.limits import Limits

KEY = "0123456789abcdef"
LONG = " ".join(map(str, range(60)))
REPLIES = [
    {"id": "ahoy", "text": "Ahoy there. Who goes?"},
    {"id": "ahoy/choice-2", "text": "Aye."},
    {"id": "no", "text": "", "finish_reason": "refused", "error": "not that"},
    {"id": "broken", "text": "", "finish_reason": "failed", "error": "out of ink"},
    {"id": "long", "text": LONG, "finish_reason": "length"},
    {"id": "船 %", "text": "船。"},
    *({"id": str(number), "text": f"Reply {number}."} for number in range(1, 60)),
]
SECRET = "the word that no log may hold"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "replies.jsonl").write_text("\n".join(map(json.dumps, REPLIES)), encoding="utf-8")
    profiles = folder / "profiles/in-distribution"
    profiles.mkdir(parents=True)
    (profiles / "roles.json").write_text(json.dumps({"Lantern Bay": ["Mira", "Old Odo"]}))
    (profiles / "profiles.json").write_text(json.dumps({"Mira": "A pilot.", "Old Odo": "A guard."}))
    return folder


@pytest.fixture(scope="module")
def served(folder):
    with serve(folder, "--replies", "replies.jsonl", "--data_root", ".") as served:
        yield served


def named(id_: str) -> dict[str, str]:
    return {"X_Client_Request_Id": id_}


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


def create(client, *messages: object, id_: str = "ahoy", **fields: object):
    said = [{"role": "user", "content": message} if isinstance(message, str) else message for message in messages]
    headers = {"X-Client-Request-Id": id_}
    return client.chat.completions.create(model="replies.jsonl", messages=said, extra_headers=headers, **fields)


class TestOpenai:
    def test_models(self, client):
        assert [model.id for model in client.models.list()] == ["replies.jsonl", "mmrole/Mira", "mmrole/Old Odo"]
        assert client.models.retrieve("mmrole/Old Odo").owned_by == "mmrole"

    def test_a_reply(self, client):
        whole = create(client, {"role": "system", "content": "Play."}, "Hello.")
        assert whole.object == "chat.completion"
        assert whole.model == "replies.jsonl"
        (choice,) = whole.choices
        assert (choice.message.role, choice.message.content) == ("assistant", "Ahoy there. Who goes?")
        assert (choice.finish_reason, choice.message.refusal) == ("stop", None)
        assert whole.usage.total_tokens == 0  # a script counts none
        assert create(client, "Go on.", id_="long").choices[0].finish_reason == "length"

    def test_several_turns_and_images(self, client):
        question = [text_part("Is "), image_part(png()), text_part(" like "), image_part(png(format_="JPEG"))]
        turns = ["Hello.", {"role": "assistant", "content": "Ahoy."}, {"role": "user", "content": question}]
        assert create(client, *turns).choices[0].message.content == "Ahoy there. Who goes?"

    def test_a_stream(self, client):
        chunks = list(create(client, "Hello.", stream=True, stream_options={"include_usage": True}))
        *said, cost = chunks
        assert (cost.choices, cost.usage.total_tokens) == ([], 0)
        assert {(chunk.id, chunk.object, chunk.model) for chunk in chunks} == {
            (cost.id, "chat.completion.chunk", "replies.jsonl")
        }
        assert said[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == "Ahoy there. Who goes?"
        assert [chunk.choices[0].finish_reason for chunk in said] == [*[None] * (len(said) - 1), "stop"]

    def test_choices(self, client):
        whole = create(client, "Hello.", n=2)
        assert [(each.index, each.message.content) for each in whole.choices] == [
            (0, "Ahoy there. Who goes?"),
            (1, "Aye."),
        ]
        texts = {0: "", 1: ""}
        for chunk in create(client, "Hello.", n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == {0: "Ahoy there. Who goes?", 1: "Aye."}

    def test_stop(self, client):
        for stop in ("Who", [".", "no"], ["\n", " Who goes?"]):
            text = create(client, "Hello.", stop=stop).choices[0].message.content
            stream = create(client, "Hello.", stop=stop, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
            assert text in ("Ahoy there. ", "Ahoy there", "Ahoy there.")

    def test_a_refusal(self, client):
        (choice,) = create(client, "Hello.", id_="no").choices
        assert (choice.message.content, choice.message.refusal) == (None, "not that")
        *_, last = create(client, "Hello.", id_="no", stream=True)
        assert last.choices[0].delta.refusal == "not that"

    def test_errors(self, client):
        with pytest.raises(openai.BadRequestError, match="logprobs is not supported") as refused:
            create(client, "Hello.", logprobs=True)
        assert (refused.value.param, refused.value.code) == ("logprobs", "unsupported_parameter")
        with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist"):
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.InternalServerError, match="out of ink"):
            create(client, "Hello.", id_="broken")
        with pytest.raises(openai.APIError, match="out of ink"):
            list(create(client, "Hello.", id_="broken", stream=True))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(served):
    def curl(*flags: str, path: str = COMPLETIONS) -> str:
        command = ["curl", "-sS", "--max-time", "30", f"http://127.0.0.1:{served.port}{path}", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    body = {"model": "mmrole/Mira", "messages": [{"role": "user", "content": "Hello."}]}
    id_ = ("-H", "X-Client-Request-Id: %E8%88%B9 %25")
    assert json.loads(curl("-d", json.dumps(body), *id_))["choices"][0]["message"]["content"] == "船。"
    *events, last, end = curl("-N", "-d", json.dumps({**body, "stream": True}), *id_).split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["model"] == "mmrole/Mira" for event in events)
    assert json.loads(curl(path="/v1/models"))["data"][1]["id"] == "mmrole/Mira"
    assert json.loads(curl(path="/health")) == {"status": "ok", "requests": 0}
    assert json.loads(curl("-d", "{"))["error"]["message"].startswith("the body is no JSON: ")


def test_the_examples_of_the_page(served, repository):
    page = (repository / "docs/serving.md").read_text(encoding="utf-8")
    page = page.replace("http://127.0.0.1:8000/v1", served.url).replace("MMRole-Agent", "replies.jsonl")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (shell,) = re.findall(r"^```bash\n(curl .*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [[sys.executable, "-c", code], *([["bash", "-c", shell]] if shutil.which("curl") else [])]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert re.search(r"Reply \d+\.", done.stdout), done


def test_the_page_tells_every_field_code_and_limit(repository):
    page = (repository / "docs/serving.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (repository / "mmrole/chat/server").glob("*.py")]
    for code in re.findall(r"code=\"(\w+)\"", "\n".join(sources)):
        assert f"`{code}`" in page, code
    for field in (*OBEYED, *IGNORED):
        assert f"`{field}" in page, field
    limits = Limits()
    told = f"{limits.characters:,} characters; {limits.images} images; {limits.messages:,} messages; "
    told += f"{limits.pixels // 10**6} million pixels; {limits.body >> 20} MiB; within {limits.body_seconds:g} s; "
    told += f"{limits.stops} texts; {limits.choices} replies"
    for words in told.split("; "):
        assert words in page, words


def silly_tavern(**changes: object) -> dict:
    """What SillyTavern sends to a "Custom (OpenAI-compatible)" source."""
    messages = [
        {"role": "system", "content": "Write Mira's next reply in a fictional chat between Mira and Ana."},
        {"role": "system", "content": "A pilot of the bay."},
        {"role": "system", "name": "example_user", "content": "What do you see?"},
        {"role": "system", "name": "example_assistant", "content": "Two boats."},
        {"role": "system", "content": "[Start a new Chat]"},
        {"role": "assistant", "content": "Ahoy, Ana!"},
        {"role": "user", "content": "Hello."},
        {"role": "user", "content": [text_part("Look."), image_part(png(format_="JPEG"))]},
        {"role": "system", "content": "[Stay in character.]"},
    ]
    fields = {
        **{"temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "max_tokens": 300},
        **{"stream": True, "logit_bias": {}, "stop": ["\nAna:"], "n": 1, "seed": 5},
    }
    return {"model": "mmrole/Mira", "messages": messages, **fields, **changes}


def open_webui(**changes: object) -> dict:
    """What Open WebUI sends: a chat, or with `stream` false a question of its own, for a title or tags."""
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [text_part("What is this?"), image_part(png())]},
        {"role": "assistant", "content": "A ship."},
        {"role": "user", "content": "Whose?"},
    ]
    fields = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.8, "max_tokens": 128}
    return {"model": "replies.jsonl", "messages": messages, **fields, **changes}


@pytest.mark.parametrize("body", [silly_tavern(), open_webui(), open_webui(user="a", logit_bias=None)])
def test_what_other_programs_send_is_answered(served, body):
    response = served.request("POST", COMPLETIONS, body, Authorization="Bearer ", **named("ahoy"))
    assert response.headers["content-type"].startswith("text/event-stream")
    said = [event["choices"][0]["delta"].get("content", "") for event in response.events if event["choices"]]
    assert "".join(said) == "Ahoy there. Who goes?"
    whole = served.request("POST", COMPLETIONS, {**body, "stream": False}, **named("ahoy"))
    assert whole.text == "Ahoy there. Who goes?"


def test_what_silly_tavern_can_ask_for_besides(served):
    going_on = {"role": "system", "content": "[Continue your last message without repeating its original content.]"}
    messages = [*silly_tavern()["messages"], {"role": "assistant", "content": "I am"}]
    for body, status in (
        (silly_tavern(messages=[*messages, going_on]), 200),
        (silly_tavern(messages=messages), 400),  # its prefill
        (silly_tavern(top_k=40, repetition_penalty=1.1), 200),
        (silly_tavern(frequency_penalty=0.7), 400),
        (silly_tavern(logprobs=True, top_logprobs=10), 400),
        (silly_tavern(tools=[{"type": "function"}], tool_choice="auto"), 400),
    ):
        assert served.request("POST", COMPLETIONS, body, **named("ahoy")).status == status, body


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is no JSON"),
        (b"\xff", 400, "the body is not UTF-8"),
        (b"[1]", 400, "the body must be a JSON object"),
        (b'{"a": 1, "a": 2}', 400, "the body is no JSON"),
        (b'{"a": NaN}', 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "the body is no JSON: it is nested too deeply"),
        (b'{"model": "replies.jsonl"}', 400, "messages must be a list"),
        (b'{"messages": []}', 400, "model must be the name of a model"),
        (b'{"model": "mmrole/Ana", "messages": []}', 404, "the model 'mmrole/Ana' does not exist"),
    ],
)
def test_bodies_that_are_none(served, body, status, message):
    response = served.request("POST", COMPLETIONS, body)
    assert response.status == status
    assert response.error["message"].startswith(message)
    assert response.error["type"] == "invalid_request_error"


def test_other_addresses(served):
    for path in ("/", "/docs", "/openapi.json", "/v1", "/v1/completions", "/v1/chat/completions/"):
        response = served.get(path)
        assert (response.status, response.error["code"]) == (404, "unknown_url")
    assert served.get(COMPLETIONS).status == 405
    assert served.get("/v1/models/nobody").status == 404
    response = served.request("OPTIONS", COMPLETIONS, None, Access_Control_Request_Method="POST")
    assert response.status == 405
    assert not any(name.startswith("access-control") for name in response.headers)


def test_who_sends_too_much_is_told_so(served):
    response = served.request("POST", COMPLETIONS, b" " * (Limits.body + 1))
    assert (response.status, response.error["code"]) == (413, "request_too_large")


def test_large_bodies_are_not_read(served):
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % COMPLETIONS.encode())
        connection.sendall(b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % COMPLETIONS.encode())
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        part = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        with pytest.raises(ConnectionError):
            connection.sendall(part * 100)
    assert served.at_work() == 0


def test_the_log_says_nothing_of_what_is_said(served):
    served.say(SECRET, temperature="hot", headers=named("ahoy"))
    served.say(SECRET, headers=named("ahoy"), user=SECRET, stop=[SECRET])
    served.say({"role": "user", "content": SECRET, "name": SECRET}, headers=named(SECRET.replace(" ", "%20")))
    served.request("POST", COMPLETIONS, {"model": SECRET, "messages": []})
    *_, answered, _, unknown = [line for line in served.logged() if COMPLETIONS in line]
    assert answered.startswith("127.0.0.1 POST /v1/chat/completions 200 replies.jsonl images=0 choices=1 prompt=0 ")
    assert unknown.startswith("127.0.0.1 POST /v1/chat/completions 404 (model_not_found) ")
    assert SECRET not in served.log.read_text()


def test_a_foreign_host_gets_nothing(served):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert served.get("/v1/models", **headers).status == 403
        assert served.request("POST", COMPLETIONS, silly_tavern(), **headers).status == 403


def test_a_key_for_other_machines(folder):
    flags = ("--replies", "replies.jsonl", "--host", "0.0.0.0", "--server_key_env", "DOOR", "--max_requests", 2)
    with serve(folder, *flags, "--allowed_hosts", "Box.lan", DOOR=KEY) as served:
        assert served.get("/v1/models").status == 401
        assert served.request("POST", COMPLETIONS, b" " * Limits.body).error["code"] == "invalid_api_key"
        assert served.get("/v1/models", Authorization=f"Bearer {KEY}", Host="box.lan").status == 200
        assert served.get("/v1/models", Authorization=f"Bearer {KEY}", Host="evil.example").status == 403
        assert served.get("/health").status == 200
        with openai.OpenAI(base_url=served.url, api_key=KEY, max_retries=0) as client:
            assert create(client, "Hello.").choices[0].message.content == "Ahoy there. Who goes?"
            with pytest.raises(openai.BadRequestError, match="n must be a whole number from 1 to 2, not 3"):
                create(client, "Hello.", n=3)
            begun = begin(served, Authorization=f"Bearer {KEY}")
            with pytest.raises(openai.InternalServerError, match="more than 2 are not taken") as busy:
                create(client, "Hello.", n=2)
            begun.close()
            assert busy.value.response.headers["retry-after"] == "2"
            assert busy.value.code == "overloaded"
        assert KEY not in served.log.read_text()


def begin(served: Served, **headers: str) -> http.client.HTTPConnection:
    """A request whose body is still to be sent, and is waited for."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest("POST", COMPLETIONS)
    connection.putheader("Content-Length", str(len(BODY)))
    connection.putheader("X-Client-Request-Id", "ahoy")
    connection.putheader("Expect", "100-continue")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100 ")
    return connection


BODY = json.dumps({"model": "replies.jsonl", "messages": [{"role": "user", "content": "Hello."}]}).encode()


def wait_for(served: Served, words: str) -> None:
    """Returns when the log says so."""
    for _ in range(600):
        if words in served.log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(served.log.read_text())


def wait_until_refused(served: Served) -> None:
    """Returns when no more connections are taken."""
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", served.port)).close()
        except ConnectionError:
            return
        time.sleep(0.05)
    raise AssertionError("it still listens")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish(folder, sent):
    served = start(folder, "--replies", "replies.jsonl")
    connection = begin(served)
    connection.send(BODY[:10])
    served.process.send_signal(sent)
    wait_for(served, f"{sent.name}: what runs is finished; once more ends at once")
    wait_until_refused(served)
    assert served.process.poll() is None
    connection.send(BODY[10:])
    assert json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] == "Ahoy there. Who goes?"
    assert served.process.wait(timeout=30) == 0
    assert "Traceback" not in served.log.read_text()


def test_a_second_signal_ends_at_once(folder):
    served = start(folder, "--replies", "replies.jsonl")
    connection = begin(served)
    served.process.terminate()
    wait_for(served, "once more ends at once")
    served.process.terminate()
    assert served.process.wait(timeout=10) == 143
    connection.close()


def mistake(folder, *flags: str) -> str:
    """What the script says before it has started."""
    command = [sys.executable, str(ROOT / "serve.py"), *flags]
    environment = {name: value for name, value in os.environ.items() if name != "DOOR"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_mistake_gets_one_line(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = mistake(folder, "--replies", "replies.jsonl", "--port", str(port))
    assert said == f"error: 127.0.0.1, port {port}: Address already in use; give another --port or --host\n"
    said = mistake(folder, "--replies", "replies.jsonl", "--role", "Mirra")
    assert said == "error: role Mirra: not in profiles.json; did you mean Mira?\n"
    said = mistake(folder, "--replies", "replies.jsonl", "--host", "0.0.0.0")
    assert said.startswith("error: --host 0.0.0.0 lets other machines ask: give --server_key_env NAME as well")
    assert said.count("\n") == 1
    assert "nowhere" in mistake(folder, "--model_path", "nowhere", "--port", str(free_port()))


def test_help_explains_every_flag_without_torch(repository):
    said = help_of(repository / "serve.py")
    for flag in ("port", "host", "server_key_env", "role", "data_root", "system_notes", "max_requests", "replies"):
        assert f"--{flag} " in said, flag
