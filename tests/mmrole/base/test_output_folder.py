"""Folders that are filled at once: whatever happens, all files or what the same command completes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmrole.base.errors import UserError
from mmrole.base.output_folder import PARTIAL, filling, is_new, refuse_existing

FILES = {"train/train.json": "[1]", "test/a.json": "[2]", "info.json": "{}"}
COMMAND = {"output_dir": Path("out"), "seed": 7, "overwrite": False}

# Fills the folder of argv[1], and kills itself with the call of the number argv[2] that changes the file system.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from mmrole.base.output_folder import filling, refuse_existing

folder, calls = Path(sys.argv[1]), int(sys.argv[2])
def counted(event, arguments):
    global calls
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "open") and (
        event != "open" or not isinstance(arguments[2], int) or arguments[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
command = {"output_dir": Path("out"), "seed": 7, "overwrite": "--overwrite" in sys.argv}
files = {"train/train.json": "[1]", "test/a.json": "[2]", "info.json": "{}"}
sys.addaudithook(counted)
refuse_existing(folder, files, command)
with filling(folder, command, last="info.json", stale=["test/old.json"]) as partial:
    for name, text in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(text)
"""

# Refuses the folder of argv[1], in which another process is writing.
KEEP = """
import sys
from mmrole.base.output_folder import remove_leftover
remove_leftover(sys.argv[1])
"""


def run_program(folder: Path, calls: int, *flags: str) -> int:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(calls), *flags]
    return subprocess.run(command, check=False).returncode


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def fill(folder: Path, command: dict, files: dict[str, str] = FILES, **options) -> None:
    with filling(folder, command, **options) as partial:
        for name, text in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(text)


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_the_same_command_completes_what_a_kill_has_left(tmp_path: Path, flags):
    """Killed before each call that changes the disk, in turn."""
    earlier = {"notes.txt": "mine"} | ({"info.json": "old", "test/old.json": "old"} if flags else {})
    for calls in range(1, 100):
        folder = tmp_path / str(calls)
        for name, text in earlier.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        killed = run_program(folder, calls, *flags)
        if killed == 0:
            assert calls > 15, "the program was not killed often enough to mean anything"
            break
        assert killed == -signal.SIGKILL
        if not (folder / PARTIAL / "placing.json").exists() and (folder / PARTIAL / "files").exists():
            assert content(folder).items() >= earlier.items(), "nothing has changed before the files are placed"
        finished = content(folder).items() >= FILES.items() and not (folder / PARTIAL / "placing.json").exists()
        assert run_program(folder, 0, *flags) == (1 if finished and not flags else 0)
        assert content(folder) == {"notes.txt": "mine"} | FILES, calls
        assert not (folder / PARTIAL).exists()


def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path):
    def fail(folder: Path) -> None:
        with filling(folder, COMMAND, last="info.json") as partial:
            (partial / "info.json").write_text("new")
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there/info.json").write_text("old")
    with pytest.raises(ValueError, match="a bug"):
        fail(tmp_path / "there")
    assert content(tmp_path / "there") == {"info.json": "old"}


def test_what_is_there_is_not_written_over(tmp_path: Path):
    fill(tmp_path / "out", COMMAND)
    with pytest.raises(UserError, match=r"out/info\.json exists already; give another --output_dir, or --overwrite"):
        refuse_existing(tmp_path / "out", ["info.json"], COMMAND)
    (tmp_path / "out/info.json").unlink()
    with pytest.raises(UserError, match=r"out/test/a\.json exists already"):
        fill(tmp_path / "out", COMMAND)
    fill(tmp_path / "out", COMMAND | {"overwrite": True}, {"info.json": "new"}, stale=["test/a.json"])
    assert content(tmp_path / "out") == {"train/train.json": "[1]", "info.json": "new"}


def test_only_the_same_command_goes_on(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train").touch()  # no folder: the placing fails half-way
    with pytest.raises(UserError, match="cannot write"):
        fill(out, COMMAND | {"overwrite": True})
    assert (out / "test/a.json").exists()
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(out, FILES, COMMAND | {"seed": 8})
    assert not is_new(out, COMMAND | {"seed": 8})
    assert is_new(out, COMMAND)
    (out / "train").unlink()
    fill(out, COMMAND)
    assert content(out) == FILES


def test_a_new_folder(tmp_path: Path):
    assert is_new(tmp_path / "out", COMMAND)
    assert is_new(tmp_path, COMMAND)  # as a kill leaves it that comes before the first file
    (tmp_path / PARTIAL).mkdir()
    assert is_new(tmp_path, COMMAND)
    (tmp_path / "mine.txt").touch()
    assert not is_new(tmp_path, COMMAND)


def test_two_processes_do_not_fill_one_folder(tmp_path: Path):
    with filling(tmp_path, COMMAND) as partial:
        (partial / "a").write_text("first")
        # A lock of this process would not keep itself out.
        second = [sys.executable, "-c", PROGRAM, str(tmp_path), "0"]
        result = subprocess.run(second, capture_output=True, text=True, check=False)
        assert "is being written by another process; wait for it, or stop it" in result.stderr
        subprocess.run([*second[:2], KEEP, str(tmp_path)], check=True)
    assert content(tmp_path) == {"a": "first"}


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "elsewhere").write_text("old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/info.json").symlink_to(tmp_path / "elsewhere")
    fill(tmp_path / "out", COMMAND | {"overwrite": True})
    assert (tmp_path / "out/info.json").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "{}"


def test_the_words_of_a_full_or_forbidden_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/out: Not a directory; make room") as caught:
        fill(tmp_path / "file/out", COMMAND)
    assert "\n" not in str(caught.value)
