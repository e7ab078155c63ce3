"""Reward-model files against the published reviews and the published script's calls; splits, balance and leaks."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils import build_rm_data
from mmrole.base.errors import UserError
from mmrole.base.files import read_json, read_records, write_json
from mmrole.data.prompts import METRICS
from mmrole.data.records import MetricReview, Review, Sample, TrainingRecord
from mmrole.data.review_data import ReviewedAnswer, ScoredReview, balance, make_rows, shared, split_rows
from mmrole.data.scores import final_scores


def build(*arguments: object) -> None:
    build_rm_data.main([str(argument) for argument in arguments])


def sample(number: int, role: str = "Ana") -> Sample:
    turns = [{"from": "user", "value": f"Question {number}?"}, {"from": "assistant", "value": "Aye."}]
    obj = {"id": f"{role}_{number}_1", "system": "", "image": f"{number}.jpg", "conversations": turns}
    return Sample.from_json(obj | {"role": role, "script": "Harbour", "other_role": "a curious human"})


def reviewed(number: int, answer: str, role: str = "Ana", score: tuple[int, int] = (7, 9)) -> Review:
    text = f"Fine. [Scores]: ({score[0]}, {score[1]})"
    reviews = {metric: MetricReview(text, (float(score[0]), float(score[1]))) for metric in METRICS}
    return sample(number, role).with_answer(answer).with_reviews(reviews if answer else {})


def rows_of(*reviews: Review) -> list[ScoredReview]:
    return make_rows(ReviewedAnswer("m", review) for review in reviews).usable


@pytest.fixture
def reviews_dir(tmp_path: Path) -> Path:
    """Reviews by two models of eight prompts to four characters, in the layout of eval/in-test_reviews."""
    for model in ("one", "two"):
        records = [reviewed(n, f"{model} {n}", "ABCD"[n % 4], (n % 3 + 1, 9)).to_json() for n in range(8)]
        write_json(tmp_path / f"reviews/{model}/comment_test.json", records)
    return tmp_path / "reviews"


def test_answers_without_image():
    without = Review.from_json({key: value for key, value in reviewed(1, "Aye").to_json().items() if key != "image"})
    rows = rows_of(without, reviewed(2, "Aye"), reviewed(3, "Nay"))
    assert "<img>" not in rows[0].to_json()["conversations"][0]["value"]
    training, held_out = split_rows(rows, "prompt", 0.5, seed=1)
    assert len(training) + len(held_out) == len(rows) == 24


def test_conversations_are_what_the_published_script_asks(shared: Path):
    golden = read_json(shared / "golden/mmrole/review_prompts.json", dict)
    queries = {call["query"] for call in golden["review"]}
    assert len(queries) == 16
    answers = build_rm_data.read_answers(sorted((shared / "mmrole/eval/in-test_reviews").glob("*/*.json")))
    rows = [row for row in make_rows(answers).usable if row.review.id in golden["samples"]]
    users = {row.to_json()["conversations"][0]["value"] for row in rows}
    assert queries <= users


def test_published_reviews(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    reviews = shared / "mmrole/eval/in-test_reviews"
    tests = shared / "mmrole/eval/in-test_answers/yi-vl-6b"
    build("--reviews", reviews, "--output_dir", tmp_path, "--split_by", "answer", "--test_from", tests)
    info = read_json(tmp_path / "build_info.json", dict)
    training, validation = (
        read_records(tmp_path / name, TrainingRecord)
        for name in (build_rm_data.TRAIN_FILE, build_rm_data.VALIDATION_FILE)
    )
    assert len(training) + len(validation) == 6904  # 864 answers, one of them empty, eight metrics
    assert info["left_out"] == {"empty answers": 1}
    golden = read_json(shared / "golden/mmrole/published_reviews.json")
    learned = {(row.turns[1].value, *row.json["score"], row.json["metric"]) for row in training + validation}
    assert {(record["review"], *record["score"], record["metric"]) for record in golden} <= learned
    assert info["shared"]["training and test sets"]["prompts"] == 216
    assert info["shared"]["training and validation"]["answers"] == 0
    assert info["shared"]["training and validation"]["prompts"] > 0
    printed = capsys.readouterr().out
    assert "216 prompts are shared by training and test sets: Iron_Man_comment_COCO_30_1," in printed
    assert "--split_by prompt or character would" in printed


def test_a_file_of_conversations(reviews_dir: Path, tmp_path: Path):
    build("--reviews", reviews_dir, "--output_dir", tmp_path / "out", "--validation", 0)
    assert not (tmp_path / "out/validation").exists()
    rows = read_records(tmp_path / "out/train/RM-train.json", TrainingRecord)
    assert len(rows) == 2 * 8 * 8
    first = rows[0]
    assert first.id == "A_0_1_one_Instruction_Adherence"
    assert first.turns[0].value.startswith("Picture 1: <img>images/0.jpg</img>\n## **[Question Start]**\n\nQuestion 0?")
    assert first.turns[1].value == "Fine. [Scores]: (1, 9)"
    assert (first.json["metric"], first.json["score"], first.json["model"]) == (
        "Instruction Adherence",
        [1.0, 9.0],
        "one",
    )
    assert first.json["image"] == "0.jpg"


@pytest.mark.parametrize(
    ("unit", "key", "sizes"),
    [
        ("answer", ("model", "image"), (12, 4)),
        ("prompt", ("image",), (6, 2)),
        ("character", ("role",), (3, 1)),
    ],
)
def test_splits(reviews_dir: Path, tmp_path: Path, unit: str, key: tuple[str, ...], sizes: tuple[int, int]):
    build("--reviews", reviews_dir, "--output_dir", tmp_path / "out", "--split_by", unit, "--validation", 0.25)
    train, validation = (
        {tuple(row.json[name] for name in key) for row in read_records(tmp_path / "out" / name, TrainingRecord)}
        for name in ("train/RM-train.json", "validation/RM-validation.json")
    )
    assert (len(train), len(validation)) == sizes
    assert not train & validation
    leaks = read_json(tmp_path / "out/build_info.json", dict)["shared"]["training and validation"]
    assert (leaks["prompts"] == 0) == (unit != "answer")
    assert (leaks["characters"] == 0) == (unit == "character")


def test_leaks_are_named_and_can_be_left_out(reviews_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    known = [sample(n, "ABCD"[n % 4]) for n in (1, 5, 99)]
    write_json(tmp_path / "tests/comment_test.json", [record.to_json() for record in known])
    common = ("--reviews", reviews_dir, "--test_from", tmp_path / "tests", "--validation", 0)
    build(*common, "--output_dir", tmp_path / "all")
    found = read_json(tmp_path / "all/build_info.json", dict)["shared"]["training and test sets"]
    assert found == {
        **{"answers": 0, "prompts": 2, "dialogues": 2, "images": 2, "characters": 2, "characters or partners": 2},
        "prompt_ids": ["B_1_1", "B_5_1"],
    }
    told = capsys.readouterr().out
    assert "2 prompts are shared by training and test sets: B_1_1, B_5_1\n  so the reward model will know" in told
    build(*common, "--output_dir", tmp_path / "fewer", "--leave_out_test")
    info = read_json(tmp_path / "fewer/build_info.json", dict)
    assert info["shared"]["training and test sets"]["prompts"] == 0
    assert info["left_out"] == {"reviews of prompts in --test_from": 2 * 2 * 8}
    assert info["files"]["train/RM-train.json"]["records"] == 2 * 6 * 8
    build("--reviews", reviews_dir, "--output_dir", tmp_path / "blind")
    assert "not compared with test sets: name them in --test_from" in capsys.readouterr().out


def test_an_answer_that_was_trained_on_is_found_in_a_test_set():
    answers = [sample(1).with_answer("Aye aye."), sample(1).with_answer("Nay."), sample(2).with_answer("")]
    found = shared(answers, [reviewed(1, "Nay."), reviewed(2, "Nay.")])
    assert (found.counts["answers"], found.counts["prompts"]) == (1, 2)
    assert found.prompt_ids == ["Ana_1_1", "Ana_2_1"]


def test_what_cannot_be_learned_from_is_left_out_and_counted():
    reviews = {
        "Fluency": MetricReview("Good. [Scores]: (8, 9)", (8.0, 9.0)),
        "Coherency": MetricReview("No pair.", None, "no score pair"),
        "Image-Text Relevance": MetricReview("Good. [Scores]: (8, 9)", (9.0, 8.0)),
        "Wit": MetricReview("Good. [Scores]: (8, 9)", (8.0, 9.0)),
    }
    answer = sample(1).with_answer("Aye.")
    rows = make_rows(ReviewedAnswer("m", review) for review in [answer.with_reviews(reviews)] * 2 + [reviewed(2, "")])
    assert [row.metric for row in rows.usable] == ["Fluency"]
    assert rows.left_out == {
        "empty answers": 1,
        "reviews without a score pair": 2,
        "reviews whose text does not end with their score pair": 2,
        "reviews under other metrics": 2,
        "reviews that repeat another one": 1,
    }


def test_final_scores_agree_with_the_published_script_wherever_there_are_some(shared: Path):
    found = 0
    for case in read_json(shared / "golden/mmrole/review_score_cases.json"):
        scores = final_scores(case["review"])
        if scores is not None:
            found += 1
            assert case["score"], case["review"]
            assert scores == tuple(map(float, case["score"]))
    assert found >= 4


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Fine. [Scores]: (7, 8)", (7.0, 8.0)),
        ("Fine. [Scores]: 10, 9", (10.0, 9.0)),
        ("Fine. [Scores]: (7.5, 8) \n", (7.5, 8.0)),
        ("Fine. [Scores]: (7, 8) and more", None),
        ("[Scores]: (1, 2) [Scores]: (7, 8)", None),
        ("Fine. (7, 8)", None),
        ("", None),
    ],
)
def test_final_scores(text: str, scores: tuple[float, float] | None):
    assert final_scores(text) == scores


def test_balance_keeps_at_most_so_many_of_each_pair(reviews_dir: Path, tmp_path: Path):
    build("--reviews", reviews_dir, "--output_dir", tmp_path / "out", "--max_per_pair", 20, "--validation", 0)
    rows = read_records(tmp_path / "out/train/RM-train.json", TrainingRecord)
    assert Counter(tuple(row.json["score"]) for row in rows) == {(1.0, 9.0): 20, (2.0, 9.0): 20, (3.0, 9.0): 20}
    rows = rows_of(*(reviewed(n, "Aye.", score=(n % 2 + 1, 9)) for n in range(5)))
    kept = balance(rows, 18, seed=1)
    assert Counter(row.score for row in kept) == {(1.0, 9.0): 18, (2.0, 9.0): 16}
    assert kept == [row for row in rows if row in kept]  # in their order
    assert kept != balance(rows, 18, seed=2)
    assert balance(rows, 100, seed=1) == rows


@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from(["x", "y", "z"]), st.sampled_from("AB")), max_size=12
    ),
    by=st.sampled_from(["answer", "prompt", "character"]),
    fraction=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(),
)
def test_a_split_is_a_partition_by_whole_units(prompts: list, by: str, fraction: float, seed: int):
    rows = rows_of(*(reviewed(n, answer, role) for n, answer, role in prompts))
    training, validation = split_rows(rows, by, fraction, seed)
    assert sorted(map(id, [*training, *validation])) == sorted(map(id, rows))
    found = shared([row.review for row in training], [row.review for row in validation]).counts
    if by != "character":  # in this world two characters can be asked the same and answer the same
        assert found["answers"] == 0
    if by == "prompt":
        assert found["prompts"] == 0
    if by == "character":
        assert found["characters"] == 0
    assert bool(training) == bool(rows)
    if fraction == 0:
        assert not validation


def test_one_judge_is_learned_from(reviews_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    by_other = tmp_path / "in-test_reviews@gpt-4o"
    (reviews_dir / "two").rename(by_other)
    build("--reviews", by_other, "--output_dir", tmp_path / "out")
    assert read_json(tmp_path / "out/build_info.json", dict)["judge"] == "gpt-4o"
    assert "64 usable reviews of 8 answers by 1 models; the judge: gpt-4o" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"by different judges are not comparable: the published .*, gpt-4o"):
        build("--reviews", reviews_dir, by_other, "--output_dir", tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_nothing_is_overwritten_unasked(reviews_dir: Path, tmp_path: Path):
    build("--reviews", reviews_dir, "--output_dir", tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        build("--reviews", reviews_dir, "--output_dir", tmp_path / "out", "--validation", 0)
    assert (tmp_path / "out/validation/RM-validation.json").exists()
    build("--reviews", reviews_dir, "--output_dir", tmp_path / "out", "--validation", 0, "--overwrite")
    assert not (tmp_path / "out/validation/RM-validation.json").exists()


def test_what_a_person_got_wrong(reviews_dir: Path, tmp_path: Path, repository: Path):
    def fails(*arguments: object) -> str:
        command = [
            sys.executable,
            "-m",
            "data_utils.build_rm_data",
            *map(str, arguments),
            "--output_dir",
            tmp_path / "o",
        ]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        assert done.returncode == 2
        assert not (tmp_path / "o").exists()
        return done.stderr

    assert fails("--reviews", "nowhere") == "error: nowhere does not exist; give test files, or folders of them\n"
    assert "holds no test files; give a folder with comment_test.json" in fails("--reviews", repository / "docs")
    assert "--leave_out_test needs --test_from" in fails("--reviews", reviews_dir, "--leave_out_test")
    assert "must be at least 0 and below 1" in fails("--reviews", reviews_dir, "--validation", 1)
    answers = [sample(1).with_answer("Aye.").to_json()]
    write_json(tmp_path / "answers/m/comment_test.json", answers)
    assert 'no "rm_review"; review the answers first' in fails("--reviews", tmp_path / "answers")
    write_json(tmp_path / "empty/m/comment_test.json", [reviewed(1, "").to_json()])
    assert "no review is left to learn from" in fails("--reviews", tmp_path / "empty")
