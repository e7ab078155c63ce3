"""Records against the published answers and reviews, and against records that are not in order."""

import copy
import json
import math
from pathlib import Path

import pytest

from mmrole.base.errors import RecordError, Where
from mmrole.base.files import read_records, write_json
from mmrole.data.prompts import METRICS
from mmrole.data.records import Answer, MetricReview, Review, Sample, TrainingRecord

MODELS = ("gpt-4-turbo", "mmrole-agent", "qwen-vl-chat", "yi-vl-6b")
TYPES = ("comment", "human-role", "inter-role")

SAMPLE = {
    "id": "Ana_comment_COCO_1_1",
    "system": "",
    "image": "COCO/train2017/1.jpg",
    "note": {"kept": [1, None]},
    "conversations": [{"from": "user", "value": "Hello?"}, {"from": "assistant", "value": "Hi.", "seconds": 1.5}],
    "role": "Ana",
    "script": "Harbour",
    "other_role": "a curious human",
}


def answer_json() -> dict:
    return Sample.from_json(SAMPLE).with_answer("Ho.").to_json()


def review_json() -> dict:
    reviews = {"Fluency": MetricReview("Good. [Scores]: (9, 10)", (9.0, 10.0))}
    return Answer.from_json(answer_json()).with_reviews(reviews).to_json()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("model", MODELS)
def test_published_files_are_written_back_byte_for_byte(shared: Path, tmp_path: Path, model: str, kind: str):
    answered = shared / f"mmrole/eval/in-test_answers/{model}/{kind}_test.json"
    reviewed = shared / f"mmrole/eval/in-test_reviews/{model}/{kind}_test.json"
    answers = read_records(answered, Answer)
    reviews = read_records(reviewed, Review)
    assert len(answers) == len(reviews) == 72
    for path, records in ((answered, answers), (reviewed, reviews)):
        write_json(tmp_path / "copy.json", [record.to_json() for record in records])
        assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_answers_and_reviews_are_built_byte_for_byte(shared: Path, tmp_path: Path, model: str):
    answered = shared / f"mmrole/eval/in-test_answers/{model}/inter-role_test.json"
    reviewed = shared / f"mmrole/eval/in-test_reviews/{model}/inter-role_test.json"
    answers = read_records(answered, Answer)
    reviews = {review.id: review for review in read_records(reviewed, Review)}

    unanswered = []
    for answer in answers:
        obj = copy.deepcopy(answer.to_json())
        del obj["conversations"][1]["answer"]
        unanswered.append(Sample.from_json(obj))
    rebuilt = [sample.with_answer(answer.answer) for sample, answer in zip(unanswered, answers, strict=True)]
    write_json(tmp_path / "copy.json", [record.to_json() for record in rebuilt])
    assert (tmp_path / "copy.json").read_bytes() == answered.read_bytes()

    scored = []
    for answer in rebuilt:
        assert tuple(reviews[answer.id].reviews) == (METRICS if answer.answer else ())
        scored.append(answer.with_reviews(reviews[answer.id].reviews) if answer.answer else answer)
    write_json(tmp_path / "copy.json", [record.to_json() for record in scored])
    assert (tmp_path / "copy.json").read_bytes() == reviewed.read_bytes()


def test_every_published_review_has_a_score(shared: Path):
    published = json.loads((shared / "golden/mmrole/published_reviews.json").read_text())
    for review in published:
        evaluated, reference = review["score"]
        obj = review_json()
        obj["rm_review"] = {review["metric"]: {"review": review["review"], "score": [evaluated, reference]}}
        assert Review.from_json(obj).reviews == {
            review["metric"]: MetricReview(review["review"], (evaluated, reference))
        }


