"""Requests that come and go: who joins or leaves changes no other reply, and pieces make up the text."""

import re
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from fixtures.engine import make_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrole.backends.engine import warm_up
from mmrole.data.messages import Message, Quotation, one_turn
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings, Piece
from mmrole.engine.engine import Engine
from mmrole.models.qwen_vl import QwenVL

GREEDY = GenerationSettings(max_new_tokens=6, do_sample=False)
SAMPLED = GenerationSettings(max_new_tokens=9, temperature=1.3, top_p=0.9, seed=3)
SHARED = "The lamp is lit, the boats are in, and nobody has seen the keeper since noon. " * 4


@pytest.fixture(scope="module", params=[False, True], ids=["lanes", "pages"])
def make(request, make_model, tokenizer) -> Callable[..., Engine]:
    """Makes engines with both forms of the KV cache."""
    model = make_model(torch.float64)
    return lambda **options: make_engine(model, tokenizer, paged=request.param, **options)


@pytest.fixture(scope="module")
def requests(pictures) -> list[ChatRequest]:
    """Three that share a tree, one of them sampled; one alone; a chat of two turns with images between texts."""
    talk = (
        *one_turn("Play.", "First ", pictures[0], "then ", pictures[1], "which?"),
        Message("assistant", ("The second.",)),
        Message("user", ("Why? ", Quotation("\n'Because'"))),
    )
    shared = [ChatRequest(name, one_turn("Play.", SHARED, name), GREEDY) for name in ("a", "b")]
    return [
        *shared,
        ChatRequest("c", one_turn("Play.", SHARED, "c"), SAMPLED),
        ChatRequest("alone", one_turn("Play.", "Hello"), SAMPLED),
        ChatRequest("talk", talk, GREEDY),
    ]


@pytest.fixture(scope="module")
def expected(make, requests) -> dict[str, ChatReply]:
    return {request.id: reply for request in requests for reply in make().generate([request])}


def run(engine: Engine, joins: dict[int, list[ChatRequest]], leaves: dict[int, list[str]]) -> dict[str, ChatReply]:
    """Steps until nothing is left; returns the replies, whose pieces make up their texts but for special tokens."""
    pieces, replies, step = defaultdict(str), {}, 0
    while not engine.is_idle or step <= max([*joins, *leaves]):
        for request in joins.get(step, []):
            engine.add(request)
        for id_ in leaves.get(step, []):
            engine.cancel(id_)
        gone = {id_ for number, ids in leaves.items() if number <= step for id_ in ids}
        for event in engine.step():
            assert event.id not in gone
            assert event.id not in replies
            if isinstance(event, Piece):
                pieces[event.id] += event.text
            else:
                replies[event.id] = event
        step += 1
    assert isinstance(engine.family, QwenVL)
    special = engine.family.tokenizer.eod_id
    for reply in replies.values():
        plain = [token for token in reply.token_ids if token < special]
        assert pieces[reply.id] == engine.family.decode(plain)
    return replies


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    joined=st.lists(st.integers(0, 8), min_size=5, max_size=5),
    left=st.dictionaries(st.sampled_from(["a", "b", "c", "alone", "talk"]), st.integers(0, 12)),
    budget=st.sampled_from([1, 900, 100_000]),
    window=st.sampled_from([1, 2, 1024]),
)
def test_who_joins_or_leaves_changes_no_other_reply(make, requests, expected, joined, left, budget, window):
    joins, leaves = defaultdict(list), defaultdict(list)
    at = dict(zip((request.id for request in requests), joined, strict=True))
    for request in requests:
        joins[at[request.id]].append(request)
    left = {id_: step for id_, step in left.items() if step >= at[id_]}
    for id_, step in left.items():
        leaves[step].append(id_)
    engine = make(max_batch_tokens=budget, window=window)
    replies = run(engine, joins, leaves)
    assert replies.keys() >= expected.keys() - left.keys()
    assert all(expected[id_] == reply for id_, reply in replies.items())
    assert len(engine.images) == 0


def test_a_chat_of_several_turns_and_images_is_answered_as_by_generate(make, pictures, generate_alone):
    chat = (
        *one_turn("Play.", pictures[0], pictures[1], "Which?"),
        Message("assistant", ("The second.",)),
        Message("user", (pictures[2], "And now?")),
    )
    engine = make()
    request = ChatRequest("chat", chat, SAMPLED)
    (reply,) = engine.generate([request])
    assert list(reply.token_ids) == generate_alone(engine.runner.model.module, request).tokens
    assert engine.runner.images.encoded == 3


def test_warming_up_leaves_nothing_behind(make, requests, capsys):
    engine, fresh = make(), make()
    warm_up(engine)
    assert re.fullmatch(r"ready \d+\.\d s after loading\n", capsys.readouterr().err)
    assert engine.is_idle
    assert list(engine.generate(requests[:2])) == list(fresh.generate(requests[:2]))


def test_a_cancelled_request_frees_its_place_at_the_next_step(make, requests):
    engine = make()
    for request in requests[:3]:
        engine.add(request)
    engine.step()
    assert engine.runner.cache.leaves == [3]
    engine.cancel("b")
    engine.step()
    assert engine.runner.cache.leaves == [2]


def test_a_new_request_joins_those_at_work(make, requests, expected):
    engine = make()
    engine.add(requests[2])
    engine.step()
    engine.add(requests[3])
    engine.step()
    assert engine.runner.cache.leaves == [1, 1]
    replies = [event for _ in range(20) for event in engine.step() if isinstance(event, ChatReply)]
    assert engine.is_idle
    assert {reply.id: reply for reply in replies} == {id_: expected[id_] for id_ in ("c", "alone")}


def test_after_an_error_the_engine_goes_on_with_others(make, requests, expected, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    engine = make()
    engine.add(ChatRequest("bad", one_turn("Play.", bad, "?"), GREEDY))
    with pytest.raises(OSError, match=r"bad\.png"):
        engine.step()
    assert engine.is_idle
    assert len(engine.images) == 0
    assert run(engine, {0: requests[:1]}, {}) == {"a": expected["a"]}


def test_who_is_unknown_can_leave(make):
    engine = make()
    engine.cancel("nobody")
    assert engine.step() == []
