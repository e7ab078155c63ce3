"""eval/agreement.py: what it prints and writes, and its errors."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.prompts import METRICS

EVALUATED = [(9.0, 8.0), (7.0, 9.0), (8.0, 8.0)]


def records(scores, answer="Aye.") -> list[dict]:
    return [
        {
            "id": f"Captain_comment_{number}",
            "system": "",
            "image": f"{number}.png",
            "conversations": [
                {"from": "user", "value": f"Speak, {number}!"},
                {"from": "assistant", "value": "Yes.", "answer": answer},
            ],
            "role": "Captain",
            "script": "Ships",
            "other_role": "a curious human",
            "rm_review": {metric: {"review": "Fine.", "score": list(pair) if pair else None} for metric in METRICS},
        }
        for number, pair in enumerate(scores)
    ]


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    for name, scores in (("reward", EVALUATED), ("people", [(8.0, 8.0), (6.0, 9.0), None])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "comment_test.json").write_text(json.dumps(records(scores)), "utf-8")
    return tmp_path / "reward", tmp_path / "people"


def call(repository, *arguments, code: str | None = None) -> subprocess.CompletedProcess:
    command = ["-c", code] if code else ["eval/agreement.py", *map(str, arguments)]
    return subprocess.run([sys.executable, *command], cwd=repository, capture_output=True, text=True)


def test_prints_the_table_and_writes_it(repository, places, tmp_path):
    output = tmp_path / "new" / "agreement.csv"
    done = call(repository, "--reviews", places[0], "--reference", places[1], "--output", output, "--draws", 200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("16 reviews compared")
    assert "Not compared: 8 without scores" in done.stdout
    with output.open() as file:
        rows = {row["reviews"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["All reviews", "Overall score", *METRICS]
    assert float(rows["Fluency"]["score_mae"]) == 0.5
    assert float(rows["Fluency"]["ratio_mae"]) == pytest.approx((1 / 8 + 1 / 9) / 2, abs=1e-6)
    assert f"{(1 / 8 + 1 / 9) / 2:.3f}" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--reviews", "nowhere", "--reference", "REWARD"), "nowhere does not exist"),
        (("--rm_data", "nowhere.json", "--replies", "nowhere.json"), "cannot read nowhere.json"),
        (("--reviews", "REWARD", "--reference", "REWARD", "--output", "OUTPUT"), "is a folder"),
        (("--reviews", "REWARD", "--reference", "NULL"), "share no review with scores (24 and 24 reviews)"),
        (("--rm_data", "FILE", "--replies", "FILE"), "is not a prompt for a review under one of the eight metrics"),
    ],
)
def test_a_mistake_gets_a_message_and_status_2(repository, places, tmp_path, flags, message):
    (tmp_path / "null").mkdir()
    (tmp_path / "null" / "comment_test.json").write_text(json.dumps(records([None] * 3)), "utf-8")
    names = {"REWARD": places[0], "OUTPUT": tmp_path, "NULL": tmp_path / "null"}
    names["FILE"] = places[0] / "comment_test.json"
    done = call(repository, *(names.get(flag, flag) for flag in flags))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "flags", [(), ("--reviews", "a"), ("--rm_data", "a"), ("--rm_data", "a", "--replies", "b", "--reviews", "c")]
)
def test_the_two_forms_are_not_mixed(repository, flags):
    done = call(repository, *flags)
    assert done.returncode == 2
    assert "give --reviews and --reference, or --rm_data and --replies" in done.stderr


def test_help_explains_every_flag_without_torch(repository):
    code = (
        "import sys; sys.path.insert(0, 'eval'); import agreement\n"
        "try: agreement.main(['--help'])\n"
        "finally: assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = call(repository, code=code)
    assert done.returncode == 0, done.stderr
    for flag in ("reviews", "reference", "replies", "rm_data", "output", "draws", "seed"):
        assert f"--{flag} " in done.stdout
