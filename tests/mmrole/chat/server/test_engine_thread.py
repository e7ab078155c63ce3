"""The thread in which the engine takes its steps: orders join, leave and end, and what fails ends none but itself."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
import torch
from fixtures.engine import generate_alone, make_engine, make_model, pictures, tokenizer

from mmrole.backends.backend import Note
from mmrole.backends.scripted import ScriptedBackend, ScriptedGenerator
from mmrole.base.errors import UserError
from mmrole.chat.server.engine_thread import EngineThread
from mmrole.chat.server.orders import Accepted, Ended, Order, Words
from mmrole.chat.server.refusals import Refusal
from mmrole.data.messages import Message
from mmrole.data.requests import AskedSettings, ChatReply, ChatRequest, GenerationSettings, Piece
from mmrole.engine.engine import Engine

__all__ = ["generate_alone", "make_model", "pictures", "tokenizer"]

HELLO = (Message("user", ("Hello, who are you?",)),)
SAMPLED = GenerationSettings(max_new_tokens=12, top_p=1.0, temperature=2.0)


@contextmanager
def scripted(reply: Callable[[ChatRequest], ChatReply]) -> Iterator[EngineThread]:
    backend = ScriptedBackend(reply)
    with closing(EngineThread(backend.fit, ScriptedGenerator(reply))) as thread:
        yield thread


def fit(requests: Sequence[ChatRequest]) -> tuple[list[ChatRequest], list[Note]]:
    """Fills in sampling, as the engine's backend does."""
    return [replace(request, settings=request.settings.filled(SAMPLED)) for request in requests], []


@pytest.fixture(scope="module")
def engine(make_model, tokenizer) -> Engine:
    return make_engine(make_model(torch.float64), tokenizer)


@pytest.fixture
def thread(engine) -> Iterator[EngineThread]:
    with closing(EngineThread(fit, engine)) as thread:
        yield thread
    assert engine.is_idle


async def answered(thread: EngineThread, order: Order) -> tuple[dict[int, str], dict[int, ChatReply]]:
    """What is said of each choice piece by piece, and their replies."""
    ticket = thread.ask(order)
    said: dict[int, str] = dict.fromkeys(range(order.choices), "")
    replies: dict[int, ChatReply] = {}
    while len(replies) < order.choices:
        event = await ticket.next()
        if isinstance(event, Words):
            said[event.choice] += event.text
        elif isinstance(event, Ended):
            replies[event.choice] = event.reply
    return said, replies


async def asked(thread: EngineThread, *orders: Order) -> list[dict[int, ChatReply]]:
    return [replies for _, replies in await asyncio.gather(*(answered(thread, order) for order in orders))]


def test_a_reply_is_the_engines(thread, engine):
    said, replies = asyncio.run(answered(thread, Order("a", HELLO, draws="x")))
    (alone,) = engine.generate([ChatRequest("x", HELLO, SAMPLED)])
    assert replies == {0: replace(alone, id="a")}
    assert said[0]


def test_draws_follow_from_seed_and_name_alone(thread):
    first, again, other, seeded = asyncio.run(
        asked(
            thread,
            Order("a", HELLO, draws="x"),
            Order("a", HELLO, draws="x"),  # of the same id at the same time
            Order("b", HELLO, draws="y"),
            Order("c", HELLO, AskedSettings(seed=5), draws="x"),
        )
    )
    assert first[0].token_ids == again[0].token_ids
    assert len({first[0].token_ids, other[0].token_ids, seeded[0].token_ids}) == 3


def test_choices_are_drawn_each_anew_and_the_first_is_the_only_one(thread):
    three, one = asyncio.run(asked(thread, Order("a", HELLO, draws="x", choices=3), Order("b", HELLO, draws="x")))
    assert three[0].token_ids == one[0].token_ids
    assert len({reply.token_ids for reply in three.values()}) == 3


