"""scripts/demo.sh: its flags, and the whole wiring, twice over."""

import os
import shutil
import subprocess
import sys

import pytest


def demo(repository, *flags, **environment):
    return subprocess.run(
        ["bash", repository / "scripts/demo.sh", *flags],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def test_help_names_every_flag(repository):
    done = demo(repository, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("--quick", "--fresh", "FOLDER", "NPROC", "PYTHON"))
    assert "set -" not in done.stdout


def test_an_unknown_flag_gets_one_line(repository):
    done = demo(repository, "--quik")
    assert done.returncode == 2
    assert done.stderr == "error: unknown flag --quik; bash scripts/demo.sh --help\n"


@pytest.mark.parametrize("flags", [[], ["--fresh"]])
def test_what_is_no_demo_is_left_alone(repository, tmp_path, flags):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / ".done").mkdir()
    done = demo(repository, *flags, FOLDER=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: FOLDER={tmp_path} holds something else than a demo; give another folder")
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_demo_of_other_sizes_is_not_mixed_with(repository, tmp_path):
    (tmp_path / ".done").mkdir()
    (tmp_path / ".done/settings").write_text("sizes: others\nNPROC: 7\ncode: 12 345")
    done = demo(repository, FOLDER=str(tmp_path))
    assert done.returncode == 2
    assert "holds another demo (NPROC,code,sizes differ)" in done.stderr
    assert "--fresh to throw it away" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_impossible_number_of_processes_gets_one_line(repository):
    assert demo(repository, NPROC="3").stderr == "error: NPROC=3: give 1, 2, 4 or 8\n"


@pytest.mark.timeout(1200)
def test_quick_runs_through_and_again_does_nothing(repository, tmp_path):
    folder = tmp_path / "demo"
    first = demo(repository, "--quick", FOLDER=str(folder))
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert (folder / "eval/report/index.html").is_file()
    assert "the agent names the colour" in (folder / "demo_table.md").read_text(encoding="utf-8")
    written = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").rglob("*.safetensors")}
    again = demo(repository, "--quick", FOLDER=str(folder))
    assert again.returncode == 0, again.stderr[-3000:]
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert "finished before" in again.stdout
    assert "replies, " not in again.stdout

    # What somebody deletes is made again, and no model is trained anew.
    gone = [folder / name for name in ("controls/probes", "data/train", "eval/in-test_answers/blind")]
    made = {path: path.read_bytes() for place in gone for path in place.rglob("*.json")}
    for place in gone:
        shutil.rmtree(place)
    mended = demo(repository, "--quick", FOLDER=str(folder))
    assert mended.returncode == 0, mended.stdout[-3000:] + mended.stderr[-3000:]
    assert {path: path.read_bytes() for path in made} == made
    assert written == {path: path.stat().st_mtime_ns for path in written}