def test_a_record_carries_everything_along():
    sample = Sample.from_json(SAMPLE, Where("x.json", 4))
    answer = sample.with_answer("")
    assert (answer.question, answer.reference, answer.answer, answer.role) == ("Hello?", "Hi.", "", "Ana")
    assert str(answer.where) == "x.json[4] (id 'Ana_comment_COCO_1_1')"
    assert list(answer.to_json()) == list(SAMPLE)
    assert answer.to_json()["note"] is SAMPLE["note"]
    assert list(answer.to_json()["conversations"][1].items())[2:] == [("seconds", 1.5), ("answer", "")]
    assert "answer" not in SAMPLE["conversations"][1]


def test_a_new_answer_drops_the_reviews_of_the_old_one():
    review = Review.from_json(review_json() | {"rm_review_swapped": {}})
    again = review.with_answer("Hum.").to_json()
    assert again["conversations"][1]["answer"] == "Hum."
    assert list(again) == list(SAMPLE)


@pytest.mark.parametrize(
    ("stored", "score", "reason"),
    [
        ([7.5, 8], (7.5, 8.0), ""),
        ([0.0, 10.0], (0.0, 10.0), ""),
        ({}, None, "no score pair"),
        (None, None, "no score pair"),
        ([7.0, 0.0], None, "the reference's score is 0"),
        ([-1.0, 10.0], None, "score [-1.0, 10.0] is not between 0 and 10"),
        ([10.5, 10.0], None, "score [10.5, 10.0] is not between 0 and 10"),
        ([math.nan, 10.0], None, "score [nan, 10.0] is not between 0 and 10"),
        ([1.0, math.inf], None, "score [1.0, inf] is not between 0 and 10"),
    ],
)
def test_scores_that_are_no_usable_pair_are_none_with_a_reason(stored: object, score: object, reason: str):
    obj = review_json()
    obj["rm_review"]["Fluency"]["score"] = stored
    review = Review.from_json(obj)
    assert review.reviews["Fluency"] == MetricReview("Good. [Scores]: (9, 10)", score, reason)
    assert review.to_json()["rm_review"]["Fluency"]["score"] is stored


def test_a_missing_score_is_written_with_its_reason():
    review = MetricReview("no idea", None, "no marker")
    assert list(review.to_json().items()) == [("review", "no idea"), ("score", None), ("reason", "no marker")]
    obj = Answer.from_json(answer_json()).with_reviews({"Fluency": review}).to_json()
    assert Review.from_json(obj).reviews == {"Fluency": review}


def test_only_an_empty_answer_may_lack_reviews():
    assert Review.from_json(Sample.from_json(SAMPLE).with_answer("").to_json()).reviews == {}
    with pytest.raises(RecordError, match=r'no "rm_review"; review the answers first'):
        Review.from_json(answer_json())


def put(*path: str | int, value: object):
    def damage(obj: dict) -> dict:
        inner = obj
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return obj

    return damage


def drop(*path: str | int):
    def damage(obj: dict) -> dict:
        inner = obj
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return obj

    return damage


