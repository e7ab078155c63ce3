"""The journal: what was appended is there again, after any kill, at any byte, on a full disk, with other processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrole.base.errors import UserError
from mmrole.base.journal import Journal
from mmrole.base.journal_files import JournalState, state

FINGERPRINT = {"model": "tiny", "max_new_tokens": 512, "input": "e3b0c442"}
ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)
PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT | st.just("\u2028\r\n\x00\ud83d"),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(ANY_TEXT, values, max_size=3),
    max_leaves=5,
)
RECORDS = st.dictionaries(ANY_TEXT, PAYLOADS, max_size=6)


def journal_file(output: Path, name: str = "0-of-1") -> Path:
    return output.with_name(output.name + ".journal") / f"{name}.jsonl"


def fill(output: Path, records: dict, rank: int = 0, world_size: int = 1, overwrite: bool = False) -> None:
    with Journal.open(output, FINGERPRINT, rank, world_size, overwrite) as journal:
        for name, payload in records.items():
            journal.append(name, payload)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output for all examples of a property, which each start it anew."""
    return tmp_path_factory.mktemp("journal") / "x.json"


@settings(max_examples=40)  # each forces files to the disk several times
@given(RECORDS, RECORDS)
def test_what_was_appended_is_read_again(output: Path, first: dict, second: dict):
    second = {name: payload for name, payload in second.items() if name not in first}
    fill(output, first, overwrite=True)
    with Journal.open(output, FINGERPRINT) as journal:
        assert journal.done == first
        for name, payload in second.items():
            journal.append(name, payload)
        assert journal.done == first | second
        assert journal.collect() == first | second
    journal = Journal.open(output, FINGERPRINT)
    assert list(journal.done.items()) == list((first | second).items())
    journal.remove()
    assert state(output) is JournalState.NEW


@settings(max_examples=40)  # each forces files to the disk several times
@given(RECORDS.filter(bool), st.floats(0, 1), RECORDS)
def test_a_file_cut_at_any_byte_is_a_prefix_and_goes_on(output: Path, records: dict, where: float, more: dict):
    fill(output, records, overwrite=True)
    data = journal_file(output).read_bytes()
    cut = data[: int(where * len(data))]
    journal_file(output).write_bytes(cut)
    whole = max(cut.count(b"\n") - 1, 0)
    journal = Journal.open(output, FINGERPRINT)
    assert list(journal.done.items()) == list(records.items())[:whole]
    expected = dict(journal.done) | {name: payload for name, payload in more.items() if name not in journal.done}
    for name in expected.keys() - journal.done.keys():
        journal.append(name, expected[name])
    journal.close()
    journal = Journal.open(output, FINGERPRINT)
    assert journal.done == expected
    journal.remove()


def test_done_holds_what_a_later_start_would_read(tmp_path: Path):
    with Journal.open(tmp_path / "x.json", FINGERPRINT) as journal:
        journal.append("a", {"pair": (1, 2), "half": "\ud83d\ude00"})
        assert journal.done == {"a": {"pair": [1, 2], "half": "\ud83d\ude00"}}
    with Journal.open(tmp_path / "x.json", FINGERPRINT) as journal:
        assert journal.done == {"a": {"pair": [1, 2], "half": "\ud83d\ude00"}}
        with pytest.raises(ValueError, match="in the journal already"):
            journal.append("a", {})


def test_states_of_an_output(tmp_path: Path):
    output = tmp_path / "folder/x.json"
    assert state(output) is JournalState.NEW
    fill(output, {"a": 1})
    assert state(output) is JournalState.UNFINISHED
    output.write_text("[]")
    assert state(output) is JournalState.UNFINISHED  # killed between the output and the removal of the journal
    Journal.open(output, FINGERPRINT).remove()
    assert state(output) is JournalState.FINISHED
    assert list(output.parent.iterdir()) == [output]
    with pytest.raises(UserError, match=r"x\.json is finished already; without --overwrite it is left as it is"):
        Journal.open(output, FINGERPRINT)


