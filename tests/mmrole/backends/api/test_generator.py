"""Jobs with a server's model: calm, hostile, resumed. The server is a real one, on this machine."""

import threading
import time
from dataclasses import replace

import pytest
from fixtures.desk import sample
from fixtures.office import AYE, IDS, KEY, always, once
from fixtures.servers import Ask, Say, calm, completion, error

from mmrole.backends.api.api_backend import find_api
from mmrole.backends.api.costs import Prices
from mmrole.backends.backend import ProcessPlace
from mmrole.base.errors import UserError
from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.jobs import job
from mmrole.jobs.answers import ANSWERS
from mmrole.jobs.processes import Interrupted


def test_a_calm_server(office, capsys):
    assert office.run() == 0
    assert office.answers() == AYE
    assert sorted(office.server.asked()) == sorted(IDS)
    assert not office.desk.journal.exists()
    assert office.settings()["noted"] == {
        "urls": [office.server.url],
        "reported_model": "calm-1",
        "left_out": [],
        "not_honoured": [],
    }
    capsys.readouterr()
    assert office.run() == 0
    assert "finished before, 12 records" in capsys.readouterr().out
    assert len(office.server.log) == 12
    with pytest.raises(UserError, match=r"was made with other settings: temperature was 1.0, is 0.5"):
        office.run(settings=GenerationSettings(temperature=0.5))


