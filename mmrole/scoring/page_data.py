"""Data of the results page as JSON: the report's numbers and thumbnails."""

import base64
import io
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmrole.base.json_values import JsonObject
from mmrole.data.images import ImagePathError, open_image, resolve_image
from mmrole.data.prompts import DIMENSIONS, METRICS
from mmrole.scoring.coverage import Coverage
from mmrole.scoring.measures import FACETS, POOLED, WEIGHTED, Scores
from mmrole.scoring.report import ModelReport, Report
from mmrole.scoring.reviews import SPLITS, ModelReviews
from mmrole.scoring.statistics import Estimate
from mmrole.scoring.tables import NEIGHBOURS, TITLES

THUMBNAIL_SIDE = 400  # pixels: sharp at the width that the page gives it
THUMBNAIL_QUALITY = 70  # of JPEG: about 20 kB an image


def report_data(report: Report, reviews: Sequence[ModelReviews]) -> JsonObject:
    """The numbers of the page; the models in the order of the report."""
    columns = [model.columns for model in reviews]
    views = _views(report)
    return {
        "judge": report.judge,
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
                "corrected": plain_number(pair.corrected),
                "verdict": pair.verdict,
            }
            for pair in report.pairs
        ],
        "series": {role: name for own in columns for role, name in zip(own["character"], own["series"], strict=True)},
        "n_images": report.n_images,
        "n_samples": len({key for model in reviews for key in model.keys}),
        "draws": report.draws,
        "neighbours": NEIGHBOURS,
    }


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


def _views(report: Report) -> list[str]:
    """What the table can show: what ranks first, then the other splits and the types, of any model or paper row."""
    known = {view for model in report.models for view in model.scores} | {row.split for row in report.paper}
    types = sorted({key for model in report.models for key in model.types})
    views = [*(view for view in (WEIGHTED, POOLED, *SPLITS) if view in known), *map(_type_view, types)]
    return sorted(views, key=lambda view: view != report.ranked_by)


def _type_view(key: tuple[str, str]) -> str:
    return " · ".join(key)


def _model_data(model: ModelReport) -> JsonObject:
    types = {_type_view(key): _scores(scores) for key, scores in model.types.items()}
    groups = {facet: {name: _scores(own) for name, own in by.items()} for facet, by in model.groups.items()}
    position = model.position and {
        "first": _estimate(model.position.first),
        "second": _estimate(model.position.second),
        "difference": _estimate(model.position.difference),
        "p": plain_number(model.position.p_value),
        "agreement": plain_number(model.position.agreement),
    }
    lengths = {
        view: {
            "ratio": plain_number(length.median_ratio),
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


def _coverage(files: Sequence[Coverage]) -> JsonObject:
    unanswered = sum(file.unanswered for file in files)
    gaps = {
        "empty answers": sum(file.empty for file in files),
        **({"answers that were refused or failed": unanswered} if unanswered else {}),
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
    return [plain_number(estimate.value), plain_number(estimate.low), plain_number(estimate.high), estimate.n]


def plain_number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(float(value), 6)


def _thumbnail(image_dir: Path, image: str) -> str | None:
    try:
        picture = open_image(resolve_image(image_dir, image))
    except ImagePathError:
        return None  # the page says so where it would stand
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