def test_a_text_that_ends_a_reply_frees_its_place(thread):
    order = Order("a", HELLO, AskedSettings(max_new_tokens=40, do_sample=False))
    ((whole,),) = [replies.values() for replies in asyncio.run(asked(thread, order))]
    stop = whole.text[5:8]
    assert len(stop) == 3, whole
    said, replies = asyncio.run(answered(thread, replace(order, stops=(stop,))))
    assert said[0] == replies[0].text == whole.text[: whole.text.index(stop)]
    assert replies[0].finish_reason == "stop"
    assert replies[0].usage.prompt_tokens == whole.usage.prompt_tokens
    assert 0 < replies[0].usage.new_tokens < whole.usage.new_tokens


def test_who_leaves_frees_the_place(thread, engine):
    async def leave() -> None:
        settings = AskedSettings(max_new_tokens=5000, do_sample=False)
        tickets = [thread.ask(Order(str(number), HELLO, settings)) for number in range(3)]
        for ticket in tickets:
            while not isinstance(await ticket.next(), Words):
                pass
        assert thread.at_work == 3
        for ticket in tickets:
            thread.leave(ticket)
            thread.leave(ticket)  # twice is no mistake
        await asked(thread, Order("after", HELLO))

    asyncio.run(leave())
    assert thread.at_work == 0


def test_a_reply_is_as_long_as_the_context_has_room_for():
    def fit(requests: Sequence[ChatRequest]) -> tuple[list[ChatRequest], list[Note]]:
        """A context of 100, of which the prompt takes 90."""
        filled = [replace(request, settings=request.complete_settings()) for request in requests]
        excess = max(0, 90 + filled[0].settings.max_new_tokens - 100)
        return filled, [Note("long", "the prompt has too many", "the context", excess)] if excess else []

    def reply(request: ChatRequest) -> ChatReply:
        return ChatReply(request.id, str(request.complete_settings().max_new_tokens))

    with closing(EngineThread(fit, ScriptedGenerator(reply))) as thread:
        short, long = asyncio.run(
            asked(thread, Order("a", HELLO, AskedSettings(max_new_tokens=7)), Order("b", HELLO, choices=2))
        )
    assert (short[0].text, long[0].text, long[1].text) == ("7", "10", "10")


def test_a_chat_that_leaves_no_room_is_refused():
    def fit(requests: Sequence[ChatRequest]) -> tuple[list[ChatRequest], list[Note]]:
        filled = [replace(request, settings=request.complete_settings()) for request in requests]
        return filled, [Note("long", "", "", filled[0].settings.max_new_tokens + 4)]

    with (
        closing(EngineThread(fit, ScriptedGenerator(lambda request: ChatReply(request.id, "")))) as thread,
        pytest.raises(Refusal, match="the chat is too long: it has 5 positions more") as refused,
    ):
        asyncio.run(asked(thread, Order("a", HELLO)))
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")


def test_what_fails_ends_what_runs_and_no_more(capsys):
    failures = iter([MemoryError("no memory\nmore"), UserError("the GPU's memory is full"), KeyError("a bug")])

    def reply(request: ChatRequest) -> ChatReply:
        if request.id.startswith("bad"):
            raise next(failures)
        return ChatReply(request.id, "Aye.")

    async def fail(thread: EngineThread, id_: str) -> str:
        ticket = thread.ask(Order(id_, HELLO))
        assert await ticket.next() == Accepted()
        with pytest.raises(Refusal) as refused:
            await ticket.next()
        assert refused.value.status == 500
        return refused.value.message

    with scripted(reply) as thread:
        assert asyncio.run(fail(thread, "bad 1")) == "the model fails: MemoryError: no memory"
        assert asyncio.run(fail(thread, "bad 2")) == "the GPU's memory is full"
        assert asyncio.run(fail(thread, "bad 3")) == "the model fails: KeyError: 'a bug'"
        (replies,) = asyncio.run(asked(thread, Order("good", HELLO)))
    assert replies[0].text == "Aye."
    said = capsys.readouterr().err
    assert said.count("Traceback") == 1  # of the bug
    assert said.count("the model has failed: ") == 3