def test_overwrite_starts_anew_and_keeps_the_old_output_until_it_is_replaced(tmp_path: Path):
    output = tmp_path / "x.json"
    output.write_text("old")
    for changed in (FINGERPRINT, FINGERPRINT | {"model": "other"}):
        with Journal.open(output, changed, overwrite=True) as journal:
            assert journal.done == {}
            journal.append("a", 1)
    assert output.read_text() == "old"
    assert state(output) is JournalState.UNFINISHED
    with pytest.raises(UserError, match="model was 'other', is 'tiny'"):
        Journal.open(output, FINGERPRINT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "large"}, "other settings: model was 'tiny', is 'large'; go on"),
        (
            {"max_new_tokens": 8, "input": "a1"},
            "settings: max_new_tokens was 512, is 8, input was 'e3b0c442', is 'a1'; go",
        ),
        ({"seed": [1, (2, 3)]}, r"settings: seed was not noted, is \[1, \[2, 3\]\]; go on"),
    ],
)
def test_another_fingerprint_is_refused_by_name(tmp_path: Path, changes: dict, message: str):
    fill(tmp_path / "x.json", {"a": 1})
    before = journal_file(tmp_path / "x.json").read_bytes()
    with pytest.raises(UserError, match=message + ".* --overwrite$"):
        Journal.open(tmp_path / "x.json", FINGERPRINT | changes)
    assert journal_file(tmp_path / "x.json").read_bytes() == before
    fill(tmp_path / "x.json", {"b": 1})  # the refused opening holds no lock and has damaged nothing


def test_a_journal_without_records_may_have_any_fingerprint(tmp_path: Path):
    Journal.open(tmp_path / "x.json", FINGERPRINT).close()
    with Journal.open(tmp_path / "x.json", {"model": "other"}) as journal:
        journal.append("a", 1)
    with pytest.raises(UserError, match="model was 'other'"):
        Journal.open(tmp_path / "x.json", FINGERPRINT)


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (2, b"\x00" * 20, "line 3 is damaged; delete the line"),
        (2, b'{"id": "b", "payl', "line 3 is damaged"),
        (2, b'{"id": 7, "payload": 1}', "line 3 is damaged"),
        (2, b'["b"]', "line 3 is damaged"),
        (2, b'{"id": "b", "payload": 1, "time": 3}', "line 3 has a field that is not known, 'time'; delete the line"),
        (2, b"[" * 100_000, "line 3 is damaged"),
        (3, b"\xff", "line 4 is damaged"),
        (3, b'{"id": "a", "payload": 5}', "line 4 repeats the record 'a'"),
        (0, b'{"journal": 99, "fingerprint": {}}', "line 1 is not the header of a journal of this version"),
        (0, b"[]", "line 1 is not the header"),
    ],
)
def test_damage_is_named_by_line_and_nothing_is_changed(tmp_path: Path, number: int, line: bytes, message: str):
    path = journal_file(tmp_path / "x.json")
    fill(tmp_path / "x.json", {"a": 1, "b": 2, "c": 3})
    lines = path.read_bytes().split(b"\n")
    lines[number] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=message) as caught:
        Journal.open(tmp_path / "x.json", FINGERPRINT)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"\n".join(lines)


def test_processes_share_an_output_and_their_number_may_change(tmp_path: Path):
    output = tmp_path / "x.json"
    fill(output, {"a": 1, "b": 2}, 0, 2)
    fill(output, {"c": 3}, 1, 2)
    with journal_file(output, "1-of-2").open("ab") as file:
        file.write(b'{"id": "d", "pay')  # a torn line of another process is left to its owner
    with Journal.open(output, FINGERPRINT, 0, 3) as journal:
        assert journal.done == {"a": 1, "b": 2, "c": 3}
        journal.append("d", 4)
    fill(output, {"e": 5}, 2, 3)
    fill(output, {"f": 6}, 1, 2)
    journal = Journal.open(output, FINGERPRINT)
    assert journal.done == journal.collect() == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_record_in_two_journals_is_refused(tmp_path: Path):
    fill(tmp_path / "x.json", {"a": 1}, 0, 2)
    text = journal_file(tmp_path / "x.json", "0-of-2").read_text()
    journal_file(tmp_path / "x.json", "1-of-2").write_text(text)
    with pytest.raises(UserError, match=r"record 'a' is in .*1-of-2\.jsonl and in .*0-of-2\.jsonl"):
        Journal.open(tmp_path / "x.json", FINGERPRINT, 0, 2)


