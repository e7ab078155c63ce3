"""inference.sh answers both test sets, from any folder, again and again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmrole.jobs.options import TEST_FILES


@pytest.fixture
def root(job, repository, tmp_path) -> Path:
    """A repository root with data."""
    root = tmp_path / "repository root"
    for number, distribution in enumerate(("in-distribution", "out-of-distribution")):
        for name in TEST_FILES:
            job.write([job.sample(number, id=f"{distribution} {name}")], name)
        shutil.move(job.input_dir, root / "data/test" / distribution)
    for script in ("inference.py", "inference.sh"):
        shutil.copy(repository / script, root)
    shutil.copytree(job.image_dir, root / "pictures")
    return root


def run(root: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "IMAGE_DIR": "pictures", **variables}
    command = ["bash", str(root / "inference.sh"), *flags]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


def outputs(root: Path) -> dict[str, int]:
    return {str(file.relative_to(root)): file.stat().st_mtime_ns for file in (root / "eval").rglob("*.json")}


def test_both_test_sets(root, job):
    flags = ("--no_random", "--max_new_tokens", "4")
    done = run(root, *flags, MODEL_PATH=str(job.model_path), NPROC="2")
    assert done.returncode == 0, done.stderr
    made = outputs(root)
    assert set(made) == {
        f"eval/{split}-test_answers/mmrole-agent/{name}" for split in ("in", "out") for name in TEST_FILES
    }
    done = run(root, *flags, MODEL_PATH=str(job.model_path))  # with another number of processes
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("finished before") == 6
    assert outputs(root) == made


def test_a_data_set_without_one_part_and_one_type(root, job):
    shutil.rmtree(root / "data/test/out-of-distribution")
    (root / "data/test/in-distribution" / TEST_FILES[2]).unlink()
    done = run(root, "--no_random", "--max_new_tokens", "4", MODEL_PATH=str(job.model_path), NPROC="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"data/test/in-distribution/{TEST_FILES[2]} is not there: nothing is done about it" in done.stdout
    assert "data/test/out-of-distribution is not there: nothing is done about it" in done.stdout
    assert set(outputs(root)) == {f"eval/in-test_answers/mmrole-agent/{name}" for name in TEST_FILES[:2]}


def test_replies_of_a_file_some_of_which_have_failed(root):
    """What failed in the first test set does not keep the second one from being answered."""
    replies = [
        {"id": f"{distribution} {name}", "text": "Aye."}
        | ({"finish_reason": "failed", "error": "gone"} if failed else {})
        for distribution, failed in (("in-distribution", True), ("out-of-distribution", False))
        for name in TEST_FILES
    ]
    (root / "replies.jsonl").write_text("\n".join(map(json.dumps, replies)))
    done = run(root, "--replies", "replies.jsonl", NPROC="1")
    assert (done.returncode, done.stderr) == (3, "")
    assert len(outputs(root)) == 6
    done = run(root, "--replies=replies.jsonl", NPROC="1", MODEL_PATH="model_weights/my-agent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --replies answers in place of a model; leave out --model_path\n"


def test_folders_and_errors(root):
    done = run(root, MODEL="my-agent", MODEL_PATH="model_weights/my-agent", NPROC="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: model_weights/my-agent: no such directory; ")
    done = run(root, "--limit", "none", NPROC="1")
    assert done.returncode == 2
    assert "argument --limit: " in done.stderr
    done = run(root, NPROC="1", IMAGE_DIR="")
    assert (
        done.stderr
        == "error: the image folder images does not exist; correct the input and run the same command again\n"
    )


@pytest.mark.parametrize("script", ["inference.sh", "eval/RM_review.sh"])
@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "2\n3"])
def test_a_number_of_processes_that_is_none(repository, script, value):
    environment = {**os.environ, "PYTHON": sys.executable, "NPROC": value}
    done = subprocess.run(["bash", str(repository / script)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: NPROC=")
    assert done.stderr.count("\n") == 1