class Faulty(ScriptedGenerator):
    """Says replies word by word, all that are there at once; fails with one of a name among them at the third word."""

    def step(self) -> list[Piece | ChatReply]:
        if self.steps == 2 and (bad := [request.id for request in self._waiting if request.id.startswith("bad")]):
            self.steps = 0
            raise OSError(f"an image of {bad[0]} cannot be read")
        self.steps += 1
        words = ["Aye", ".", "Aye", ".", "Aye", "."]
        events: list[Piece | ChatReply] = [Piece(request.id, words[self.steps - 1]) for request in self._waiting]
        if self.steps == len(words):
            events += [self._reply(self._waiting.popleft()) for _ in range(len(self._waiting))]
            self.steps = 0
        return events

    steps = 0


def test_who_is_not_to_blame_for_a_failure_does_not_notice_it(capsys):
    def reply(request: ChatRequest) -> ChatReply:
        return ChatReply(request.id, "Aye.Aye.Aye.")

    async def together(thread: EngineThread) -> list:
        orders = [Order(id_, HELLO, choices=1 + (id_ == "b")) for id_ in ("a", "bad", "b", "c")]
        tasks = [answered(thread, order) for order in orders]
        return await asyncio.gather(*tasks, return_exceptions=True)

    with closing(EngineThread(ScriptedBackend(reply).fit, Faulty(reply))) as thread:
        one, bad, two, three = asyncio.run(together(thread))
        assert thread.at_work == 0
        (after,) = asyncio.run(asked(thread, Order("after", HELLO)))
    assert isinstance(bad, Refusal)
    assert bad.message == "the model fails: OSError: an image of bad cannot be read"
    for said, replies in (one, two, three):
        assert {*said.values()} == {"Aye.Aye.Aye."}
        assert {reply.text for reply in replies.values()} == {"Aye.Aye.Aye."}
    assert sorted(two[0]) == [0, 1]
    assert after[0].text == "Aye.Aye.Aye."
    said = capsys.readouterr().err
    assert "a step has failed; each request of it is tried alone: OSError(" in said
    assert "Traceback" not in said


def test_a_backend_that_cannot_answer_says_so():
    def check(requests: Sequence[ChatRequest]) -> None:
        raise UserError("no reply to that")

    backend = ScriptedBackend(lambda request: ChatReply(request.id, ""), check=check)
    with (
        closing(EngineThread(backend.fit, ScriptedGenerator(backend.reply))) as thread,
        pytest.raises(Refusal, match="no reply to that") as refused,
    ):
        asyncio.run(asked(thread, Order("a", HELLO)))
    assert refused.value.status == 400


def test_nobody_waits_for_a_thread_that_has_ended(capsys):
    class Broken(ScriptedGenerator):
        def cancel(self, id_: str) -> None:
            raise KeyError(id_)

    async def ask(thread: EngineThread) -> list[str]:
        said = []
        for _ in range(2):
            with pytest.raises(Refusal) as refused:
                await answered(thread, Order("a", HELLO, stops=("y",)))
            said.append(refused.value.message)
            thread._thread.join()
        return said

    with closing(EngineThread(ScriptedBackend(aye).fit, Broken(aye))) as thread:
        assert asyncio.run(ask(thread)) == [
            "the model fails: KeyError: 'a'",
            "the engine has ended; the server must be started again",
        ]
        assert not thread.is_alive
    assert capsys.readouterr().err.count("Traceback") == 1


def aye(request: ChatRequest) -> ChatReply:
    return ChatReply(request.id, "Aye.")


def test_closing_ends_the_thread():
    with scripted(lambda request: ChatReply(request.id, "")) as thread:
        assert thread.is_alive
    assert not thread.is_alive
    assert "engine" not in [each.name for each in threading.enumerate()]
