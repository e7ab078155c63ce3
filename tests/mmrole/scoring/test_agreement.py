"""Agreement of two sets of reviews: which reviews are compared, and the numbers."""

import copy
import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.base.errors import UserError
from mmrole.base.files import read_records
from mmrole.data.prompts import METRICS
from mmrole.data.records import Review
from mmrole.data.requests import ChatReply
from mmrole.data.review_data import ReviewedAnswer, make_rows
from mmrole.scoring.agreement import (
    ALL_ANSWERS,
    ALL_REVIEWS,
    Key,
    Matched,
    match,
    measure_agreement,
    read_conversations,
    read_reviews,
)
from mmrole.scoring.agreement_tables import agreement_csv, agreement_text, harsher_text
from mmrole.scoring.review_replies import REPLIES, ReviewRow


@pytest.fixture(scope="module")
def published(shared) -> list[dict]:
    """The published reviews of one model's comments."""
    path = shared / "mmrole/eval/in-test_reviews/qwen-vl-chat/comment_test.json"
    return json.loads(path.read_text("utf-8"))


def noisy(records: list[dict], seed: int = 0) -> list[dict]:
    """The same answers, reviewed by somebody else."""
    random, records = np.random.default_rng(seed), copy.deepcopy(records)
    for record in records:
        for review in record.get("rm_review", {}).values():
            review["score"] = [float(np.clip(score + random.integers(-2, 3), 1, 10)) for score in review["score"]]
            review["review"] = "Well. [Scores]: ({}, {})".format(*review["score"])
    return records


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks, the slow way."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def matched(first, second) -> Matched:
    keys = [Key(("", str(index // 8)), METRICS[index % 8]) for index in range(len(first))]
    return Matched(keys, [str(index // 16) for index in range(len(first))], np.array(first), np.array(second), {})


pairs = st.tuples(st.integers(0, 10), st.integers(1, 10)).map(lambda pair: [float(score) for score in pair])


@given(st.lists(st.tuples(pairs, pairs), min_size=1, max_size=40))
def test_the_numbers_are_those_of_their_definitions(rows):
    first, second = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    everything = measure_agreement(matched(first, second), draws=100)
    by_metric = {row.name: row for row in everything}
    for name, mask in [(ALL_REVIEWS, np.ones(len(rows), bool))] + [
        (metric, np.arange(len(rows)) % 8 == index) for index, metric in enumerate(METRICS)
    ]:
        if not mask.any():
            assert name not in by_metric
            continue
        row, a, b = by_metric[name], first[mask], second[mask]
        assert row.n == mask.sum()
        assert row.score_mae.value == pytest.approx(np.mean(np.abs(a - b)))
        x, y = a[:, 0] / a[:, 1], b[:, 0] / b[:, 1]
        assert row.ratio_mae.value == pytest.approx(np.mean(np.abs(x - y)))
        assert row.ratio_difference.value == pytest.approx(np.mean(x - y))
        for values, pearson, spearman in ((np.stack([x, y]), *row[5:7]), (np.stack([a[:, 0], b[:, 0]]), *row[7:9])):
            if np.ptp(values, axis=1).min() > 1e-9:
                assert pearson.value == pytest.approx(np.corrcoef(values)[0, 1], abs=1e-6)
                assert spearman.value == pytest.approx(np.corrcoef([ranks(v) for v in values])[0, 1], abs=1e-6)
            else:
                assert np.isnan(pearson.value)


def test_overall_scores_are_means_over_the_eight_metrics_of_an_answer():
    first = np.array([[score, 10.0] for score in range(1, 9)] * 2 + [[1.0, 1.0]])
    second = np.array([[score, 10.0] for score in range(8, 0, -1)] * 2 + [[2.0, 1.0]])
    row = next(row for row in measure_agreement(matched(first, second), draws=100) if row.name == ALL_ANSWERS)
    assert row.n == 2  # the third answer has one review
    assert row.score_mae.value == 0
    assert row.ratio_mae.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n_images", "harsher"), [(4, ""), (5, "first")])
def test_who_is_harsher_takes_enough_images(n_images, harsher):
    """Sixteen reviews an image: the ratios of the first set are lower, its scores of both answers higher."""
    first, second = ([pair] * 16 * n_images for pair in ([6.0, 10.0], [5.0, 8.0]))
    rows = measure_agreement(matched(first, second), draws=100)
    assert {row.harsher for row in rows} == {harsher}
    assert all(row.score_difference.value == 1.5 for row in rows)
    assert [row.harsher for row in measure_agreement(matched(second, first), draws=100)][:1] == [harsher and "second"]
    assert "judge A, by 0.025 [0.025, 0.025]" in harsher_text(rows, "judge A", "judge B") or not harsher


def test_equal_sets_agree_fully(published, tmp_path):
    places = [write(tmp_path / name / "comment_test.json", published) for name in ("one", "two")]
    for row in measure_agreement(match(*(read_reviews([place]) for place in places)), draws=100):
        assert row.score_mae[:3] == row.ratio_mae[:3] == row.ratio_difference[:3] == (0, 0, 0)
        assert row.ratio_pearson.value == pytest.approx(1)
        assert row.ratio_spearman.value == pytest.approx(1)


def test_conversations_give_the_numbers_of_the_reviews(published, tmp_path):
    """The same reviews in both forms; the conversations in another order and without ids."""
    sets = {"first": published, "second": noisy(published)}
    reviews = [read_reviews([write(tmp_path / name / "comment_test.json", records)]) for name, records in sets.items()]
    files = []
    for name, records in sets.items():
        rows = make_rows(ReviewedAnswer("model", Review.from_json(record)) for record in records).usable
        objects = [{key: value for key, value in row.to_json().items() if key != "id"} for row in rows]
        files.append(write(tmp_path / f"{name}.json", objects[:: 1 if name == "first" else -1]))
    one, other = (measure_agreement(match(*judged), draws=200) for judged in (reviews, map(read_conversations, files)))
    assert agreement_csv(one) == agreement_csv(other)
    assert [row.n for row in one] == [576, 72] + [72] * 8


def test_a_reply_stands_beside_the_review_that_it_is_compared_with(published, tmp_path):
    rows = make_rows([ReviewedAnswer("model", Review.from_json(published[0]))]).usable
    objects = [row.to_json() for row in rows]
    reference = read_conversations(write(tmp_path / "validation.json", objects))
    for obj in objects:
        obj["conversations"][1]["answer"] = "Fine. [Scores]: (1, 10)"
    found = match(read_conversations(write(tmp_path / "replies.json", objects)), reference)
    assert found.first.tolist() == [[1.0, 10.0]] * 8
    assert found.second.tolist() == [list(row.score) for row in rows]


def test_scores_in_a_refusal_do_not_count(published, tmp_path):
    rows = make_rows([ReviewedAnswer("model", Review.from_json(published[0]))]).usable
    file = write(tmp_path / "validation.json", [row.to_json() for row in rows])
    replies = {
        f"{number} {row.to_json()['id']}": ChatReply("", "Never. [Scores]: (1, 10)", "refused", error="no")
        for number, row in enumerate(rows)
    }
    assert all(judgement.score is None for judgement in read_conversations(file, replies).values())


def test_conversations_without_an_image_are_rows_and_stand_alone(published, tmp_path):
    records = [{key: value for key, value in record.items() if key != "image"} for record in published[:2]]
    rows = make_rows(ReviewedAnswer("model", Review.from_json(record)) for record in records).usable
    file = write(tmp_path / "validation.json", [row.to_json() for row in rows])
    assert len({judgement.cluster for judgement in read_conversations(file).values()}) == 2
    (request,) = REPLIES.ask(read_records(file, ReviewRow)[0], {})
    assert request.images == ()


def test_what_is_not_compared_is_counted(published, tmp_path):
    first, second = copy.deepcopy(published[:4]), copy.deepcopy(published[1:5])
    first[1]["rm_review"]["Fluency"]["score"] = None
    second[1]["rm_review"]["Fluency"]["score"] = {}
    del second[1]["rm_review"]["Coherency"]
    places = [write(tmp_path / name / "comment_test.json", records) for name, records in (("a", first), ("b", second))]
    found = match(*(read_reviews([place]) for place in places))
    assert found.left_out == {"in the first set only": 8 + 1, "in the second set only": 8, "without scores": 2}
    assert len(found.keys) == 3 * 8 - 1 - 2
    text = agreement_text(measure_agreement(found, draws=100))
    assert [line.split("  ")[0] for line in text.splitlines()[1::2]] == [ALL_REVIEWS, ALL_ANSWERS, *METRICS]


def test_models_are_matched_by_name_where_there_are_several(published, tmp_path):
    other = copy.deepcopy(published)
    for record in other:
        record["conversations"][1]["answer"] += " Indeed."
    for folder, sets in (("rm", (published, other)), ("gpt", (noisy(published), noisy(other)))):
        for model, records in zip(("one", "two"), sets, strict=True):
            write(tmp_path / folder / "in-test_reviews" / model / "comment_test.json", records)
    found = match(read_reviews([tmp_path / "rm"]), read_reviews([tmp_path / "gpt"]))
    assert len(found.keys) == 2 * 576
    assert {key.answer[0] for key in found.keys} == {"one", "two"}


def test_different_answers_are_a_mistake(published, tmp_path):
    other = copy.deepcopy(published)
    other[2]["conversations"][1]["answer"] += "!"
    places = [
        write(tmp_path / name / "comment_test.json", records) for name, records in (("a", published), ("b", other))
    ]
    with pytest.raises(UserError, match=r"a/comment_test.json\[2\].* another answer .*b/comment_test.json\[2\]"):
        match(*(read_reviews([place]) for place in places))


def test_an_answer_reviewed_twice_is_a_mistake(published, tmp_path):
    for split in ("in-test", "out-test"):
        write(tmp_path / f"{split}_reviews/model/comment_test.json", published[:1])
    with pytest.raises(UserError, match="reviews the same sample of 'model'"):
        read_reviews([tmp_path])


def test_conversations_without_a_review_prompt_are_a_mistake(tmp_path):
    turns = [{"from": "user", "value": "Hello."}, {"from": "assistant", "value": "[Scores]: (9, 8)"}]
    with pytest.raises(UserError, match=r"rows.json\[0\].*not a prompt for a review"):
        read_conversations(write(tmp_path / "rows.json", [{"conversations": turns}]))


def test_the_csv_has_each_number_with_its_interval():
    rows = measure_agreement(matched([[9.0, 8.0]] * 9, [[8.0, 8.0]] * 9), draws=100)
    table = list(csv.DictReader(io.StringIO(agreement_csv(rows))))
    assert [row["reviews"] for row in table] == [row.name for row in rows]
    assert float(table[0]["ratio_mae"]) == float(table[0]["ratio_mae_low"]) == 0.125
    assert table[0]["ratio_pearson"] == ""  # nothing varies


def test_answers_without_image_are_compared(review_record, tmp_path):
    records = [review_record(number, image=None if number % 2 else "Ships/00.png") for number in range(4)]
    files = [tmp_path / name / "comment_test.json" for name in ("one", "other")]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps(records))
    matched = match(*(read_reviews([file]) for file in files))
    assert len(matched.keys) == 32
    assert measure_agreement(matched, draws=10)
