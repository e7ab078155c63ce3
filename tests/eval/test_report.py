"""eval/report.py: the files that it writes, what it says, and its errors."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.scripts import load_script

from mmrole.base.errors import UserError
from mmrole.data.prompts import METRICS

TABLES = ["distributions.csv", "leaderboard.csv", "leaderboard.md", "leaderboard.tex"]


@pytest.fixture(scope="module")
def script(repository: Path) -> Callable[[list[str]], int]:
    """The script's `main`."""
    return load_script(repository / "eval/report.py").main


def write(root: Path, model: str, score: object = (9, 10), n_answers: int = 6, judge: str = "") -> Path:
    """Writes answers, and reviews of six of them; returns the folder of all reviews by the judge."""
    records = [
        {
            "id": f"Captain_comment_{number}",
            "system": "",
            "image": f"{number}.png",
            "conversations": [
                {"from": "user", "value": f"Speak, {number}!"},
                {"from": "assistant", "value": "Yes.", "answer": "Aye." + " Aye." * (number % 3)},
            ],
            "role": "Captain",
            "script": "Ships",
            "other_role": "a curious human",
            "rm_review": {metric: {"review": "Fine.", "score": score} for metric in METRICS},
        }
        for number in range(n_answers)
    ]
    folders = root / "in-test_answers", root / (f"in-test_reviews@{judge}" if judge else "in-test_reviews")
    for folder, content in zip(folders, (records, records[:6]), strict=True):
        path = folder / model / "comment_test.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), "utf-8")
    return folders[1]


