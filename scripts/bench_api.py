"""Times a job with a server's model, from its first request to the last line of its journal.

    python scripts/bench_api.py                     # 294 records, a reply after 50 ms, 16 at once

The server is a calm one, in a process of its own on this machine. Prints the seconds with each number of requests at
once, the bound (the server's delays alone), and how many times as long the job takes that finds the number by itself as
with the best one.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrole.backends.api.api_backend import find_api
from mmrole.backends.api.options import ApiOptions
from mmrole.base.json_values import JsonObject
from mmrole.data.records import Sample
from mmrole.data.requests import ChatReply
from mmrole.jobs import job
from mmrole.jobs.answers import ANSWERS
from mmrole.jobs.options import TEST_FILES, JobOptions

REPLY = {
    "model": "calm",
    "choices": [
        {"message": {"role": "assistant", "content": "Two boats late, both home. " * 8}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 900, "completion_tokens": 60},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the jobs, and prints a table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--records", type=int, default=294, help="number of records")
    parser.add_argument("--delay", type=float, default=0.05, metavar="SECONDS", help="of a reply")
    parser.add_argument("--fixed", type=int, nargs="+", default=[8, 16, 32, 64, 128], help="requests at once")
    parser.add_argument("--repeats", type=int, default=3, help="times, of which the best counts")
    arguments = parser.parse_args(argv)
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=run_server, args=(theirs, arguments.delay), daemon=True)
    server.start()
    times: dict[int | None, float] = {}
    try:
        port = ours.recv()
        with tempfile.TemporaryDirectory() as folder:
            write_input(Path(folder), arguments.records)
            measure(Path(folder), port, arguments.fixed[0], ours)  # imports the client
            for number in (*arguments.fixed, None):
                times[number] = min(measure(Path(folder), port, number, ours) for _ in range(arguments.repeats))
    finally:
        server.terminate()
    print(f"{'at once':>12}{'seconds':>9}{'bound':>7}{'replies/s':>11}")
    for number, seconds in times.items():
        bound = "" if number is None else f"{-(-arguments.records // number) * arguments.delay:.2f}"
        print(f"{number or 'found itself':>12}{seconds:>9.2f}{bound:>7}{arguments.records / seconds:>11.0f}")
    found = times.pop(None)
    print(f"the number that is found: {found / min(times.values()):.2f} times as long as the best that is given")
    return 0


def run_server(pipe: Any, delay: float) -> None:
    """Answers whatever is asked after a while; says its port, and the time of its first request whenever asked."""
    asyncio.run(_serve(pipe, delay))


async def _serve(pipe: Any, delay: float) -> None:
    first: list[float] = []
    body = json.dumps(REPLY).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(request.partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                return
            if not first:
                first.append(time.time())
            await asyncio.sleep(delay)
            writer.write(head + body)

    def tell() -> None:
        pipe.recv()
        pipe.send(first.pop() if first else None)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512)
    pipe.send(server.sockets[0].getsockname()[1])
    asyncio.get_running_loop().add_reader(pipe.fileno(), tell)
    await server.serve_forever()


def write_input(folder: Path, number: int) -> None:
    """Writes a file of so many samples, without images."""
    (folder / "test").mkdir()
    records = [
        {
            "id": f"Mira_comment_{index}",
            "system": "You are a dedicated role-playing assistant.",
            "conversations": [
                {"from": "user", "value": f"Question {index}: what do you see on the quay? " * 60},
                {"from": "assistant", "value": "Two boats late, both home."},
            ],
            "role": "Mira",
            "script": "Harbour Tales",
            "other_role": "a curious human",
        }
        for index in range(number)
    ]
    (folder / "test" / TEST_FILES[0]).write_text(json.dumps(records))


def measure(folder: Path, port: int, concurrency: int | None, server: Any) -> float:
    """Seconds from the first request to the last line of the journal."""
    options = ApiOptions(f"http://127.0.0.1:{port}/v1", "calm", probe=False, concurrency=concurrency)
    output = JobOptions(folder / "test", folder / "answers", folder / "images", Path(TEST_FILES[0]), overwrite=True)
    last = [0.0]

    def result(sample: Sample, replies: Mapping[str, ChatReply]) -> JsonObject:
        last[0] = last[0] or time.time()  # all lines are in the journal
        return {"id": sample.id}

    with redirect_stdout(io.StringIO()):
        job.run(replace(ANSWERS, result=result), output, lambda place: find_api(options, place=place))
    server.send(None)
    return last[0] - server.recv()


if __name__ == "__main__":
    raise SystemExit(main())
