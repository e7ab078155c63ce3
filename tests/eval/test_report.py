"""eval/report.py: the files that it writes, what it says, and its errors."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrole.base.errors import UserError
from mmrole.data.prompts import METRICS

TABLES = ["distributions.csv", "leaderboard.csv", "leaderboard.md", "leaderboard.tex"]


@pytest.fixture(scope="module")
def script(repository: Path) -> Callable[[list[str]], int]:
    """The script's `main`."""
    spec = importlib.util.spec_from_file_location("report", repository / "eval/report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write(root: Path, model: str, score: object = (9, 10), n_answers: int = 6) -> Path:
    """Writes answers, and reviews of six of them; returns the folder of all reviews."""
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
    for kind, content in (("answers", records), ("reviews", records[:6])):
        path = root / f"in-test_{kind}" / model / "comment_test.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), "utf-8")
    return root / "in-test_reviews"


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


def test_reviews_made_in_different_ways_are_a_warning(
    script: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for model, judge in (("one", "abc"), ("two", "abc"), ("three", "def"), ("published", None)):
        reviews = write(tmp_path, model)
        settings = reviews / model / "comment_test.json.settings"
        if judge:
            settings.write_text(json.dumps({"model": judge, "swap": False, "input": model}), "utf-8")
    flags = ["--reviews", str(reviews), "--output_dir", str(tmp_path / "out"), "--draws", "100", "--models"]
    assert script([*flags, "one", "two", "published"]) == 0
    assert capsys.readouterr().err == ""
    assert script([*flags, "one", "two", "three", "--overwrite"]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: the reviews differ in model, and their scores may not be comparable: ")
    assert said.endswith(": 'abc' ('one', 'two'); 'def' ('three')")
    settings = tmp_path / "in-test_reviews" / "two" / "comment_test.json.settings"
    settings.write_text(json.dumps({"model": "abc", "swap": False, "input": "two", "pixels": "2"}), "utf-8")
    assert script([*flags, "one", "two", "--overwrite"]) == 0
    assert "the reviews differ in pixels, and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reviews", "nowhere"], "nowhere does not exist; give test files"),
        (["--models", "three"], "there are no reviews of 'three'; --models can name one, two"),
        (["--category", "Ships=pirates"], "argument --category: must be SERIES=CATEGORY with one of"),
        (["--draws", "9"], "argument --draws: 9 is not a number from 100 on"),
        (["--draws", "many"], "argument --draws: invalid number value: 'many'"),
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
