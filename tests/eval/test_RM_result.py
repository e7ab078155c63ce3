"""eval/RM_result.py and .sh: what they write, say and return."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.scripts import load_script

from mmrole.base.errors import UserError
from mmrole.data.prompts import METRICS

TYPES = ("comment", "human-role", "inter-role")


@pytest.fixture(scope="module")
def script(repository: Path) -> Callable[[list[str]], int]:
    """The script's `main`."""
    return load_script(repository / "eval/RM_result.py").main


def record(number: int, score: object = (9, 10)) -> dict:
    return {
        "id": f"Captain_comment_{number}",
        "system": "",
        "image": f"{number}.png",
        "conversations": [
            {"from": "user", "value": f"Speak, {number}!"},
            {"from": "assistant", "value": "Yes.", "answer": "Aye."},
        ],
        "role": "Captain",
        "script": "Ships",
        "other_role": "a curious human",
        "rm_review": {metric: {"review": "Fine.", "score": score} for metric in METRICS},
    }


class Folders:
    """Answers, reviews and results in the published layout."""

    def __init__(self, root: Path, split: str = "in-test", model: str = "my-model", by: str = "") -> None:
        self.answers, self.reviews, self.results = (
            root / f"{split}_{kind}" / model for kind in ("answers", f"reviews{by}", f"results{by}")
        )

    def write(self, kind: str, records: list[dict], answers: list[dict] | None = None) -> None:
        for folder, content in ((self.reviews, records), (self.answers, records if answers is None else answers)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{kind}_test.json").write_text(json.dumps(content), "utf-8")

    @property
    def flags(self) -> list[str]:
        return ["--input_dir", str(self.reviews), "--output_dir", str(self.results)]

    def tables(self) -> dict[str, str]:
        return {path.stem.removesuffix("_test"): path.read_text("utf-8") for path in self.results.glob("*.csv")}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = Folders(tmp_path)
    for kind in TYPES:
        folders.write(kind, [record(number) for number in range(3)])
    return folders


def test_published_tables_to_the_last_byte(script: Callable, shared: Path, tmp_path: Path) -> None:
    for reviews in sorted((shared / "mmrole/eval/in-test_reviews").iterdir()):
        assert script(["--input_dir", str(reviews), "--output_dir", str(tmp_path / reviews.name)]) == 0
        for table in (shared / "mmrole/eval/in-test_results" / reviews.name).iterdir():
            assert (tmp_path / reviews.name / table.name).read_bytes() == table.read_bytes()


def test_tables_and_what_is_said(script: Callable, folders: Folders, capsys: pytest.CaptureFixture) -> None:
    assert script(folders.flags) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "comment_test.csv: 3 of 3 answers, mean of the eight metrics 0.900" in said.out
    assert set(folders.tables()) == set(TYPES)
    assert script(folders.flags) == 0
    assert "other figures" not in capsys.readouterr().out
    folders.write("comment", [record(0, [5, 10])])
    assert script([*folders.flags, "--input_file", "comment_test.json"]) == 0
    assert "comment_test.csv, which held other figures: 1 of 1 answers" in capsys.readouterr().out


def test_incomplete_reviews_are_status_3_and_the_table_is_written(
    script: Callable, folders: Folders, capsys: pytest.CaptureFixture
) -> None:
    answers = [record(number) for number in range(4)]
    folders.write("human-role", [record(0), record(1, None), record(2, {}), record(7, [6, 10])], answers)
    assert script(folders.flags) == 3
    said = capsys.readouterr().err
    for number in (1, 2, 3, 7):
        assert f"'Captain_comment_{number}'" in said
    assert len(said.splitlines()) == 4  # missing, without a pair, foreign, and the verdict
    assert "comment_test.json: " not in said
    assert folders.tables()["human-role"].splitlines()[1].startswith("2,0.75,")
    assert set(folders.tables()) == set(TYPES)


def test_what_was_refused_or_failed_is_counted_and_named(
    script: Callable, folders: Folders, capsys: pytest.CaptureFixture
) -> None:
    none = {key: value for key, value in record(1).items() if key != "rm_review"}
    none["conversations"][1] |= {"answer": "", "answer_error": "failed: gone"}
    folders.write("comment", [record(0), none])
    assert script(folders.flags) == 3
    said = capsys.readouterr()
    assert "comment_test.csv: 1 of 2 answers (1 refused or failed), mean of the eight metrics 0.900" in said.out
    assert "1 sample without an answer, which was refused or has failed: 'Captain_comment_1'" in said.err


def test_a_file_that_is_not_reviewed_yet_is_status_3(
    script: Callable, folders: Folders, capsys: pytest.CaptureFixture
) -> None:
    (folders.reviews / "inter-role_test.json").unlink()
    assert script(folders.flags) == 3
    assert "inter-role_test.json is not there: nothing of it is reviewed" in capsys.readouterr().err
    assert set(folders.tables()) == {"comment", "human-role"}
    (folders.answers / "inter-role_test.json").unlink()  # where there are no answers, there is nothing to review
    assert script(folders.flags) == 0


def test_reviews_without_answers_beside_them(
    script: Callable, folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folders.answers, elsewhere)
    assert script(folders.flags) == 3
    assert "missing samples cannot be told" in capsys.readouterr().err
    assert script([*folders.flags, "--answers_dir", str(elsewhere)]) == 0
    with pytest.raises(UserError, match="does not exist; give another --answers_dir"):
        script([*folders.flags, "--answers_dir", str(folders.answers)])


def test_nothing_usable_writes_no_table(script: Callable, folders: Folders, capsys: pytest.CaptureFixture) -> None:
    folders.write("comment", [record(0, None)])
    assert script([*folders.flags, "--input_file", "comment_test.json"]) == 3
    said = capsys.readouterr().err
    assert "not written, no sample of" in said
    assert "earlier" not in said
    assert folders.tables() == {}
    folders.write("comment", [record(0)])
    assert script(folders.flags) == 0
    folders.write("comment", [record(0, None)])
    assert script(folders.flags) == 3
    assert "has all eight pairs; what is there is of earlier reviews" in capsys.readouterr().err


def test_a_folder_of_answers_is_a_mistake(script: Callable, folders: Folders) -> None:
    with pytest.raises(UserError, match=r"my-model is a folder of answers; give that of their reviews"):
        script(["--input_dir", str(folders.answers), "--output_dir", str(folders.results)])
    assert folders.tables() == {}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "nothing",
            "has no comment_test.json or human-role_test.json or inter-role_test.json; review the answers",
        ),
        ("json", "comment_test.json is not JSON"),
        ("score", "'Captain_comment_0'): \"score\" of rm_review['Fluency'] must be a pair of numbers, or null"),
    ],
)
def test_mistakes_are_one_line_and_status_2(damage: str, message: str, folders: Folders, repository: Path) -> None:
    if damage == "nothing":
        shutil.rmtree(folders.reviews)
    elif damage == "json":
        (folders.reviews / "comment_test.json").write_text("[{]")
    else:
        bad = record(0)
        bad["rm_review"]["Fluency"]["score"] = "9, 10"
        folders.write("comment", [bad])
    command = [sys.executable, str(repository / "eval/RM_result.py"), *folders.flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert folders.tables() == {}


def run_shell(repository: Path, root: Path, **variables: str) -> subprocess.CompletedProcess:
    for name in ("RM_result.py", "RM_result.sh"):
        shutil.copy(repository / "eval" / name, root / "eval")
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    command = ["bash", str(root / "eval/RM_result.sh")]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


def test_the_shell_script_computes_both_test_sets(repository: Path, tmp_path: Path) -> None:
    splits = [Folders(tmp_path / "eval", split, model="mine") for split in ("in-test", "out-test")]
    for folders in splits:
        for kind in TYPES:
            folders.write(kind, [record(0), record(1)])
    done = run_shell(repository, tmp_path, MODEL="mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(len(folders.tables()) == 3 for folders in splits)
    splits[0].write("comment", [record(0)], [record(0), record(1)])
    shutil.rmtree(splits[1].results)
    done = run_shell(repository, tmp_path, MODEL="mine")
    assert done.returncode == 3
    assert len(splits[1].tables()) == 3  # the other test set all the same
    shutil.rmtree(splits[0].reviews)
    assert run_shell(repository, tmp_path, MODEL="mine").returncode == 2
    done = run_shell(repository, tmp_path)
    assert done.returncode == 2
    assert "eval/in-test_reviews/mmrole-agent has no comment_test.json" in done.stderr
    shutil.rmtree(splits[0].reviews.parent.parent / "in-test_answers", ignore_errors=True)
    done = run_shell(repository, tmp_path, MODEL="mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert "eval/in-test_reviews/mine is not there: nothing is done about it" in done.stdout


def test_the_shell_script_keeps_judges_apart(repository: Path, tmp_path: Path) -> None:
    folders = Folders(tmp_path / "eval", model="mine", by="@gpt 4")
    for kind in TYPES:
        folders.write(kind, [record(0), record(1)])
    done = run_shell(repository, tmp_path, MODEL="mine", JUDGE="gpt 4")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(folders.tables()) == 3
    assert [path.name for path in (tmp_path / "eval").glob("*_results*")] == ["in-test_results@gpt 4"]
    for name in ("gpt/4", " ", "a\nb"):
        done = run_shell(repository, tmp_path, MODEL="mine", JUDGE=name)
        assert done.returncode == 2
        assert done.stderr.endswith("cannot be part of a folder's name; give one without / and \\\n")
        assert done.stderr.count("\n") == 1


def test_tables_of_two_judges_are_not_put_together(script: Callable, folders: Folders, tmp_path: Path) -> None:
    for number, kind in enumerate(TYPES[:2]):
        settings = folders.reviews / f"{kind}_test.json.settings"
        settings.write_text(json.dumps({"model": f"checkpoint {number}"}), "utf-8")
    with pytest.raises(UserError, match=r"not comparable: the model checkpoint 0 .*, the model checkpoint 1 "):
        script(folders.flags)
    other = Folders(tmp_path, by="@gpt")
    other.write("comment", [record(0)])
    one_file = ["--input_dir", str(other.reviews), "--input_file", "comment_test.json", "--output_dir"]
    with pytest.raises(UserError, match=r"is for results by the published .* give in-test_results@gpt/<model>, or"):
        script([*one_file, str(folders.results)])
    assert not folders.results.exists()
    assert script([*one_file, str(other.results)]) == 0
    assert script([*one_file, str(tmp_path / "elsewhere")]) == 0


def test_a_pipe_in_place_of_a_file_is_not_waited_on(script: Callable, folders: Folders) -> None:
    path = folders.reviews / "comment_test.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"comment_test\.json: it is no regular file"):
        script(folders.flags)


def test_a_path_is_no_name_of_a_file(script: Callable, folders: Folders) -> None:
    with pytest.raises(UserError, match=r"--input_file \.\./other/comment_test\.json is a path"):
        script([*folders.flags, "--input_file", "../other/comment_test.json"])
