"""What the results page shows, as JSON: the report's numbers, the samples with answers and reviews, and thumbnails."""

import base64
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from data_utils.fields import Json
from data_utils.images import ImagePathError, open_image, resolve_image
from data_utils.prompts import DIMENSIONS, HUMAN_PARTNER, HUMAN_SPEAKER, METRICS
from data_utils.records import MetricReview, Review, Sample
from mmrole.scoring.coverage import Coverage
from mmrole.scoring.measures import FACETS, POOLED, WEIGHTED, Scores
from mmrole.scoring.report import ModelReport, Report
from mmrole.scoring.reviews import SPLITS, ModelReviews
from mmrole.scoring.statistics import Estimate
from mmrole.scoring.tables import TITLES

THUMBNAIL_SIDE = 400  # pixels: sharp at the width that the page gives it
THUMBNAIL_QUALITY = 70  # of JPEG: about 20 kB an image

_HISTORY = re.compile(r"\n\n\nThe conversation history between .+? and .+? is as follows:\n")
_REQUEST = re.compile(r"\n\n\nPlease respond to the following words of .+? about the image in .+? using the [^\n]+?:\n")
_OPENING = re.compile(r"\n\n\nPlease initiate the conversation with [^\n]+\Z")


class Dialogue(NamedTuple):
    """The conversation that a role-play prompt holds."""

    history: list[tuple[str, str]]
    """(speaker, words), oldest first."""
    last: str | None
    """The partner's words to answer; None if the character is to open the conversation."""


def report_data(report: Report, reviews: Sequence[ModelReviews]) -> Json:
    """The numbers of the page; the models in the order of the report."""
    columns = [model.columns for model in reviews]
    views = _views(report)
    return {
        "metrics": METRICS,
        "dimensions": DIMENSIONS,
        "facets": ["type", *(facet for facet in FACETS if facet != "character")],
        "views": views,
        "view_labels": {view: TITLES.get(view, view) for view in views},
        "models": [_model_data(model) for model in report.models],
        "paper": [{"name": row.model, "view": row.split, "scores": row.scores} for row in report.paper],
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "difference": _estimate(pair.difference),
                "n": pair.difference.n,
                "corrected": _number(pair.corrected),
                "verdict": pair.verdict,
            }
            for pair in report.pairs
        ],
        "series": {role: name for own in columns for role, name in zip(own["character"], own["series"], strict=True)},
        "n_images": report.n_images,
        "n_samples": len({key for model in reviews for key in model.keys}),
        "draws": report.draws,
    }


def sample_data(report: Report, reviews: Sequence[ModelReviews]) -> Json:
    """Every sample of any model once, with each model's answer and reviews; `texts` are blocks of prompts, shared."""
    by_name = {model.model: model for model in reviews}
    models = [by_name[model.model] for model in report.models]
    places = [{key: index for index, key in enumerate(model.keys)} for model in models]
    texts: dict[str, int] = {}
    samples = []
    for key in dict.fromkeys(key for model in models for key in model.keys):
        own = [(model, place[key]) if key in place else None for model, place in zip(models, places, strict=True)]
        model, index = next(found for found in own if found)
        record, dialogue = model.records[index], read_dialogue(model.records[index])
        samples.append(
            {
                "id": record.id,
                "split": key[0],
                "type": key[1],
                "role": record.role,
                "series": record.script,
                "other": record.other_role,
                "language": model.columns["language"][index],
                "image": record.image,
                "prompt": [texts.setdefault(block, len(texts)) for block in record.question.split("\n\n\n")],
                "history": dialogue.history,
                "last": dialogue.last,
                "reference": record.reference,
                "answers": [_answer(*found) if found else None for found in own],
            }
        )
    return {"texts": list(texts), "samples": samples}


def image_data(images: Iterable[str], image_dir: str | os.PathLike | None) -> dict[str, str]:
    """Thumbnails as `data:` URIs by path, of those images that are there and can be decoded.

    Args:
        images: paths relative to `image_dir`.
        image_dir: the image folder; None for no thumbnails.
    """
    if image_dir is None:
        return {}
    distinct = list(dict.fromkeys(images))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        thumbnails = pool.map(lambda image: _thumbnail(Path(image_dir), image), distinct)
        return {image: data for image, data in zip(distinct, thumbnails, strict=True) if data}


