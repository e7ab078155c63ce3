"""eval/agreement.py: what it prints and writes, and its errors."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.scripts import help_of, load_script

from mmrole.base.errors import UserError
from mmrole.data.prompts import METRICS
from mmrole.data.records import Review
from mmrole.data.review_data import ReviewedAnswer, make_rows

HARSHER = "Who is harsher: whose ratios of evaluated answer to reference are lower, and by how much"
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


def call(repository, *arguments) -> subprocess.CompletedProcess:
    command = ["eval/agreement.py", *map(str, arguments)]
    return subprocess.run([sys.executable, *command], cwd=repository, capture_output=True, text=True)


def test_prints_the_table_and_writes_it(repository, places, tmp_path):
    output = tmp_path / "new" / "agreement.csv"
    done = call(repository, "--reviews", places[0], "--reference", places[1], "--output", output, "--draws", 200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("16 reviews compared: the first set (first) and the second set (second)\n")
    assert "Not compared: 8 without scores" in done.stdout
    with output.open() as file:
        rows = {row["reviews"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["All reviews", "Overall score", *METRICS]
    assert float(rows["Fluency"]["score_mae"]) == 0.5
    assert float(rows["Fluency"]["ratio_mae"]) == pytest.approx((1 / 8 + 1 / 9) / 2, abs=1e-6)
    assert f"{(1 / 8 + 1 / 9) / 2:.3f}" in done.stdout


def test_who_is_harsher(repository, tmp_path):
    """Told by the names of the judges where an interval without 0 over enough images tells it."""
    pairs = {"reviews": [(9, 10)] * 6, "reviews@gpt": [(8, 10), (7, 10)] * 3}
    for name, scores in pairs.items():
        judged = records(scores)
        for record in judged[:5]:
            record["rm_review"]["Fluency"]["score"] = [5, 10]
        del judged[5]["rm_review"]["Fluency"]
        path = tmp_path / f"in-test_{name}" / "captain" / "comment_test.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(judged), "utf-8")
    places = [tmp_path / f"in-test_{name}" for name in pairs]
    done = call(repository, "--reviews", places[0], "--reference", places[1], "--draws", 200)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "47 reviews compared: the published reward model (first) and gpt (second)"
    told = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in said[said.index(HARSHER) + 1 :])
    assert told["Coherency"].startswith("gpt, by 0.150 [0.1")
    assert told["Fluency"] == "not decided: first minus second 0.000 [0.000, 0.000]"
    done = call(repository, "--reviews", *places, "--reference", places[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: reviews by different judges are not comparable: ")


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


@pytest.mark.parametrize(
    "flags",
    [("--image_dir", "a"), ("--skip_missing_images",), ("--dtype", "float32"), ("--overwrite",), ("--limit", "1")],
)
def test_flags_of_a_model_without_one_are_refused(repository, flags):
    done = call(repository, "--rm_data", "a", "--replies", "b", *flags)
    assert done.returncode == 2
    assert f"{flags[0]} without --model_path: there is no model to make replies" in done.stderr


def test_help_explains_every_flag_without_torch(repository):
    said = help_of(repository / "eval/agreement.py")
    for flag in ("reviews", "reference", "replies", "rm_data", "model_path", "output", "draws"):
        assert f"--{flag} " in said


def test_replies_are_made_to_a_validation_file(repository, job, tmp_path, monkeypatch, capsys):
    """Greedy replies to rows that share an id, beside the reviews; then the numbers, here without usable scores."""
    agreement = load_script(repository / "eval/agreement.py")
    reviews = records(EVALUATED[:1])
    reviews[0]["image"] = "Ships/01.png"
    for review in reviews[0]["rm_review"].values():
        review["review"] = "Fine. [Scores]: (9, 8)"
    rows = make_rows([ReviewedAnswer("model", Review.from_json(reviews[0]))]).usable
    objects = [row.to_json() | {"id": "the same"} for row in rows]
    validation, replies = tmp_path / "RM-validation.json", tmp_path / "replies"
    validation.write_text(json.dumps(objects), "utf-8")
    flags = [
        "--rm_data",
        validation,
        "--replies",
        replies,
        "--model_path",
        job.model_path,
        "--image_dir",
        job.image_dir,
    ]
    flags = list(map(str, [*flags, "--dtype", "float64", "--max_new_tokens", 4]))
    with pytest.raises(UserError, match=r"share no review with scores \(8 and 8 reviews\)"):
        agreement.main(flags)
    made = json.loads((replies / validation.name).read_text("utf-8"))
    assert [row["conversations"][1]["value"] for row in made] == ["Fine. [Scores]: (9, 8)"] * 8
    assert all(isinstance(row["conversations"][1]["answer"], str) for row in made)
    record = job.sample(0, image="Ships/01.png")
    record["conversations"][0]["value"] = objects[3]["conversations"][0]["value"].partition("\n")[2]
    record["system"] = objects[3]["system"]
    job.max_new_tokens = 4
    assert made[3]["conversations"][1]["answer"] == job.alone(job.load(), record).text

    for row in made:  # as if the model had learned it
        row["conversations"][1]["answer"] = "Well. [Scores]: (9, 10)"
    (replies / validation.name).write_text(json.dumps(made), "utf-8")
    assert agreement.main(["--rm_data", str(validation), "--replies", str(replies)]) == 0
    assert "8 reviews compared" in capsys.readouterr().out
    with pytest.raises(UserError, match="is a file; with --model_path"):
        agreement.main([*flags, "--replies", str(validation)])
    with pytest.raises(UserError, match="holds other records than the 1 of this run; give another --replies, or start"):
        agreement.main([*flags, "--limit", "1"])
