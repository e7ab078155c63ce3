"""Tests of the results: the published tables to the last byte, and what is not covered."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mmrole.data.prompts import METRICS
from mmrole.scoring.coverage import find_gaps, measure_coverage
from mmrole.scoring.results import compute_result
from mmrole.scoring.reviews import ModelReviews, read_review_file


def test_published_tables_to_the_last_byte(published: list[ModelReviews], shared: Path) -> None:
    for model in published:
        for file in model.files:
            table = shared / "mmrole/eval/in-test_results" / model.model / f"{file.type}_test.csv"
            result = compute_result(file)
            assert result.csv().encode() == table.read_bytes()
            assert not result.gaps


def test_sums_are_taken_from_left_to_right(review_record: Callable, write_reviews: Callable) -> None:
    pairs = [(7, 9), (10, 9), (8, 7), (3, 10), (9, 7), (1, 9)] * 12
    total = 0.0
    for evaluated, reference in pairs:
        total += evaluated / reference
    records = [review_record(number, pair) for number, pair in enumerate(pairs)]
    result = compute_result(read_review_file(write_reviews(records)))
    assert result.means == (total / 72,) * 8
    assert result.csv() == f"count,{','.join(METRICS)}\r\n72,{','.join([repr(total / 72)] * 8)}\r\n"


def test_gaps_are_named_and_left_out(review_record: Callable, write_reviews: Callable) -> None:
    answers = [review_record(number) for number in range(7)]
    answers[1] = review_record(1, answer=" ")
    no_fluency = dict.fromkeys(METRICS[2:], (5, 10)) | {METRICS[0]: (5, 10)}
    records = [
        review_record(0, (8, 10)),
        review_record(1, {}, answer=" "),  # empty: complete
        review_record(2, no_fluency),
        review_record(3, dict.fromkeys(METRICS, (5, 10)) | {"Tone Consistency": {}, "Coherency": None}),
        review_record(4, {}),  # not reviewed; 5 has no record at all
        review_record(6, (6, 10), answer="Another answer."),
        review_record(99, (10, 10)),
    ]
    file = read_review_file(write_reviews(records, answers=answers))
    gaps = find_gaps(file)
    name = "Captain_comment_{}".format
    assert gaps.missing == [name(5), name(4)]
    assert gaps.incomplete == {name(2): "Fluency"}
    assert gaps.unparseable == {name(3): "Coherency, Tone Consistency"}
    assert gaps.foreign == [name(99)]
    assert gaps.changed == [name(6)]
    result = compute_result(file)
    assert (result.n, result.n_empty) == (3, 1)
    assert result.means == pytest.approx([(0.8 + 0.6 + 1) / 3] * 8)
    for number in (2, 3, 4, 5, 6, 99):
        assert sum(f"'{name(number)}'" in gap for gap in result.gaps) == 1
    assert all(str(file.path) in gap for gap in result.gaps)
    coverage = measure_coverage("In-Test", file)
    assert (coverage.expected, coverage.scored, coverage.empty) == (7, 3, 1)
    assert coverage.n_per_metric == dict.fromkeys(METRICS, 5) | {"Fluency": 4, "Coherency": 4, "Tone Consistency": 4}


def test_answers_that_were_refused_or_failed_are_a_gap_of_their_own(
    review_record: Callable, write_reviews: Callable
) -> None:
    records = [review_record(0, (8, 10)), review_record(1, {}, answer=""), review_record(2, {}, answer="")]
    records[2]["conversations"][1]["answer_error"] = "refused: no"
    file = read_review_file(write_reviews(records))
    assert not any(find_gaps(file))
    result = compute_result(file)
    assert (result.n, result.n_empty, result.n_unanswered) == (1, 1, 1)
    (gap,) = result.gaps
    assert gap == f"{file.path}: 1 sample without an answer, which was refused or has failed: 'Captain_comment_2'"
    coverage = measure_coverage("In-Test", file)
    assert (coverage.expected, coverage.scored, coverage.empty, coverage.unanswered) == (3, 1, 1, 1)


def test_both_orders_are_wanted_where_one_record_has_them(review_record: Callable, write_reviews: Callable) -> None:
    swapped = {metric: {"review": "Fine.", "score": [10, 8]} for metric in METRICS}
    both, without_pair = (review_record(number, (8, 10), rm_review_swapped=swapped) for number in (0, 1))
    null = {"review": "Hm.", "score": None, "reason": "no marker"}
    without_pair["rm_review_swapped"] = swapped | {"Fluency": null}
    partly = review_record(3, (8, 10), rm_review_swapped={key: swapped[key] for key in METRICS if key != "Fluency"})
    file = read_review_file(write_reviews([both, without_pair, review_record(2), partly]))
    gaps = find_gaps(file)
    assert gaps.unparseable == {"Captain_comment_1": "Fluency"}
    assert gaps.incomplete == {
        "Captain_comment_2": "all with the answers exchanged",
        "Captain_comment_3": "Fluency with the answers exchanged",
    }
    assert compute_result(file).means == pytest.approx([(0.8 + 1.25) / 2] * 8)


def test_answers_that_are_not_there_are_no_silence(review_record: Callable, write_reviews: Callable) -> None:
    file = read_review_file(write_reviews([review_record(0)], with_answers=False))
    (gap,) = compute_result(file).gaps
    assert "missing samples cannot be told" in gap
    assert str(file.answers_path) in gap


def test_nothing_to_average(review_record: Callable, write_reviews: Callable) -> None:
    result = compute_result(read_review_file(write_reviews([review_record(0, {})])))
    assert (result.n, result.means) == (0, ())
    assert compute_result(read_review_file(write_reviews([]))).n == 0
