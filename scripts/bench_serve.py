"""Times serve.py by the number of its clients, beside generate() one request at a time.

    python scripts/bench_serve.py                     # a mid-size model with random weights, CPU, float32, two threads
    python scripts/bench_serve.py --shape tiny        # a tiny one: what the server itself costs

The server is a process of its own, with weights and prompts of bench_answers.py. Each client has one request under way.
Prints replies and tokens a second, how many times as many replies that is as generate() gives, and the time to the
first token.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mmrole.data.requests import ChatRequest

ROOT = Path(__file__).resolve().parent.parent


class Timing(NamedTuple):
    """Of one reply: seconds to its first token and to its end, and its tokens, the stop token included."""

    first: float
    whole: float
    tokens: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server and generate(), and prints a table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shape", choices=("tiny", "mid"), default="mid", help="of the model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="numbers of clients")
    parser.add_argument("--requests", type=int, default=16, help="number of requests with each; at least one a client")
    parser.add_argument("--new_tokens", type=int, default=64, help="most tokens of a reply")
    parser.add_argument("--one_by_one", type=int, default=8, help="number of requests for generate()")
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    arguments = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # torch reads it when it is imported

    from bench_answers import make_requests
    from bench_machine import device_name, torch

    requests = make_requests(max(arguments.requests, *arguments.clients), arguments.new_tokens)
    print(f"{device_name(torch.device('cpu'))}, float32, {arguments.shape}")
    print(f"{'':<12}{'replies/s':>10}{'tokens/s':>10}{'ratio':>7}{'first token, median':>21}{'slowest tenth':>15}")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", arguments.shape)
        one_by_one = requests[:: max(1, len(requests) // arguments.one_by_one)]
        seconds, timings = time_generate(Path(folder) / "model", one_by_one)
        alone = len(timings) / seconds
        print_row("generate()", seconds, timings, alone)
        with running(Path(folder) / "model") as port:
            bodies = [body_of(request) for request in requests]
            ask(port, bodies[0])  # warm up
            for number in arguments.clients:
                chosen = bodies[:: len(bodies) // max(number, arguments.requests)]
                print_row(f"{number} clients", *time_server(port, chosen, number), alone)
    return 0


def print_row(name: str, seconds: float, timings: Sequence[Timing], alone: float) -> None:
    """Prints a row of the table; `alone` are the replies a second of generate()."""
    rate, firsts = len(timings) / seconds, sorted(timing.first for timing in timings)
    tokens = sum(timing.tokens for timing in timings) / seconds
    middle, late = statistics.median(firsts), firsts[len(firsts) * 9 // 10]
    row = f"{name:<12}{rate:>10.2f}{tokens:>10.1f}{rate / alone:>7.2f}{middle:>19.2f} s{late:>13.2f} s"
    print(row, flush=True)


def write_model(folder: Path, shape: str) -> None:
    """Writes a random model with a vocabulary of bytes."""
    from bench_machine import random_model, torch

    from mmrole.qwen_vl.random_checkpoint import write_checkpoint
    from mmrole.qwen_vl.vocabulary import byte_vocabulary

    write_checkpoint(folder, random_model(shape, torch.device("cpu"), torch.float32), byte_vocabulary())


def time_generate(folder: Path, requests: Sequence[ChatRequest]) -> tuple[float, list[Timing]]:
    """Seconds that transformers' generate() takes for requests one after the other, and what each takes."""
    from bench_machine import torch

    from mmrole.qwen_vl import QWenLMHeadModel
    from mmrole.qwen_vl.chat_format import ChatTurn
    from mmrole.qwen_vl.processing import Chat, QWenProcessor

    model = QWenLMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = QWenProcessor.from_pretrained(folder)
    stops = [processor.tokenizer.im_end_id, processor.tokenizer.im_start_id, processor.tokenizer.eod_id]

    def generate(request: ChatRequest, new_tokens: int) -> tuple[float, int]:
        start = time.perf_counter()
        inputs = processor(Chat([ChatTurn(request.text, request.images)], request.system or ""))
        output = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=stops,
            pad_token_id=processor.tokenizer.eod_id,
        )
        return time.perf_counter() - start, output.shape[1] - inputs["input_ids"].shape[1]

    generate(requests[0], 2)  # warm up
    timings = []
    for request in requests:
        first, _ = generate(request, 1)
        timings.append(Timing(first, *generate(request, request.complete_settings().max_new_tokens)))
    return sum(timing.whole for timing in timings), timings


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """The port of a server of a model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "serve.py", "--model_path", folder, "--dtype", "float32", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the server does not start")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def body_of(request: ChatRequest) -> bytes:
    """A request as it goes to the server: greedy, streamed."""
    file = io.BytesIO()
    # The workload's images are pictures, drawn here.
    request.images[0].save(file, "PNG")  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.text}]
    body = {
        "model": "model",
        "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": parts}],
        "max_tokens": request.complete_settings().max_new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


def ask(port: int, body: bytes) -> Timing:
    """Has a request answered."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    connection.request("POST", "/v1/chat/completions", body)
    first, tokens = 0.0, 0
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
            first = time.perf_counter() - start
        tokens = event["usage"]["completion_tokens"] if "usage" in event else tokens
    connection.close()
    whole = time.perf_counter() - start
    return Timing(first or whole, whole, tokens)


def time_server(port: int, bodies: Sequence[bytes], clients: int) -> tuple[float, list[Timing]]:
    """Seconds that a server takes for requests of so many clients, and what each takes."""
    waiting, timings = list(bodies), []

    def client() -> None:
        while waiting:
            try:
                body = waiting.pop()
            except IndexError:
                return
            timings.append(ask(port, body))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, timings


if __name__ == "__main__":
    raise SystemExit(main())
