"""Tests of reading reviews: arrays, splits, the answers beside them, and faulty files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmrole.base.errors import UserError
from mmrole.data.prompts import METRICS
from mmrole.scoring.reviews import ModelReviews, answers_beside, read_models, read_review_file


def test_published_scores(published: list[ModelReviews], shared: Path) -> None:
    assert [model.model for model in published] == ["gpt-4-turbo", "mmrole-agent", "qwen-vl-chat", "yi-vl-6b"]
    for model in published:
        assert model.scores.shape == (216, 8, 2)
        for file, start in zip(model.files, (0, 72, 144), strict=True):
            assert file.answers == {record.id: record.answer for record in file.records}
            for number, record in enumerate(json.loads(file.path.read_bytes())):
                pairs = [review["score"] for review in record.get("rm_review", {}).values()] or [[np.nan, np.nan]] * 8
                np.testing.assert_array_equal(model.scores[start + number], pairs)
    assert [(model.complete.sum(), model.empty.sum()) for model in published] == [(216, 0)] * 3 + [(215, 1)]


def test_published_groups(published: list[ModelReviews]) -> None:
    columns = published[0].columns
    characters = dict(zip(columns["character"], columns["category"], strict=True))
    counts = np.unique(list(characters.values()), return_counts=True)
    assert dict(zip(*counts, strict=True)) == {"fictional": 41, "historical and public": 11, "hypothetical": 20}
    chinese = {
        name for name, language in zip(columns["character"], columns["language"], strict=True) if language == "Chinese"
    }
    assert len(chinese) == 9


def test_scores_that_are_not_usable(review_record: Callable, write_reviews: Callable) -> None:
    pairs = dict.fromkeys(METRICS, (8, 10)) | {"Fluency": None, "Coherency": {}, "Response Accuracy": (8, 0)}
    model = ModelReviews("m", (read_review_file(write_reviews([review_record(0, pairs), review_record(1)])),))
    unusable = [METRICS.index(name) for name in ("Fluency", "Coherency", "Response Accuracy")]
    assert np.flatnonzero(np.isnan(model.ratios[0])).tolist() == unusable
    assert model.complete.tolist() == [False, True]
    assert np.isnan(model.overall[0])
    assert model.overall[1] == pytest.approx(0.9)


def test_swapped_reviews_are_averaged(review_record: Callable, write_reviews: Callable) -> None:
    both, one = review_record(0, (8, 10)), review_record(1, (8, 10))
    both["rm_review_swapped"] = {metric: {"review": "Fine.", "score": [10, 8]} for metric in METRICS}
    swapped = ModelReviews("m", (read_review_file(write_reviews([both, one])),))
    np.testing.assert_allclose(swapped.ratios[0], (0.8 + 1.25) / 2)
    assert swapped.is_swapped
    assert swapped.complete.tolist() == [True, False]  # in a file with both orders, one is not enough
    plain = ModelReviews("m", (read_review_file(write_reviews([one])),))
    np.testing.assert_allclose(plain.ratios[0], 0.8)


def test_records_without_reviews_are_read(review_record: Callable, write_reviews: Callable) -> None:
    bare, empty = review_record(0), review_record(1, answer="")
    del bare["rm_review"], empty["rm_review"]
    model = ModelReviews("m", (read_review_file(write_reviews([bare, empty])),))
    assert model.empty.tolist() == [False, True]
    assert not model.complete.any()
    assert model.length_ratios.tolist() == [len("Land ahoy!") / len("A ship, sir."), 0]


@pytest.mark.parametrize(
    ("reviews", "answers"),
    [
        ("eval/in-test_reviews/m/comment_test.json", "eval/in-test_answers/m/comment_test.json"),
        ("a_reviews/out-test_reviews/m/x.json", "a_reviews/out-test_answers/m/x.json"),
        ("eval/in-test_reviews@gpt-4o/m/x.json", "eval/in-test_answers/m/x.json"),
        ("in-test/m/comment_test.json", None),
    ],
)
def test_answers_beside_reviews(reviews: str, answers: str | None) -> None:
    assert answers_beside(Path(reviews)) == (None if answers is None else Path(answers))


def test_split_and_model_come_from_folders(
    review_record: Callable, write_reviews: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_reviews([review_record(0)], split="out-test")
    monkeypatch.chdir(path.parent)
    file = read_review_file(Path(path.name))
    assert (file.model, file.split, file.type) == ("my-model", "Out-Test", "comment")
    assert file.answers is not None
    elsewhere = tmp_path / "elsewhere" / "comment_test.json"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="does not tell whether it is In-Test or Out-Test"):
        read_models([elsewhere.parent], {})


def test_the_same_file_twice_is_an_error(review_record: Callable, write_reviews: Callable, tmp_path: Path) -> None:
    path = write_reviews([review_record(0)])
    copy = tmp_path / "again" / "in-test_reviews" / "my-model" / path.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="are both the comment reviews of my-model, In-Test"):
        read_models([tmp_path / "in-test_reviews", tmp_path / "again"], {})


def test_reviews_of_one_judge_among_those_of_others(
    review_record: Callable, write_reviews: Callable, tmp_path: Path
) -> None:
    for split, pair in (("in-test", (9, 10)), ("out-test", (8, 10))):
        path = write_reviews([review_record(0, pair)], split=split)
        by_other = path.parents[1].with_name(f"{split}_reviews@gpt_reviews") / "my-model" / path.name
        by_other.parent.mkdir(parents=True)
        by_other.write_text(json.dumps([review_record(0, (5, 10))]), "utf-8")
    with pytest.raises(
        UserError, match=r"by different judges are not comparable: the published reward model .*, gpt_rev"
    ):
        read_models([tmp_path], {})
    (model,) = read_models([tmp_path], {}, "gpt_reviews")
    assert [file.split for file in model.files] == ["In-Test", "Out-Test"]
    assert all(file.answers for file in model.files)
    assert model.overall.tolist() == [0.5, 0.5]
    with pytest.raises(UserError, match=r"there are no reviews by gpt in .*, which would be in a folder …_reviews@gpt"):
        read_models([tmp_path], {}, "gpt")


def test_answers_beside_reviews_are_no_reviews(
    review_record: Callable, write_reviews: Callable, tmp_path: Path
) -> None:
    write_reviews([review_record(0)])
    (model,) = read_models([tmp_path], {})
    assert len(model.files) == 1
    with pytest.raises(UserError, match=r"there are no reviews in .*, only answers"):
        read_models([tmp_path / "in-test_answers"], {})


def test_all_faulty_records_are_named(review_record: Callable, write_reviews: Callable) -> None:
    bad = [review_record(number, "9/10") for number in range(2)]
    path = write_reviews([*bad, review_record(2)])
    with pytest.raises(UserError) as error:
        read_models([path], {})
    assert "Captain_comment_0" in str(error.value)
    assert "Captain_comment_1" in str(error.value)
