"""Many clients of serve.py at once, some of whom go away, send nonsense or read slowly: nothing leaks, answers stay
right, and it says that it is well throughout."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest
from fixtures.doors import COMPLETIONS, Served, image_part, png, serve, text_part
from fixtures.jobs import tiny

__all__ = ["tiny"]

QUESTIONS = [
    *(f"Question {number}: what do you see on the quay? {'Tell more. ' * number}" for number in range(6)),
    *([text_part("What is "), image_part(png(colour=colour)), text_part("this?")] for colour in ("red", "blue")),
]
KINDS = {"stream": 4, "whole": 4, "slow": 1, "gone": 4, "gone at once": 1, "bad": 2}
BAD = (b"{", b"\x00" * 5000, b'{"model": "tiny"}', b'{"model": "nobody", "messages": []}')
SECONDS_FOR_HEALTH = 30
GROWTH = 192 << 20
"""Bytes that may be added to the memory of a server after it has warmed up: what allocators keep goes up and down by 60
MiB, and the places of some hundred clients that have gone away would be more than this."""


@dataclass
class Crowd:
    """Clients, and what has become of their requests."""

    served: Served
    expected: list[str]
    done: Counter = field(default_factory=Counter)
    slowest: float = 0.0

    async def send(self, body: bytes, method: str = "POST", path: str = COMPLETIONS):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.served.port)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        return reader, writer

    async def client(self, chance: random.Random, until: float) -> None:
        while time.monotonic() < until:
            (kind,) = chance.choices([*KINDS], [*KINDS.values()])
            await asyncio.wait_for(self.ask(kind, chance), 300)
            self.done[kind] += 1

    async def ask(self, kind: str, chance: random.Random) -> None:
        place = chance.randrange(len(QUESTIONS))
        fields = {"stream": kind != "whole", "max_tokens": 4000 if "gone" in kind else 24, "temperature": 0}
        body = {"model": "tiny", "messages": [{"role": "user", "content": QUESTIONS[place]}], **fields}
        data = chance.choice(BAD) if kind == "bad" else json.dumps(body).encode()
        reader, writer = await self.send(data)
        try:
            if kind == "gone":
                await asyncio.wait_for(reader.readuntil(b"content-type"), 120)
                await asyncio.sleep(chance.uniform(0, 0.3))
            elif kind != "gone at once":
                answer = await self.read(reader, slowly=kind == "slow")
                self.check(kind, place, answer)
        finally:
            writer.transport.abort()

    async def read(self, reader: asyncio.StreamReader, *, slowly: bool) -> bytes:
        answer = b""
        while part := await reader.read(300 if slowly else 65536):
            answer += part
            await asyncio.sleep(0.05 if slowly else 0)
        return answer

    def check(self, kind: str, place: int, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if kind == "bad":
            assert status in (400, 404), answer
            assert b'{"error":{' in body
            return
        assert status == 200, answer
        if kind == "whole":
            said = json.loads(body)["choices"][0]["message"]["content"]
        else:
            events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
            assert events[-1] == b"[DONE]"
            said = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
        assert said == self.expected[place]

    async def watch(self, until: float) -> None:
        while time.monotonic() < until:
            start = time.monotonic()
            reader, writer = await self.send(b"", "GET", "/health")
            answer = await asyncio.wait_for(reader.read(), 60)
            assert b'"status":"ok"' in answer
            writer.close()
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.done["health"] += 1
            await asyncio.sleep(0.2)

    async def run(self, clients: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch(until))
            for number in range(clients):
                group.create_task(self.client(random.Random(number), until))


@pytest.fixture
def crowd(tiny, tmp_path) -> Iterator[Crowd]:
    # float64: a reply is the same to the last bit whoever is answered beside it.
    with serve(tmp_path, "--model_path", tiny, "--dtype", "float64", "--max_batch_tokens", 60_000) as served:
        said = [
            served.say({"role": "user", "content": question}, max_tokens=24, temperature=0).text
            for question in QUESTIONS
        ]
        assert len({*said}) > 4
        yield Crowd(served, said)


def hold_on(crowd: Crowd, clients: int, seconds: float) -> None:
    process = psutil.Process(crowd.served.process.pid)
    asyncio.run(crowd.run(clients, seconds / 4))
    wait_until_idle(crowd.served)
    memory, files = process.memory_info().rss, process.num_fds()
    asyncio.run(crowd.run(clients, 3 * seconds / 4))
    wait_until_idle(crowd.served)
    grown = process.memory_info().rss - memory
    print(f"{dict(crowd.done)}, /health within {crowd.slowest:.2f} s, {grown >> 20} MiB more")
    assert grown < GROWTH
    assert process.num_fds() <= files + 2
    assert all(crowd.done[kind] > 0 for kind in (*KINDS, "health")), crowd.done
    assert crowd.slowest < SECONDS_FOR_HEALTH
    lines = [line for line in crowd.served.logged() if COMPLETIONS in line]
    assert len(lines) == crowd.done.total() - crowd.done["health"] + len(QUESTIONS)
    assert not [line for line in lines if f"{COMPLETIONS} 50" in line]


def wait_until_idle(served: Served) -> None:
    for _ in range(200):
        if not served.at_work():
            time.sleep(0.2)
            return
        time.sleep(0.1)
    raise AssertionError("places are not free")


def test_sixteen_clients(crowd):
    hold_on(crowd, 16, 20)


@pytest.mark.long
def test_sixty_four_clients(crowd):
    hold_on(crowd, 64, 120)