SAMPLE_DAMAGE = [
    (lambda obj: [obj], "the record must be an object"),
    (drop("id"), '"id" is missing'),
    (put("id", value=7), '"id" must be a non-empty text, not 7'),
    (put("id", value=""), '"id" must be a non-empty text'),
    (drop("system"), '"system" is missing'),
    (put("image", value=5), '"image" must be a non-empty text, not 5'),
    (put("role", value=" \n"), '"role" must be a non-empty text'),
    (put("script", value=""), '"script" must be'),
    (put("other_role", value=["a", "b"]), '"other_role" must be'),
    (drop("conversations"), '"conversations" must be a list of user and assistant in turn, not None'),
    (put("conversations", value=[]), '"conversations" must be a list'),
    (drop("conversations", 1), "in turn, not a list of 1"),
    (put("conversations", value=SAMPLE["conversations"] * 2), "one user and one assistant turn, not 4"),
    (put("conversations", 0, value="Hello?"), r"conversations\[0\] must be an object"),
    (put("conversations", 0, "from", value="human"), r'"from" of conversations\[0\] must be "user", not \'human\''),
    (drop("conversations", 1, "from"), r'"from" of conversations\[1\] must be "assistant", not None'),
    (put("conversations", 0, "value", value=""), r'"value" of conversations\[0\] must be a non-empty text'),
    (drop("conversations", 1, "value"), r'"value" of conversations\[1\] is missing'),
]
ANSWER_DAMAGE = [
    (drop("conversations", 1, "answer"), r'conversations\[1\] has no "answer"; answer the samples first'),
    (put("conversations", 1, "answer", value=None), r'"answer" of conversations\[1\] must be a text, not None'),
]
REVIEW_DAMAGE = [
    (put("rm_review", value=[]), r'"rm_review" must be an object'),
    (put("rm_review", "Fluency", value="Good."), r"rm_review\['Fluency'\] must be an object"),
    (drop("rm_review", "Fluency", "review"), r'"review" of rm_review\[\'Fluency\'\] is missing'),
    (drop("rm_review", "Fluency", "score"), r'"score" of rm_review\[\'Fluency\'\] is missing; give a pair'),
    (put("rm_review", "Fluency", "score", value=["9", "9"]), "must be a pair of numbers, or null"),
    (put("rm_review", "Fluency", "score", value=[True, 9.0]), "must be a pair of numbers, or null"),
    (put("rm_review", "Fluency", "score", value=[9.0]), "must be a pair of numbers, or null"),
    (put("rm_review", "Fluency", "score", value=9.0), "must be a pair of numbers, or null"),
]


@pytest.mark.parametrize(
    ("record_type", "damage", "message"),
    [(kind, *case) for kind in (Sample, Answer, Review) for case in SAMPLE_DAMAGE]
    + [(kind, *case) for kind in (Answer, Review) for case in ANSWER_DAMAGE]
    + [(Review, *case) for case in REVIEW_DAMAGE],
)
def test_a_faulty_record_is_named(record_type: type, damage, message: str):
    obj = damage(copy.deepcopy(review_json()))
    with pytest.raises(RecordError, match=r"^x\.json\[3\].*" + message) as caught:
        record_type.from_json(obj, Where("x.json", 3))
    named = isinstance(obj, dict) and isinstance(obj.get("id"), str) and obj["id"]
    assert ("(id 'Ana_comment_COCO_1_1')" in str(caught.value)) == bool(named)
    assert "\n" not in str(caught.value)


def test_train_samples_need_only_conversations():
    turns = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b", "loss": 1}] * 2
    bare = TrainingRecord.from_json({"conversations": turns})
    assert [turn.value for turn in bare.turns] == ["a", "b", "a", "b"]
    assert (bare.id, bare.images, bare.system, bare.script) == (None, (), None, None)
    full = TrainingRecord.from_json(SAMPLE | {"id": 5, "type": "comment"}, Where("train.json", 9))
    assert (full.id, full.type, full.script, str(full.where)) == ("5", "comment", "Harbour", "train.json[9] (id '5')")
    assert full.to_json()["id"] == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put("id", value=[]), '"id" must be a text'),
        (put("script", value=3), '"script" must be a text, not 3'),
        (put("image", value=True), '"image" must be a path, or a list of paths, not True'),
        (put("images", value=["0.jpg", {"bytes": ""}]), '"images" must be a path, or a list of paths, not'),
        (put("images", value=["0.jpg"]), '"image" is .*, which is not among "images"'),
        (drop("conversations"), '"conversations" must be a list'),
        (drop("conversations", 0), "not a list of 1"),
        (put("conversations", 1, "value", value=""), r'"value" of conversations\[1\] must be a non-empty text'),
        (put("conversations", 1, "from", value="user"), r'must be "assistant", not \'user\''),
    ],
)
def test_a_faulty_train_sample_is_named(damage, message: str):
    with pytest.raises(RecordError, match=message):
        TrainingRecord.from_json(damage(copy.deepcopy(SAMPLE)))