def test_the_report_on_the_published_models(
    script: Callable, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    places = ["--reviews", str(shared / "mmrole/eval/in-test_reviews"), "--output_dir", str(tmp_path / "report")]
    assert script([*places, "--image_dir", str(shared / "mmrole/images")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "mmrole-agent  0.999 [0.99" in said.out
    assert "qwen-vl-chat – yi-vl-6b" in said.out
    assert "not distinguishable" in said.out
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"index.html", *TABLES, "radar.png", "radar.svg", "dimensions.png", "characters.svg"} <= written
    page = (tmp_path / "report/index.html").read_text("utf-8")
    assert "mmrole-agent" in page
    with pytest.raises(UserError, match=r"index\.html exists already; give another --output_dir, or --overwrite"):
        script(places)


def test_models_the_paper_and_draws_can_be_chosen(script: Callable, tmp_path: Path) -> None:
    write(tmp_path, "one")
    reviews = write(tmp_path, "two", (7, 10))
    flags = ["--reviews", str(reviews), "--output_dir", str(tmp_path / "out"), "--draws", "100", "--seed", "3"]
    assert script([*flags, "--models", "two", "--no_paper", "--category", "Ships=hypothetical"]) == 0
    table = (tmp_path / "out/leaderboard.csv").read_text("utf-8").splitlines()
    assert len(table) == 2
    assert table[1].startswith("reviews,two,In-Test,6,0.7,0.7,0.7,")
    text = (tmp_path / "out/leaderboard.md").read_text("utf-8")
    assert "| hypothetical | 6 |" in text
    assert "100 resamples of the 6 images, seed 3" in text
    assert script([*flags, "--overwrite"]) == 0
    assert len((tmp_path / "out/leaderboard.csv").read_text("utf-8").splitlines()) == 3 + 13


def test_what_is_not_covered_is_named_and_everything_is_written(
    script: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    reviews = write(tmp_path, "one", n_answers=8)
    assert script(["--reviews", str(reviews), "--output_dir", str(tmp_path / "out"), "--draws", "100"]) == 3
    said = capsys.readouterr().err
    assert "2 samples not reviewed: 'Captain_comment_6', 'Captain_comment_7'" in said
    assert (tmp_path / "out/index.html").exists()


def test_one_judge_and_settings_that_differ(script: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for model, judge in (("one", "abc"), ("two", "abc"), ("three", "def"), ("published", None)):
        reviews = write(tmp_path, model)
        settings = reviews / model / "comment_test.json.settings"
        if judge:
            settings.write_text(json.dumps({"model": judge, "swap": False, "input": model}), "utf-8")
    flags = ["--reviews", str(reviews), "--output_dir", str(tmp_path / "out"), "--draws", "100", "--models"]
    assert script([*flags, "one", "two", "published"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "reviews by the model abc, taken for the published reward model\n" in said.out
    with pytest.raises(UserError, match=r"by different judges are not comparable: the model abc \(.*\), the model def"):
        script([*flags, "one", "two", "three", "--overwrite"])
    settings = tmp_path / "in-test_reviews" / "two" / "comment_test.json.settings"
    settings.write_text(json.dumps({"model": "abc", "swap": False, "input": "two", "pixels": "2"}), "utf-8")
    assert script([*flags, "one", "two", "--overwrite"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("warning: the reviews differ in pixels, and their scores may not be comparable: ")
    assert said.err.endswith(": 'not noted' ('one'); '2' ('two')\n")
    assert "reviews by the model abc\n" in said.out


def test_a_server_that_reports_one_id_for_the_models_it_is_asked_for(
    script: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for model in ("one", "two"):
        reviews = write(tmp_path, model, judge="gpt")
        settings = {"model": f"{model}.gguf", "api_image_pixels": 1, "noted": {"reported_model": "llama"}}
        (reviews / model / "comment_test.json.settings").write_text(json.dumps(settings), "utf-8")
    assert script(["--reviews", str(reviews), "--output_dir", str(tmp_path / "out"), "--draws", "100"]) == 0
    assert capsys.readouterr().err == (
        "warning: the reviews differ in api_model, and their scores may not be comparable: 'one.gguf' ('one'); "
        "'two.gguf' ('two')\n"
    )


def test_the_reviews_of_another_judge(
    script: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its reviews are found by its name, the answers beside all reviews, and no page holds two judges or the paper."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "eval", "one")
    write(tmp_path / "eval", "one", (5, 10), judge="GPT & co")
    flags = ["--draws", "100"]
    assert script([*flags, "--judge", "GPT & co"]) == 0
    assert capsys.readouterr().out.startswith("reviews by GPT & co\n")
    (row,) = csv.DictReader((tmp_path / "eval/report@GPT & co/leaderboard.csv").open(encoding="utf-8"))
    assert (row["model"], row["Overall"], row["judge"]) == ("one", "0.5", "GPT & co")
    names = {"leaderboard.md": "Reviews by GPT &amp; co. ", "leaderboard.tex": r"reviews by GPT \& co: In-Test"}
    for table, name in (names | {"index.html": '"judge":"GPT & co"'}).items():
        assert name in (tmp_path / "eval/report@GPT & co" / table).read_text("utf-8")
    assert script(flags) == 0  # without a name, the published reward model's
    rows = list(csv.DictReader((tmp_path / "eval/report/leaderboard.csv").open(encoding="utf-8")))
    assert {row["judge"] for row in rows} == {"the published reward model"}
    assert (rows[0]["Overall"], len(rows)) == ("0.9", 14)
    with pytest.raises(
        UserError, match=r"not comparable: the published reward model \(eval/.*\), GPT & co \(eval/.*one judge"
    ):
        script([*flags, "--overwrite", "--reviews", "eval"])
    with pytest.raises(
        UserError, match=r"there are no reviews by people in eval, which would be in a folder …_reviews@pe"
    ):
        script([*flags, "--overwrite", "--reviews", "eval", "--judge", "people"])
    with pytest.raises(UserError, match=r"neither eval/in-test_reviews@people nor eval/out-test_reviews@people exists"):
        script([*flags, "--overwrite", "--judge", "people"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reviews", "nowhere"], "nowhere does not exist; give test files"),
        (["--models", "three"], "there are no reviews of 'three'; --models can name one, two"),
        (["--category", "Ships=pirates"], "argument --category: must be SERIES=CATEGORY with one of"),
        (["--draws", "9"], "argument --draws: 9 is not a number from 100 on"),
        (["--draws", "many"], "argument --draws: invalid number value: 'many'"),
        (["--judge", "open/gpt"], "argument --judge: 'open/gpt' cannot be part of a folder's name; give one without /"),
        (["--seed", "-1"], "argument --seed: -1 is not a number from 0 on"),
    ],
)
def test_mistakes_are_status_2(flags: list[str], message: str, tmp_path: Path, repository: Path) -> None:
    write(tmp_path, "one")
    reviews = write(tmp_path, "two")
    command = [sys.executable, str(repository / "eval/report.py"), "--reviews", str(reviews), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "eval").exists()


def test_without_reviews_the_remedy_is_named(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, str(repository / "eval/report.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: neither eval/in-test_reviews nor eval/out-test_reviews exists; review")
