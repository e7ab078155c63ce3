"""inference.py with a server's model, on real processes: killed and interrupted, and from inference.sh."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.desk import NAME, Desk, sample
from fixtures.scripts import kill
from fixtures.servers import Ask, Say, Server, calm, error

from mmrole.jobs.options import TEST_FILES

CONCURRENCY = 4
SEED = 16


class Desks:
    """Calls of inference.py about the records of a desk, as a user makes them."""

    def __init__(self, desk: Desk, server: Server, repository: Path) -> None:
        self.desk, self.server, self.repository = desk, server, repository

    def flags(self, *flags: object) -> list[str]:
        folder = self.desk.folder
        arguments = [
            *("--input_dir", folder / "test", "--input_file", NAME, "--image_dir", folder / "images"),
            *("--output_dir", self.desk.output.parent, "--api_base", self.server.url, "--api_model", "calm-1"),
            *("--no_api_probe", "--api_concurrency", CONCURRENCY, *flags),
        ]
        return [str(argument) for argument in arguments]

    def start(self, *flags: object) -> subprocess.Popen:
        command = [sys.executable, "inference.py", *self.flags(*flags)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.repository, start_new_session=True, **pipes)

    def journaled(self) -> list[str]:
        """The ids of the whole lines of the journal."""
        data = b"".join(path.read_bytes() for path in self.desk.journal.glob("*.jsonl"))
        lines = data[: data.rfind(b"\n") + 1].splitlines()[1:]
        return [json.loads(line)["id"] for line in lines]

    def wait_for(self, process: subprocess.Popen, replies: int) -> None:
        """Returns when the server has replied so often, or the process has ended."""
        while process.poll() is None and len(self.server.done) < replies:
            time.sleep(0.002)


@pytest.fixture
def calls(desk, server, repository) -> Desks:
    return Desks(desk, server, repository)


def troubled(ask: Ask) -> Say | dict:
    """Calm after 20 ms, but for trouble that is a matter of chance: too many requests, and hanging up half-way."""
    chance = random.random()
    if chance < 0.1:
        return error(429, headers={"Retry-After": "0.01"})
    said = Say(calm(ask).body, seconds=0.02)
    if chance < 0.13:
        said.sent = 20
    return said


def kill_and_resume(calls: Desks, kills: int, n_records: int) -> None:
    """Kills the job at random moments, and then lets it end; compares it with one that nobody disturbs."""
    calls.desk.write(*(sample(f"r {number} 船", image=None) for number in range(n_records)))
    calls.server.behaviour = calm
    out, err = calls.start().communicate()
    assert (err, calls.desk.journal.exists()) == ("", False), out
    undisturbed = [calls.desk.output.read_bytes(), calls.desk.output.with_name(f"{NAME}.settings").read_bytes()]
    shutil.rmtree(calls.desk.output.parent)
    calls.server.log.clear()
    calls.server.done.clear()
    calls.server.behaviour = troubled
    chance = random.Random(SEED)
    known: set[str] = set()
    asked = 0
    for moment in [*sorted(chance.sample(range(n_records * 3 // 4), kills)), None]:
        process = calls.start()
        if moment is None:
            out, err = process.communicate()
            assert (process.returncode, err) == (0, ""), out
        else:
            calls.wait_for(process, moment)
            time.sleep(chance.uniform(0, 0.03))
            assert process.poll() is None, process.communicate()
            kill(process)
        assert not known & {*calls.server.asked()[asked:]}
        asked = len(calls.server.log)
        journaled = calls.journaled()
        assert len(journaled) == len({*journaled})
        assert known <= {*journaled} or moment is None
        known = {*journaled}
    assert [calls.desk.output.read_bytes(), calls.desk.output.with_name(f"{NAME}.settings").read_bytes()] == undisturbed
    assert not calls.desk.journal.exists()
    assert n_records <= len(calls.server.done) <= n_records + kills * CONCURRENCY


def test_killed_five_times(calls):
    kill_and_resume(calls, 5, 60)


@pytest.mark.long
def test_killed_twenty_times(calls):
    kill_and_resume(calls, 20, 200)


def test_interrupted_and_terminated(calls):
    calls.desk.write(*(sample(f"r {number}", image=None) for number in range(40)))
    calls.server.behaviour = lambda ask: Say(calm(ask).body, seconds=0.03)
    for number, (sent, status) in enumerate([(signal.SIGINT, 130), (signal.SIGTERM, 143)], start=1):
        process = calls.start()
        calls.wait_for(process, 10 * number)
        process.send_signal(sent)
        out, err = process.communicate()
        assert (process.returncode, err) == (status, "")
        assert f"interrupted: {len(calls.journaled())} replies are kept, and the same command goes on" in out
    assert 0 < len(calls.journaled()) < 40
    out, err = calls.start().communicate()
    assert err == ""
    assert [record["conversations"][1]["answer"] for record in calls.desk.read()] == [f"Aye, r {n}." for n in range(40)]
    assert len(calls.server.asked()) <= 40 + 2 * CONCURRENCY


@pytest.fixture
def root(desk, repository) -> Iterator[Path]:
    """A repository root with data, and images in their folder."""
    root = desk.folder / "repository root"
    for distribution in ("in-distribution", "out-of-distribution"):
        folder = root / "data/test" / distribution
        folder.mkdir(parents=True)
        for name in TEST_FILES:
            (folder / name).write_text(json.dumps([sample(f"{distribution} {name}")]))
    for script in ("inference.py", "inference.sh"):
        shutil.copy(repository / script, root)
    (root / "images").symlink_to(desk.folder / "images")
    return root


def shell(root: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    command = ["bash", str(root / "inference.sh"), *flags]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


def test_both_test_sets_from_the_shell(root, server):
    done = shell(root, "--no_random", API_BASE=server.url, API_MODEL="calm-1", MODEL="calm")
    assert (done.returncode, done.stderr) == (0, "")
    answers = sorted((root / "eval").rglob("*.json"))
    assert [str(path.parent.relative_to(root)) for path in answers] == [
        f"eval/{split}-test_answers/calm" for split in ("in", "out") for _ in TEST_FILES
    ]
    assert sorted(server.asked()) == sorted(
        f"{distribution} {name}" for distribution in ("in-distribution", "out-of-distribution") for name in TEST_FILES
    )


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"API_BASE": "http://localhost:1/v1", "API_MODEL": "m"},
            "MODEL must name the output folders, as in MODEL=",
        ),
        ({"API_BASE": "http://localhost:1/v1", "MODEL": "m"}, "--api_model is empty; name a model of the server"),
        ({"API_BASE": "localhost", "API_MODEL": "m", "MODEL": "m"}, "--api_base 'localhost' is no address of a server"),
        ({"API_BASE": "u", "API_MODEL": "m", "MODEL": "m", "MODEL_PATH": "p"}, "leave out --model_path"),
    ],
)
def test_what_the_shell_refuses(root, variables, said):
    done = shell(root, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
