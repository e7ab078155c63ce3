"""Times what a long job does besides generating: reading, checking, journaling and writing, with answers at once.

    python scripts/bench_jobs.py                                  # 25,000 and 100,000 records about one image

Prints, for each number of records, the seconds and memory of the whole job, those of its bound (reading the input as
JSON, writing the bytes of the journal line by line and those of the output), and what so many times the records cost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from PIL import Image

from mmrole.backends.backend import Generator
from mmrole.backends.engine import EngineBackend, find_engine
from mmrole.backends.scripted import ScriptedGenerator
from mmrole.base.journal_lines import encode_line
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatReply, ChatRequest, Usage
from mmrole.jobs import job
from mmrole.jobs.answers import ANSWERS
from mmrole.jobs.inputs import read_inputs
from mmrole.jobs.options import JobOptions
from mmrole.jobs.payloads import encode_reply
from mmrole.models.loading import ModelOptions
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import byte_vocabulary

CHARACTERS = 200
TOKENS = 50
IMAGE = "quay.png"


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    """Without what the process waited for others."""
    bytes: int = 0
    """Memory of the process."""


class AtOnce(EngineBackend):
    """Takes a checkpoint and loads nothing: every answer is the question."""

    @contextmanager
    def open(self) -> Iterator[Generator]:
        """Nothing has to be made ready."""
        yield ScriptedGenerator(answer)


def answer(request: ChatRequest) -> ChatReply:
    """A reply of as many characters as the question has."""
    return ChatReply(request.id, request.text, "stop", Usage(400, TOKENS + 1), tuple(range(1000, 1000 + TOKENS)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the jobs, each in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[25_000, 100_000], help="numbers of records")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments.folder)))
        return 0
    print(f"{'records':>9}{'seconds':>9}{'CPU':>7}{'bound':>8}{'reached':>9}{'records/s':>11}{'bytes/record':>14}")
    times = []
    for number in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            write_world(Path(folder), number)
            read, job, bound = (measure(part, Path(folder)) for part in ("read", "job", "bound"))
        times.append(job)
        print(
            f"{number:>9,}{job.seconds:>9.1f}{job.cpu_seconds:>7.1f}{bound.cpu_seconds:>8.2f}"
            f"{bound.cpu_seconds / job.cpu_seconds:>9.1%}"
            f"{number / job.seconds:>11,.0f}{(job.bytes - read.bytes) / number:>14,.0f}",
            flush=True,
        )
    for number, cost in zip(arguments.records[1:], times[1:], strict=True):
        print(
            f"{number / arguments.records[0]:.3g} times the records: {cost.seconds / times[0].seconds:.2f} times as "
            f"long, {cost.cpu_seconds / times[0].cpu_seconds:.2f} times the CPU's time"
        )
    return 0


def write_world(folder: Path, number: int) -> None:
    """Writes a tiny checkpoint, an image and an input file."""
    write_checkpoint(folder / "model", random_model(random_config(256), seed=0), byte_vocabulary())
    (folder / "images").mkdir()
    Image.new("RGB", (64, 48), "steelblue").save(folder / "images" / IMAGE)
    (folder / "test").mkdir()
    with (folder / "test/comment_test.json").open("w") as file:
        for index in range(number):
            file.write(",\n" if index else "[\n")
            json.dump(record(index), file)
        file.write("\n]")


def record(number: int) -> dict:
    """A sample with a question of so many characters."""
    question = f"Question {number}: what do you see on the quay? ".ljust(CHARACTERS, "!")
    return {
        "id": f"Mira_comment_{number}",
        "system": "You are a dedicated role-playing assistant.",
        "image": IMAGE,
        "conversations": [
            {"from": "user", "value": question},
            {"from": "assistant", "value": "Two boats late, both home."},
        ],
        "role": "Mira",
        "script": "Harbour Tales",
        "other_role": "a curious human",
    }


def measure(part: str, folder: Path) -> Cost:
    """Runs a part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def job_options(folder: Path) -> JobOptions:
    """What the job reads and writes."""
    return JobOptions(folder / "test", folder / "answers", image_dir=folder / "images")


def find_at_once(folder: Path) -> AtOnce:
    """The backend of the job."""
    return AtOnce(**vars(find_engine(ModelOptions(folder / "model", device="cpu", no_random=True))))


def now() -> tuple[float, float]:
    """The time, and the time that this process has used of the CPU."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """What has passed of both."""
    ended = now()
    return ended[0] - began[0], ended[1] - began[1]


def run_job(folder: Path) -> Cost:
    """The whole of inference.py but for the engine; memory at the peak."""
    began = now()
    job.run(ANSWERS, job_options(folder), lambda place: find_at_once(folder))
    return Cost(*since(began), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def read_records(folder: Path) -> Cost:
    """Reads the input as the job does; memory with the records and all that a job imports."""
    options = job_options(folder)
    find_at_once(folder).fit([])
    began = now()
    files = read_inputs(
        options.input_dir,
        ["comment_test.json"],
        options.output_dir,
        ANSWERS.record_type,
        options.image_dir,
        limit=None,
        skip_missing_images=False,
        how_to_get="",
    )
    cost = Cost(*since(began), psutil.Process().memory_info().rss)
    assert files
    return cost


def take_bound(folder: Path) -> Cost:
    """Reads the input as JSON, and writes what the job has journaled and written; after `run_job`."""
    image = ImageFile.of(folder / "images" / IMAGE)
    output = (folder / "answers/comment_test.json").read_bytes()
    lines = []
    for obj in json.loads(output):
        request = ChatRequest(obj["id"], one_turn(obj["system"], image, obj["conversations"][0]["value"]))
        lines.append(encode_line({"id": request.id, "payload": encode_reply(request, answer(request))}))
    began = now()
    json.loads((folder / "test/comment_test.json").read_bytes())
    with (folder / "journal").open("wb", buffering=0) as file:
        for line in lines:
            file.write(line)
    with (folder / "output").open("wb") as file:
        file.write(output)
        os.fsync(file.fileno())
    return Cost(*since(began))


PARTS = {"read": read_records, "job": run_job, "bound": take_bound}

if __name__ == "__main__":
    sys.exit(main())