def read_dialogue(sample: Sample) -> Dialogue:
    """The conversation in a sample's prompt, undoing `data_utils.prompts.role_play_prompt`.

    A prompt of another form is shown as it is: without history, and the whole of it as the last words.
    """
    prompt = sample.question
    if match := _OPENING.search(prompt):
        last, before = None, prompt[: match.start()]
    elif match := _REQUEST.search(prompt):
        last, before = prompt[match.end() :], prompt[: match.start()]
    else:
        return Dialogue([], prompt)
    start = _HISTORY.search(before)
    if start is None:
        return Dialogue([], last)
    partner = HUMAN_SPEAKER if sample.other_role == HUMAN_PARTNER else sample.other_role
    speakers = "|".join(re.escape(name) for name in {sample.role: None, partner: None})
    _, *parts = re.split(rf"(?:^|\n)\[({speakers})\]: ", before[start.end() :])
    return Dialogue(list(zip(parts[::2], parts[1::2], strict=True)), last)


def _views(report: Report) -> list[str]:
    """What the table can show: what ranks first, then the other splits and the types, of any model or paper row."""
    known = {view for model in report.models for view in model.scores} | {row.split for row in report.paper}
    types = sorted({key for model in report.models for key in model.types})
    views = [*(view for view in (WEIGHTED, POOLED, *SPLITS) if view in known), *map(_type_view, types)]
    return sorted(views, key=lambda view: view != report.ranked_by)


def _type_view(key: tuple[str, str]) -> str:
    return " · ".join(key)


def _model_data(model: ModelReport) -> Json:
    types = {_type_view(key): _scores(scores) for key, scores in model.types.items()}
    groups = {facet: {name: _scores(own) for name, own in by.items()} for facet, by in model.groups.items()}
    position = model.position and {
        "first": _estimate(model.position.first),
        "second": _estimate(model.position.second),
        "difference": _estimate(model.position.difference),
        "p": _number(model.position.p_value),
        "agreement": _number(model.position.agreement),
    }
    lengths = {
        view: {
            "ratio": _number(length.median_ratio),
            "score": _estimate(length.score),
            "pearson": _estimate(length.pearson),
            "spearman": _estimate(length.spearman),
        }
        for view, length in model.length.items()
    }
    return {
        "name": model.model,
        "scores": {view: _scores(scores) for view, scores in model.scores.items()} | types,
        "groups": {"type": types, **groups},
        "length": lengths,
        "position": position,
        "coverage": _coverage(model.coverage),
    }


def _coverage(files: Sequence[Coverage]) -> Json:
    gaps = {
        "empty answers": sum(file.empty for file in files),
        "not reviewed": sum(file.missing for file in files),
        "reviewed under some metrics only": sum(file.incomplete for file in files),
        "with a review without usable scores": sum(file.unparseable for file in files),
        "not among the answers": sum(file.foreign for file in files),
        "reviewed with another answer": sum(file.changed for file in files),
    }
    expected, scored = sum(file.expected for file in files), sum(file.scored for file in files)
    return {"expected": expected, "scored": scored, "gaps": gaps}


def _scores(scores: Scores) -> dict[str, list[float | None]]:
    return {measure: _estimate(estimate) for measure, estimate in scores.items()}


def _estimate(estimate: Estimate) -> list[float | None]:
    return [_number(estimate.value), _number(estimate.low), _number(estimate.high), estimate.n]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(float(value), 6)


def _answer(model: ModelReviews, index: int) -> Json:
    record: Review = model.records[index]
    return {
        "answer": record.answer,
        "score": _number(model.overall[index]),
        "reviews": [_review(record.reviews.get(metric)) for metric in METRICS],
        "swapped": [_review(record.swapped.get(metric)) for metric in METRICS] if record.swapped else [],
    }


def _review(review: MetricReview | None) -> Json | None:
    return review and {"text": review.text, "score": review.score, "reason": review.reason}


def _thumbnail(image_dir: Path, image: str) -> str | None:
    try:
        picture = open_image(resolve_image(image_dir, image))
    except ImagePathError:
        return None  # the page says so where it would stand
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