def test_a_full_disk_is_a_clear_line_and_loses_nothing(on_small_disk):
    result = on_small_disk("""
from mmrole.base.errors import UserError
from mmrole.base.journal import Journal
output = folder / "x.json"
journal = Journal.open(output, {})
for number in range(10_000):
    try:
        journal.append(str(number), "x" * 999)
    except UserError as error:
        print(error)
        break
count = len(journal.done)
assert 10 < count == number < 300
data = (folder / "x.json.journal/0-of-1.jsonl").read_bytes()
assert data.endswith(b"\\n") and data.count(b"\\n") == count + 1
make_room()
journal.append(str(count), "goes on")
journal.close()
journal = Journal.open(output, {})
assert list(journal.done) == [str(n) for n in range(count + 1)]
journal.remove()
print(count)
""")
    assert result.stderr == ""
    message, count = result.stdout.splitlines()
    assert "No space left on device" in message or "File too large" in message
    assert f"the {count} finished records are kept: make room" in message


WORKER = """
import sys, time
from mmrole.base.journal import Journal
output, rank, world_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
journal = Journal.open(output, {"model": "tiny"}, rank, world_size)
print("open", flush=True)
sys.stdin.readline()  # all processes have opened their journals
for number in range(rank, 1_000_000, world_size):
    name = f"record {number}"
    if name not in journal.done:
        time.sleep(0.001)
        journal.append(name, name * 10_000)
        print(name, flush=True)
"""


class Worker:
    """A process that journals records and says so, until it is killed."""

    def __init__(self, repository: Path, output: Path, rank: int, world_size: int):
        self.log = output.with_name(f"log {rank} {world_size}")
        command = [sys.executable, "-c", WORKER, str(output), str(rank), str(world_size)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=log, text=True)
        while "open\n" not in self.log.read_text():
            assert self.process.poll() is None
            time.sleep(0.005)

    def go(self) -> None:
        """Lets the process append its records."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def appended(self) -> list[str]:
        """The records that the process has said to have appended."""
        return self.log.read_text().split("\n")[1:-1]

    def kill(self) -> list[str]:
        """Kills the process and returns the records that it had appended."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        appended = self.appended()
        self.log.unlink()
        return appended


def test_killed_processes_lose_nothing_and_repeat_nothing(tmp_path: Path, repository: Path):
    output = tmp_path / "x.json"
    targets = random.Random(3)
    said: list[str] = []
    for world_size in (1, 2, 2, 3):
        workers = [Worker(repository, output, rank, world_size) for rank in range(world_size)]
        for worker in workers:
            worker.go()
        target = targets.randint(1, 30)
        while len(workers[-1].appended()) < target:
            assert all(worker.process.poll() is None for worker in workers)
            time.sleep(0.001)
        for worker in workers:
            said += worker.kill()
    assert len(said) == len(set(said))
    with Journal.open(output, {"model": "tiny"}) as journal:
        assert set(said) <= set(journal.done)
        # A process may be killed between appending a record and saying so.
        assert len(journal.done) - len(said) <= 8
        assert all(payload == name * 10_000 for name, payload in journal.done.items())


def test_two_runs_on_one_output_are_refused_until_the_first_is_dead(tmp_path: Path, repository: Path):
    output = tmp_path / "x.json"
    workers = [Worker(repository, output, rank, 2) for rank in range(2)]
    for rank, world_size, overwrite in ((0, 1, False), (0, 2, False), (0, 1, True), (1, 2, False)):
        with pytest.raises(UserError, match=r"another process is working on .*x\.json; wait for it, or stop it"):
            Journal.open(output, {"model": "tiny"}, rank, world_size, overwrite)
    workers[0].kill()
    with pytest.raises(UserError, match="another process is working"):  # its other process is alive
        Journal.open(output, {"model": "tiny"})
    workers[1].kill()
    Journal.open(output, {"model": "tiny"}).close()


