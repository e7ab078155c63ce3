"""inference.py loses nothing and repeats nothing: killed, interrupted, on a full disk, with one process and two."""

import dataclasses
import functools
import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fixtures.jobs import ENVIRONMENT
from fixtures.scripts import kill
from PIL import Image

from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import byte_vocabulary

RECORDS = 12
SEED = 20


@dataclass
class Steady:
    """Records whose greedy answers no rounding can change: each of up to 64 tokens leads by more than 1e-4."""

    records: list[dict]
    output: bytes


@pytest.fixture(scope="module")
def slow_job(make_job, tmp_path_factory):
    """A job with a model of twelve layers, so that there is time to kill it."""
    folder = tmp_path_factory.mktemp("slow")
    model = random_model(random_config(256, num_hidden_layers=12, visual_layers=1), seed=7)
    write_checkpoint(folder / "model", model, byte_vocabulary())
    (folder / "images").mkdir()
    return make_job(folder, folder / "model", folder / "images", max_new_tokens=64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def make_steady(slow_job) -> Callable[[int], Steady]:
    """Finds so many records, each with an image of its own, so that no two of them form a tree."""

    @functools.cache
    def make(count: int) -> Steady:
        model = slow_job.load(torch.float32)
        records = []
        for number in itertools.count():
            record = slow_job.sample(number, image=f"{number}.png")
            Image.new("RGB", (8, 8), (number, 255 - number, 128)).save(slow_job.image_dir / record["image"])
            if slow_job.alone(model, record).margin > 1e-4:
                records.append(record)
            if len(records) == count:
                break
        slow_job.write(records)
        assert slow_job.run("--no_random", "--overwrite") == 0  # all together, which is another order of sums
        return Steady(records, slow_job.output.read_bytes())

    return make


@pytest.fixture
def steady(slow_job, tmp_path):
    """The same job in a folder of its own."""
    return dataclasses.replace(slow_job, folder=tmp_path)


@pytest.fixture
def expected(steady, make_steady, request) -> bytes:
    """Writes the input; the output of a run that nothing disturbs."""
    made = make_steady(getattr(request, "param", RECORDS))
    steady.write(made.records)
    return made.output


def start(job, repository: Path, *, processes: int = 1) -> subprocess.Popen:
    """One record after the other, so that there is time to kill it."""
    return job.start(repository / "inference.py", "--no_random", "--max_batch_tokens", 1, processes=processes)


def records(journal: bytes) -> list[bytes]:
    """The records of a journal file: its whole lines, without the header."""
    return journal[: journal.rfind(b"\n") + 1].splitlines(keepends=True)[1:]


def journals(job) -> dict[str, bytes]:
    try:
        return {file.name: file.read_bytes() for file in sorted(job.journal.glob("*.jsonl"))}
    except FileNotFoundError:  # the journal is being removed
        return {}


def done(job) -> int:
    return sum(len(records(journal)) for journal in journals(job).values())


def wait_for(job, process: subprocess.Popen, count: int) -> None:
    """Returns when so many records are in the journal, or the process has ended."""
    while process.poll() is None and done(job) < count:
        time.sleep(0.002)


def check_journals(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """What was journaled is unchanged, and nothing is there twice."""
    for name, journal in before.items():
        assert b"".join(records(after[name])).startswith(b"".join(records(journal)))
    lines = [line.split(b'"payload"')[0] for journal in after.values() for line in records(journal)]
    assert len(lines) == len(set(lines))


def rounds(kills: int, total: int) -> Iterator[int]:
    """After how many records each kill comes: at random, more each time, the last one when all are there."""
    source = random.Random(SEED)
    yield from sorted(source.sample(range(total), kills - 1))
    yield total


def kill_and_resume(job, repository: Path, expected: bytes, kills: int, total: int, processes: int) -> None:
    before: dict[str, bytes] = {}
    for count in rounds(kills, total):
        process = start(job, repository, processes=processes)
        wait_for(job, process, count)
        time.sleep(random.Random(count).uniform(0, 0.05))
        assert process.poll() is None or count == total, process.communicate()
        kill(process) if process.poll() is None else process.communicate()
        if job.journal.exists():
            after = journals(job)
            check_journals(before, after)
            before = after
    kept = done(job)
    out, err = start(job, repository, processes=processes).communicate()
    assert job.output.read_bytes() == expected, err
    assert not job.journal.exists()
    generated = f"\n{total - kept} replies, " if kept < total else "records written"
    assert generated in out or "finished before" in out


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_four_times(steady, expected, repository, processes):
    kill_and_resume(steady, repository, expected, 4, RECORDS, processes)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("expected", [24], indirect=True)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_twenty_times(steady, expected, repository, processes):
    kill_and_resume(steady, repository, expected, 20, 24, processes)


def test_interrupted_and_terminated(steady, expected, repository):
    for number, (sent, status) in enumerate([(signal.SIGINT, 130), (signal.SIGTERM, 143)], start=1):
        process = start(steady, repository)
        wait_for(steady, process, 3 * number)
        process.send_signal(sent)
        out, err = process.communicate()
        assert (process.returncode, err) == (status, "")
        assert f"interrupted: {done(steady)} replies are kept, and the same command goes on" in out
    assert 0 < done(steady) < RECORDS
    assert steady.run("--no_random") == 0
    assert steady.output.read_bytes() == expected


def test_a_failure_in_the_very_end_costs_nothing(steady, expected, monkeypatch):
    """The output cannot be written at first: every answer is in the journal, and no model is loaded again."""
    code = "import sys, mmrole.base.files as f\nwith f.replacing(sys.argv[1]): print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, steady.output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        with pytest.raises(Exception, match="is being written by another process"):
            steady.run("--no_random")
        other.kill()
    assert done(steady) == RECORDS
    monkeypatch.setattr("mmrole.backends.engine.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert steady.run("--no_random") == 0
    assert steady.output.read_bytes() == expected


def test_a_mistake_is_reported_once_by_two_processes(steady, repository):
    steady.write([steady.sample(0, image="missing.png")])
    process = start(steady, repository, processes=2)
    _, err = process.communicate()
    assert process.returncode != 0
    assert err.count("error (process 0 of 2): ") == err.count("missing.png") == 1
    assert "(exitcode: 2)" in err  # in torchrun's report, which is not for us to shorten


def test_a_full_disk_ends_with_a_clear_line_and_loses_nothing(steady, expected, repository, tmp_path):
    """Runs twice: on a disk with room for a few records, and with room made."""
    disk = steady.output_dir
    disk.mkdir()
    command = [sys.executable, "inference.py", *steady.flags("--no_random", "--max_batch_tokens", 1)]
    report = tmp_path / "report"
    prefix = ["unshare", "--map-root-user", "--mount"]
    full = f"mount -t tmpfs -o size=48k tmpfs {disk} && head -c 44k /dev/zero > {disk}/ballast"
    room = f"rm {disk}/ballast"
    if subprocess.run([*prefix, "sh", "-c", full], capture_output=True).returncode:
        # No small file system can be mounted here: no file larger than 4 kB then.
        prefix, full, room = [], "ulimit -S -f 4", "ulimit -S -f unlimited"
    script = f"""
        set -e; disk=$1; report=$2; shift 2
        {full}
        "$@" > "$report.out" 2> "$report.err" || echo $? > "$report.status"
        cp -r "$disk" "$report.first"
        {room}
        "$@"
        cp -r "$disk" "$report.second"
    """
    run = [*prefix, "bash", "-c", script, "bash", disk, report, *command]
    second = subprocess.run(run, cwd=repository, env=ENVIRONMENT, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr

    assert report.with_suffix(".status").read_text() == "2\n"
    error = report.with_suffix(".err").read_text()
    assert error.count("\n") == 1
    assert "records are kept: make room and run the same command again to go on" in error
    journal = next(report.with_suffix(".first").glob("*.journal/*.jsonl")).read_bytes()
    kept = len(records(journal))
    assert 0 < kept < RECORDS
    assert f"the {kept} finished records are kept" in error
    assert f"{RECORDS} records, {kept} of them done before" in second.stdout
    assert f"\n{RECORDS - kept} replies, " in second.stdout
    assert (report.with_suffix(".second") / steady.output.name).read_bytes() == expected
