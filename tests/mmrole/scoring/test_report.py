"""Tests of the report's numbers: against the paper, against plain means, and laws."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmrole.data.prompts import DIMENSIONS, METRICS
from mmrole.scoring.measures import MEASURES, MIN_IMAGES, OVERALL, POOLED, WEIGHTED
from mmrole.scoring.paper import PAPER_ROWS
from mmrole.scoring.report import Report, make_report
from mmrole.scoring.reviews import IN_TEST, OUT_TEST, ModelReviews, read_models


@pytest.fixture(scope="module")
def report(published: list[ModelReviews]) -> Report:
    return make_report(published, PAPER_ROWS)


def test_the_papers_rows_are_complete(shared: Path) -> None:
    table = json.loads((shared / "formats/paper_table5.json").read_bytes())
    names = [name if split == WEIGHTED else f"{name} ({split})" for name, split, _ in PAPER_ROWS]
    rows = [[row.scores[column] for column in table["columns"]] for row in PAPER_ROWS]
    assert dict(zip(names, rows, strict=True)) == table["rows"]


def test_mmrole_agent_comes_out_as_in_the_paper(report: Report) -> None:
    (row,) = (row for row in PAPER_ROWS if (row.model, row.split) == ("MMRole-Agent", IN_TEST))
    (agent,) = (model for model in report.models if model.model == "mmrole-agent")
    for name, printed in row.scores.items():
        assert agent.scores[IN_TEST][name].value == pytest.approx(printed, abs=0.001)


def test_means_are_plain_means(report: Report, published: list[ModelReviews]) -> None:
    by_name = {model.model: model for model in published}
    for model in report.models:
        ratios = by_name[model.model].ratios
        scores = model.scores[IN_TEST]
        for number, metric in enumerate(METRICS):
            assert scores[metric].value == pytest.approx(np.nanmean(ratios[:, number]), abs=1e-12)
        assert scores[OVERALL].value == pytest.approx(np.nanmean(ratios), abs=1e-12)
        for dimension, metrics in DIMENSIONS.items():
            assert scores[dimension].value == pytest.approx(
                np.mean([scores[name].value for name in metrics]), abs=1e-12
            )
        whole = scores[OVERALL]
        for groups in [model.types, *model.groups.values()]:
            parts = [group[OVERALL] for group in groups.values()]
            assert sum(part.n for part in parts) == whole.n
            assert sum(part.n * part.value for part in parts if part.n) == pytest.approx(whole.n * whole.value)


def test_intervals_are_as_wide_as_those_of_others(report: Report) -> None:
    # "0.005 to 0.028 wide each way" (data page), of samples drawn one by one; whole images make them a little wider.
    for model in report.models:
        overall = model.scores[IN_TEST][OVERALL]
        assert 0.005 <= (overall.high - overall.low) / 2 <= 1.25 * 0.028
        assert overall.low < overall.value < overall.high


def test_groups_of_few_images_have_no_interval(report: Report, published: list[ModelReviews]) -> None:
    columns = published[0].columns
    with_interval = {False: 0, True: 0}
    for facet, groups in report.models[0].groups.items():
        for name, scores in groups.items():
            enough = len(set(columns["image"][columns[facet] == name])) >= MIN_IMAGES
            assert math.isnan(scores[OVERALL].low) != enough
            with_interval[enough] += 1
    assert min(with_interval.values()) > 0


def test_verdicts_on_the_published_models(report: Report) -> None:
    assert [model.model for model in report.models] == ["gpt-4-turbo", "mmrole-agent", "qwen-vl-chat", "yi-vl-6b"]
    verdicts = {(pair.first, pair.second): pair.verdict for pair in report.pairs}
    assert verdicts.pop(("qwen-vl-chat", "yi-vl-6b")) == "not distinguishable"
    assert verdicts == {(first, second): f"{first} is better" for first, second in verdicts}
    assert len(verdicts) == 5


def test_the_report_does_not_depend_on_the_order_of_models(report: Report, published: list[ModelReviews]) -> None:
    other = make_report(published[::-1], PAPER_ROWS)
    assert [model.model for model in other.models] == [model.model for model in report.models]
    for one, two in zip(other.models, report.models, strict=True):
        assert one.scores == two.scores
    assert [(pair.first, pair.second, pair.corrected) for pair in other.pairs] == [
        (pair.first, pair.second, pair.corrected) for pair in report.pairs
    ]


def test_a_model_and_its_copy_are_not_distinguishable(published: list[ModelReviews]) -> None:
    copy = ModelReviews("copy", published[0].files)
    (pair,) = make_report([published[0], copy], draws=200).pairs
    assert (pair.difference.value, pair.corrected, pair.verdict) == (0, 1, "not distinguishable")


def test_histograms_count_all_scores(report: Report, published: list[ModelReviews]) -> None:
    assert report.models[0].histogram.sum(axis=1).tolist() == [[216, 216]] * 8
    scores = published[0].scores[..., 0]
    assert report.models[0].histogram[:, 10, 0].tolist() == (scores == 10).sum(axis=0).tolist()


@pytest.fixture
def two_splits(review_record: Callable, write_reviews: Callable, tmp_path: Path) -> Callable[..., list[ModelReviews]]:
    """Makes a model with 6 samples of 0.8 in In-Test and 2 of 1.0 in Out-Test, and others that are better or worse."""

    def make(*changes: int) -> list[ModelReviews]:
        for number, change in enumerate(changes):
            for split, pair, n in (("in-test", (8 + change, 10), 6), ("out-test", (10 + change, 10), 2)):
                records = [review_record(index, pair, answer="Land ahoy!" * (1 + index % 2)) for index in range(n)]
                write_reviews(records, model=f"model-{number}", split=split)
        return read_models([tmp_path / "in-test_reviews", tmp_path / "out-test_reviews"], {})

    return make


def test_both_splits_are_pooled_and_weighted(two_splits: Callable) -> None:
    (model,) = make_report(two_splits(0), draws=200).models
    means = {key: scores[OVERALL].value for key, scores in model.scores.items()}
    expected = {WEIGHTED: 0.75 * 0.8 + 0.25, POOLED: (6 * 0.8 + 2) / 8, IN_TEST: 0.8, OUT_TEST: 1.0}
    assert means == pytest.approx(expected)
    assert list(means) == list(expected) == list(model.length)
    assert [model.scores[key][OVERALL].n for key in means] == [8, 8, 6, 2]
    assert model.length[WEIGHTED].score.value == pytest.approx(0.85)  # lengths are the same in both
    assert set(model.scores[WEIGHTED]) == set(MEASURES)


def test_models_are_ranked_by_what_all_have(two_splits: Callable, published: list[ModelReviews]) -> None:
    models = two_splits(-1, 0)
    report = make_report(models, draws=200)
    assert (report.ranked_by, report.models[0].model) == (WEIGHTED, "model-1")
    mixed = make_report([*models, published[0]], draws=200)
    assert (mixed.ranked_by, mixed.models[0].model) == (IN_TEST, "gpt-4-turbo")
    assert {pair.verdict for pair in mixed.pairs if "gpt-4-turbo" in pair[:2]} == {"no sample in common"}


def test_pairs_are_compared_by_the_mean_that_ranks(
    review_record: Callable, write_reviews: Callable, tmp_path: Path
) -> None:
    """Better in few samples of In-Test, worse in many of Out-Test: the mean over all samples says the opposite."""
    for model, own in (
        ("a", {"in-test": (9, 10), "out-test": (8, 10)}),
        ("b", {"in-test": (7, 10), "out-test": (9, 10)}),
    ):
        for split, n in (("in-test", 12), ("out-test", 36)):
            write_reviews([review_record(number, own[split]) for number in range(n)], model=model, split=split)
    report = make_report(read_models([tmp_path / "in-test_reviews", tmp_path / "out-test_reviews"], {}), draws=500)
    assert [model.model for model in report.models] == ["a", "b"]
    assert report.models[0].scores[POOLED][OVERALL].value < report.models[1].scores[POOLED][OVERALL].value
    (pair,) = report.pairs
    assert (pair.first, pair.difference.n) == ("a", 48)
    assert pair.difference.value == pytest.approx(0.75 * 0.2 - 0.25 * 0.1)
    assert pair.difference.low == pytest.approx(pair.difference.value)  # nothing varies within a set


def test_any_number_of_pairs_can_be_told_apart(
    review_record: Callable, write_reviews: Callable, tmp_path: Path
) -> None:
    """With 100 flips p is not below 1/101, 0.1 for ten pairs: there are more flips where there are many pairs."""
    for number in range(5):
        write_reviews([review_record(index, (4 + number, 10)) for index in range(60)], model=f"model-{number}")
    pairs = make_report(read_models([tmp_path / "in-test_reviews"], {}), draws=100).pairs
    assert {pair.verdict for pair in pairs} == {f"{pair.first} is better" for pair in pairs}


def test_images_without_scores_do_not_make_an_interval(review_record: Callable, write_reviews: Callable) -> None:
    records = [review_record(number, (9, 10) if number < 8 else None) for number in range(40)]  # four images scored
    (model,) = make_report(read_models([write_reviews(records)], {}), draws=200).models
    assert model.scores[IN_TEST][OVERALL].n == 8
    assert math.isnan(model.scores[IN_TEST][OVERALL].low)
    assert math.isnan(model.length[IN_TEST].score.low)


def test_position_bias(review_record: Callable, write_reviews: Callable) -> None:
    swapped = {metric: {"review": "Fine.", "score": [8, 10]} for metric in METRICS}
    records = [review_record(number, (10, 10), rm_review_swapped=swapped) for number in range(12)]
    records[0]["rm_review_swapped"] = dict(records[0]["rm_review"])
    path = write_reviews(records)
    (model,) = make_report(read_models([path], {}), draws=500).models
    bias = model.position
    assert (bias.first.value, bias.second.value) == pytest.approx((1, (11 * 0.8 + 1) / 12))
    assert bias.difference.value == pytest.approx(11 * 0.2 / 12)
    assert bias.agreement == pytest.approx(1 / 12)
    assert bias.p_value < 0.1
    assert model.scores[IN_TEST][OVERALL].value == pytest.approx((bias.first.value + bias.second.value) / 2)


def test_a_model_without_usable_reviews(review_record: Callable, write_reviews: Callable) -> None:
    path = write_reviews([review_record(number, None) for number in range(3)])
    report = make_report(read_models([path], {}), draws=200)
    (model,) = report.models
    assert math.isnan(model.scores[IN_TEST][OVERALL].value)
    assert model.coverage[0].unparseable == 3
    assert model.length[IN_TEST].score.n == 0


def test_samples_without_image_are_clusters_of_their_own(review_record, write_reviews) -> None:
    records = [review_record(number, image=None if number % 2 else "Ships/00.png") for number in range(4)]
    (model,) = read_models([write_reviews(records)], {})
    (whole,) = make_report([model], ()).models
    assert list(model.columns["image"]) == ["Ships/00.png", records[1]["id"], "Ships/00.png", records[3]["id"]]
    assert whole.scores[IN_TEST][OVERALL].value == pytest.approx(0.9)