RIVAL = """
import os, random, sys
from mmrole.base.errors import UserError
from mmrole.base.journal import Journal
output, seed, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
choose = random.Random(seed)
print("ready", flush=True)
sys.stdin.readline()
held = 0
while held < turns:
    try:
        journal = Journal.open(output, {}, 0, choose.randint(1, 3), overwrite=choose.random() < 0.5)
    except UserError as error:
        assert str(error).startswith("another process is working on "), error
        continue
    os.close(os.open(output + ".held", os.O_CREAT | os.O_EXCL))  # fails if anybody else has the output
    journal.append(f"{seed} {held}", {})
    assert f"{seed} {held}" in journal.collect()
    os.unlink(output + ".held")
    journal.remove() if choose.random() < 0.5 else journal.close()
    held += 1
"""


@pytest.mark.parametrize("turns", [60, pytest.param(5000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_jobs_that_begin_at_the_same_moment_have_the_output_one_after_the_other(
    tmp_path: Path, repository: Path, turns: int
):
    """With different numbers of processes, one of them through a link, starting anew or not."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(tmp_path / name / "x.json"), str(seed), str(turns)],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, name in enumerate(("folder", "link"))
    ]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    assert [rival.communicate()[1] for rival in rivals] == ["", ""]
    Journal.open(tmp_path / "folder/x.json", {}, overwrite=True).remove()
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("deleted", [".x.json.lock", "x.json.journal", "."])
def test_what_is_deleted_beside_a_running_job_is_there_again(tmp_path: Path, deleted: str):
    output = tmp_path / "folder/x.json"
    fill(output, {"a": 1})
    journal = Journal.open(output, FINGERPRINT)
    target = output.parent / deleted
    target.unlink() if target.is_file() else shutil.rmtree(target)
    if target.suffix == ".lock":
        journal.sync()
    else:
        with pytest.raises(UserError, match=r"0-of-1\.jsonl was deleted .* 2 finished records are written there again"):
            journal.append("b", 2)
    assert "another process is working on" in refusal_elsewhere(output)
    journal.close()
    with Journal.open(output, FINGERPRINT) as journal:
        assert journal.done == ({"a": 1} if target.suffix == ".lock" else {"a": 1, "b": 2})


def test_a_job_whose_folder_another_has_taken_writes_nothing(tmp_path: Path, repository: Path):
    output = tmp_path / "folder/x.json"
    journal = Journal.open(output, FINGERPRINT)
    shutil.rmtree(output.parent)
    output.parent.mkdir()
    other = Worker(repository, output, 0, 1)
    with pytest.raises(UserError, match="another process is working on"):
        journal.append("a", 1)
    with pytest.raises(UserError, match="another process is working on"):
        journal.confirm_lock()
    other.kill()


def refusal_elsewhere(output: Path) -> str:
    """What another process says that starts the output anew."""
    code = "import sys; from mmrole.base.journal import Journal; Journal.open(sys.argv[1], {}, overwrite=True)"
    command = [sys.executable, "-c", code, str(output)]
    return subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True).stderr


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path, repository: Path):
    code = """
import os, sys, time
from mmrole.base.journal import Journal
journal = Journal.open(sys.argv[1], {})
if os.fork() == 0:
    time.sleep(60)
print("forked", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x.json")],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"forked\n"
        process.kill()
        process.wait()
        Journal.open(tmp_path / "x.json", {}).close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_line_is_plain_json(tmp_path: Path):
    fill(tmp_path / "x.json", {"孙悟空_1": {"text": "a\u2028b\n"}})
    header, line, rest = journal_file(tmp_path / "x.json").read_text().split("\n")
    assert json.loads(header) == {"journal": 1, "fingerprint": FINGERPRINT}
    assert line == '{"id": "孙悟空_1", "payload": {"text": "a\u2028b\\n"}}'
    assert rest == ""


@pytest.mark.parametrize("name", ["0-of-1", "0-of-2"])
def test_what_is_no_file_is_no_journal(tmp_path: Path, name: str):
    path = journal_file(tmp_path / "x.json", name)
    path.parent.mkdir()
    for make in (os.mkfifo, os.mkdir):
        make(path)
        with pytest.raises(UserError, match=rf"{name}\.jsonl is not a regular file"):
            Journal.open(tmp_path / "x.json", FINGERPRINT)
        path.unlink() if path.is_fifo() else path.rmdir()


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        Journal.open(tmp_path / "file/x.json", FINGERPRINT)