def test_what_is_sent(office, monkeypatch):
    """Nothing that the client's own environment variables say, which may be meant for another server."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}\nX-Odd: {KEY}\nX-Own: 2")
    office.write(IDS[:2])
    assert office.run(headers=(("X-Own", "1"),)) == 0
    for ask in office.server.log:
        assert ask.path == "/v1/chat/completions"
        assert ask.headers.keys() - {
            "host",
            "connection",
            "content-type",
            "content-length",
            "accept",
            "user-agent",
        } == {
            "x-own",
            "x-client-request-id",
            "accept-encoding",
        }
        assert ask.headers["x-own"] == "1"
        assert ask.settings == {"max_tokens": 512, "temperature": 1.0, "top_p": 0.3, "seed": 1234}
        assert [message["role"] for message in ask.body["messages"]] == ["system", "user"]
        assert [part["type"] for part in ask.body["messages"][1]["content"]] == ["image_url", "text"]


@pytest.mark.parametrize(
    "said",
    [
        error(429),
        error(429, headers={"Retry-After": "0.02"}),
        error(500),
        error(503, headers={"Retry-After": "0"}),
        Say(completion("Aye."), sent=-1),
        Say(completion("Aye." * 99), sent=30),
        Say(b"<html>"),
        Say(b'{"choices": ['),
        Say({"error": {"code": 502, "message": "no"}}),
        Say(completion("Aye."), headers={"Content-Encoding": "gzip"}, status=502),
    ],
    ids=lambda said: f"{said.status} {said.headers} {said.sent} {str(said.body)[:20]}",
)
def test_what_may_not_happen_again_is_asked_again(office, said, capsys):
    office.server.behaviour = once(said, *IDS[2:8])
    assert office.run() == 0
    assert office.answers() == AYE
    assert len(office.server.asked()) == 18
    assert "calm-1 at http://127.0.0.1:" in (out := capsys.readouterr().out)
    assert ": 6 asked again\n" in out
    assert out.count("; it is asked again\n") == 1


def test_a_server_that_is_in_trouble_all_the_time(office):
    """Each request meets four kinds of trouble, one after the other, before it is answered."""
    troubles = [error(429), Say(b"", sent=-1), error(500), Say(b"{")]
    office.server.behaviour = lambda ask: troubles[ask.number] if ask.number < 4 else calm(ask)
    assert office.run() == 0
    assert office.answers() == AYE
    assert len(office.server.asked()) == 5 * 12


def test_a_time_out(office):
    office.server.behaviour = once(Say(completion("late"), seconds=4.0), IDS[3])
    assert office.run(timeout=1.5) == 0
    assert office.answers() == AYE
    assert office.server.asked().count(IDS[3]) == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (error(400, "no\x1b[31m\nway"), "failed: 400 Bad Request: no\\x1b[31m\\nway"),
        (error(413), "failed: 413"),
        (Say(b"\x1b[31m<html>"), "failed: the reply is no JSON: b'\\x1b[31m<html>'"),
        (Say(completion("x" * 10_000_000)), "failed: the response is longer than 1,179,648 bytes"),
        (Say(b"\0" * 10_000_000, status=500), "failed: the response is longer"),
        (error(500), "failed: 500 Internal Server Error: no"),
        (error(400, code="content_policy_violation"), "refused: 400 Bad Request: no"),
        (completion("", finish_reason="content_filter"), "refused: finish_reason is content_filter"),
        (completion("Nay", refusal="I cannot\x1b[31m"), "refused: I cannot\x1b[31m"),
    ],
)
def test_what_fails_or_is_refused_costs_the_others_nothing(office, said, reason, capsys):
    office.server.behaviour = always(said, IDS[5])
    is_refused = reason.startswith("refused")
    assert office.run() == (0 if is_refused else job.FAILED)
    assert office.answers() == AYE | {IDS[5]: ""}
    assert list(office.errors()) == [IDS[5]]
    assert office.errors()[IDS[5]].startswith(reason)
    said_of_it = [line for line in capsys.readouterr().out.splitlines() if repr(IDS[5]) in line]
    assert len(said_of_it) == 1
    assert "\x1b" not in said_of_it[0]
    office.server.behaviour = calm
    before = len(office.server.asked())
    assert office.run(retry_refused=is_refused) == 0
    assert office.server.asked()[before:] == [IDS[5]]
    assert office.answers() == AYE


def test_cut_empty_and_refused_are_counted_apart(office, capsys):
    said = {
        IDS[0]: completion("Aye", finish_reason="length"),
        IDS[1]: completion("<think>Hm.</think>"),
        IDS[2]: completion(None, refusal="no"),
    }
    office.server.behaviour = lambda ask: said.get(ask.id) or calm(ask)
    assert office.run() == 0
    out = capsys.readouterr().out
    assert "of 12 replies 1 are cut at 512 new tokens, 1 are empty, 1 are refusals" in out
    assert office.answers()[IDS[0]] == "Aye"


def test_any_text_is_kept_as_it_is(office):
    text = "\x1b[2J<img src=x>\x00</s><|im_end|>\u2028 \ud800 {{char}} ﷽"
    office.server.behaviour = always(completion(text), IDS[0])
    assert office.run() == 0
    assert office.answers()[IDS[0]] == text


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            error(401, f"wrong key {KEY}"),
            "401 Unauthorized: wrong key (the key); the key is wrong or missing: --api",
        ),
        (error(402), "402 Payment Required: no; there is no credit: pay"),
        (error(403), "the key does not allow it"),
        (error(404, "no such model"), "404 Not Found: no such model; there is no such address or model: correct --api"),
        (error(429, code="insufficient_quota"), "there is no credit"),
        (error(429, headers={"Retry-After": "86400"}), "it asks to wait 86,400 seconds"),
    ],
)
def test_where_going_on_is_useless_it_stops_at_once_and_keeps_what_there_is(office, said, reason, monkeypatch):
    monkeypatch.setenv("MINE", KEY)
    office.server.behaviour = lambda ask: said if ask.place >= 6 else calm(ask)
    with pytest.raises(UserError) as caught:
        office.run(key_env="MINE")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("what is finished is kept: the same command goes on")
    assert len(caught.value.lines) == 1
    assert len(office.server.log) <= 6 + 4
    assert len(office.journaled()) == 6
    office.server.behaviour = calm
    before = len(office.server.log)
    assert office.run(key_env="MINE") == 0
    assert len(office.server.log) == before + 6
    assert office.answers() == AYE


def test_a_useless_first_request_is_the_only_one(office):
    office.server.behaviour = lambda ask: error(401)
    with pytest.raises(UserError, match="401"):
        office.run(concurrency=None)
    assert len(office.server.log) == 1


def test_a_server_that_breaks_down_for_good(office):
    office.server.behaviour = lambda ask: error(502) if ask.place >= 5 else calm(ask)
    with pytest.raises(UserError, match=r"502 Bad Gateway: no; 3 requests in a row came to nothing; what is finished"):
        office.run()
    assert len(office.journaled()) == 5


def test_probes_come_first_and_what_they_find_is_noted(office, capsys):
    office.server.behaviour = lambda ask: completion(f"{len(office.server.log)}" if "words" in ask.id else "grey")
    assert office.run(probe=True, settings=GenerationSettings(do_sample=False)) == 0
    assert [ask.id.partition(" ")[0] for ask in office.server.log[:4]] == ["probe/words"] * 2 + ["probe/image"] * 2
    found = office.settings()["noted"]["not_honoured"]
    assert [name.partition(":")[0] for name in found] == ["greedy decoding", "images"]
    out = capsys.readouterr().out
    assert [out.count(f"does not honour {name}\n") for name in found] == [1, 1]


def test_probes_ask_for_no_more_than_there_is_to_ask(office):
    office.write(image=None)
    assert office.run(probe=True) == 0
    assert sorted(ask.id for ask in office.server.log[:3]) == ["probe/words 1", "probe/words 2", "probe/words 3"]
    assert office.server.asked() == [ask.id for ask in office.server.log[3:]]
    assert office.run(probe=True) == 0
    assert len(office.server.log) == 15


def test_never_more_at_once_than_said(office):
    office.server.behaviour = lambda ask: Say(completion("Aye."), seconds=0.01)
    office.write([f"r {number}" for number in range(40)], image=None)
    assert office.run(concurrency=3) == 0
    assert office.server.most_at_once == 3


def test_a_server_that_bears_few_requests_at_once(office):
    """429 beyond three: all are answered all the same, and the number of requests finds to what is borne."""

    def behaviour(ask: Ask) -> Say | dict:
        return error(429) if office.server.at_once > 3 else Say(completion(f"Aye, {ask.id}."), seconds=0.01)

    office.server.behaviour = behaviour
    office.write([f"r {number}" for number in range(80)], image=None)
    assert office.run(concurrency=None) == 0
    assert len(office.server.log) < 6 * 80


def test_a_retry_after_holds_all_requests(office):
    times: list[float] = []

    def behaviour(ask: Ask) -> Say | dict:
        times.append(time.monotonic())
        return error(429, headers={"Retry-After": "0.3"}) if len(times) == 5 else calm(ask)

    office.server.behaviour = behaviour
    assert office.run(concurrency=1) == 0
    assert times[5] - times[4] >= 0.29


def test_a_dry_run_sends_and_writes_nothing(office, capsys):
    assert office.run(rehearses=True, prices=Prices(1.0, 2.0)) == 0
    assert (
        "12 requests with 12 images: about 276 tokens of prompts, at most 6,144 of replies" in capsys.readouterr().out
    )
    assert not office.desk.output.parent.exists()
    office.server.behaviour = always(error(400), *IDS[2:])
    office.run()
    capsys.readouterr()
    assert office.run(rehearses=True) == 0
    assert "10 requests with 10 images" in capsys.readouterr().out
    assert len(office.server.log) == 12


def test_costs_are_said_and_kept_to(office, capsys):
    prices = Prices(10.0, 1000.0)  # a reply costs 0.011, at its longest 0.512
    assert office.run(prices=prices, limit=6) == 0
    assert "calm-1: cost 0.0660" in capsys.readouterr().out.replace(f" at {office.server.url}", "")
    with pytest.raises(UserError, match=r"^--max_cost 0.55 does not suffice: 0.0440 are spent, and the next request"):
        office.run(prices=prices, max_cost=0.55, overwrite=True)
    assert len(office.journaled()) == 4
    with pytest.raises(UserError, match=r"^--max_cost 0.1 does not suffice: 0.0000 are spent"):
        office.run(prices=prices, max_cost=0.1)
    assert office.run(prices=prices, max_cost=9.0) == 0
    assert len(office.server.log) == 6 + 4 + 8


def test_what_may_have_been_paid_for_counts_as_paid(office):
    office.server.behaviour = once(Say(b"{"), IDS[3])
    with pytest.raises(UserError, match=r"^--max_cost 0.7 does not suffice: 0.5\d+ are spent"):
        office.run(prices=Prices(10.0, 1000.0), max_cost=0.7)


def test_what_has_arrived_is_kept_when_it_is_interrupted(office, capsys):
    """Ctrl-C while the first reply is taken, and others have come meanwhile."""
    office.server.behaviour = calm
    arrived = threading.Event()

    def look(reply: ChatReply) -> list[ChatRequest]:
        if arrived.is_set():
            return []
        for _ in range(200):  # the first request goes alone, three others when there is a reply to it
            time.sleep(0.01)
            if len(office.server.done) == 4:
                break
        time.sleep(0.3)
        arrived.set()
        raise Interrupted(2)

    ask = lambda record, replies: look(*replies.values()) if replies else ANSWERS.ask(record, {})  # noqa: E731
    interrupting = replace(ANSWERS, ask=ask)
    assert office.run(interrupting) == 130
    assert arrived.is_set()
    kept = office.journaled()
    assert 1 < len(kept) == len({*kept}) <= len(office.server.done) == 4
    assert office.run() == 0
    assert office.answers() == AYE
    assert len(office.server.log) == 12 + 4 - len(kept)


def test_requests_come_go_and_are_answered(office):
    requests = [ChatRequest(id_, one_turn("Play.", "Who?"), GenerationSettings()) for id_ in IDS]
    with find_api(office.options).open() as generator:
        assert generator.step() == []
        office.server.behaviour = lambda ask: Say(completion(f"Aye, {ask.id}."), seconds=1 if ask.id == IDS[2] else 0)
        for request in requests[:3]:
            generator.add(request)
        generator.cancel(IDS[0])
        generator.cancel("never added")
        replies = {}
        while IDS[1] not in replies:
            replies |= {event.id: event for event in generator.step() if isinstance(event, ChatReply)}
        generator.cancel(IDS[2])
        generator.add(requests[3])
        while IDS[3] not in replies:
            replies |= {event.id: event for event in generator.step() if isinstance(event, ChatReply)}
        assert sorted(replies) == [IDS[1], IDS[3]]
        assert replies[IDS[3]].usage == (100, 10)
        assert generator.step() == []


def test_several_processes_are_refused(office):
    with pytest.raises(UserError, match="asks from one process, many requests at once; start the script without torch"):
        find_api(office.options, place=ProcessPlace(0, 1, world_size=2))


def test_without_the_client(office, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^the package openai is not installed; run: pip install -e '\.\[api\]'$"):
        find_api(office.options)


@pytest.mark.parametrize("said", ["is another picture than when this job began", "an image cannot be read any more"])
def test_a_picture_that_is_not_what_it_was(office, said):
    path = office.desk.folder / "images/a.png"
    office.desk.write(sample("a", image=None), sample("b"))
    data = path.read_bytes()

    def behaviour(ask: Ask) -> Say | dict:
        path.write_bytes(b"another") if said.startswith("is") else path.unlink()
        return calm(ask)

    office.server.behaviour = behaviour
    with pytest.raises(UserError, match=said):
        office.run(concurrency=1)
    assert office.journaled() == ["a"]
    path.write_bytes(data)
    office.server.behaviour = calm
    assert office.run() == 0
    assert office.server.asked() == ["a", "b"]
