"""Fixtures of the scoring tests: small files of answers and reviews, and the published reviews."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrole.data.prompts import METRICS
from mmrole.scoring.reviews import ModelReviews, read_models


@pytest.fixture(scope="session")
def published(shared: Path) -> list[ModelReviews]:
    """The published reviews of four models."""
    return read_models([shared / "mmrole/eval/in-test_reviews"], {})


@pytest.fixture
def review_record() -> Callable[..., dict]:
    """Makes a reviewed answer: `review_record(number, pairs)`; pairs are one for all metrics, or by metric."""

    def make(number: int, pairs: object = (9, 10), *, answer: str = "Land ahoy!", **fields: object) -> dict:
        by_metric = pairs if isinstance(pairs, dict) else dict.fromkeys(METRICS, pairs)
        reviews = {
            metric: {"review": "Both are fine.", "score": list(pair) if isinstance(pair, tuple) else pair}
            for metric, pair in by_metric.items()
        }
        return {
            "id": f"Captain_comment_{number}",
            "system": "You are a captain.",
            "image": f"Ships/{number // 2:02}.png",
            "conversations": [
                {"from": "user", "value": "What do you see?"},
                {"from": "assistant", "value": "A ship, sir.", "answer": answer},
            ],
            "role": "Captain" if number % 2 else "Sailor",
            "script": "Ships",
            "other_role": "a curious human",
            "rm_review": reviews,
        } | fields

    return make


@pytest.fixture
def write_reviews(tmp_path: Path) -> Callable[..., Path]:
    """Writes reviews and, unless told otherwise, their answers; returns the path of the reviews."""

    def write(
        records: list[dict],
        *,
        model: str = "my-model",
        split: str = "in-test",
        kind: str = "comment",
        answers: list[dict] | None = None,
        with_answers: bool = True,
    ) -> Path:
        path = tmp_path / f"{split}_reviews" / model / f"{kind}_test.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records), "utf-8")
        if with_answers:
            answers = records if answers is None else answers
            answers = [{key: value for key, value in record.items() if key != "rm_review"} for record in answers]
            beside = tmp_path / f"{split}_answers" / model / f"{kind}_test.json"
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(answers), "utf-8")
        return path

    return write
