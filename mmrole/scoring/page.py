"""The results page: one HTML file that needs no network, with tables, figures and a browser of samples.

What models and data sets wrote is data on the page: JSON in inert script elements, which the page's own script shows
as text. Should a hole be left in that, the content security policy lets no other script run and nothing be fetched.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template

from mmrole.base.files import replacing
from mmrole.base.json_values import Json
from mmrole.scoring.page_data import image_data, report_data
from mmrole.scoring.page_samples import answer_data, find_samples, review_data, sample_data
from mmrole.scoring.report import Report
from mmrole.scoring.reviews import ModelReviews

NAME = "index.html"
_SCRIPTS = (
    "page_dom.js",
    "page_models.js",
    "page_table.js",
    "page_figures.js",
    "page_samples.js",
    "page_sample.js",
    "page_main.js",
)


def write_page(
    folder: str | os.PathLike,
    report: Report,
    reviews: Sequence[ModelReviews],
    image_dir: str | os.PathLike | None = None,
) -> Path:
    """Writes `index.html`, atomically.

    Args:
        folder: where to; made if needed.
        report: the numbers.
        reviews: what they were computed from: all models of the report.
        image_dir: the image folder, for thumbnails; images that are not there are named on the page. None for no
            thumbnails.

    Returns:
        The file.

    Raises:
        UserError: the file cannot be written; what was there before is unchanged.
    """
    path = Path(folder) / NAME
    with replacing(path) as file:
        for piece in _page(report, reviews, image_dir):
            # A lone surrogate, which UTF-8 cannot hold, is only in the data: there its escape is the same in JSON.
            file.write(piece.encode("utf-8", "backslashreplace"))
    return path


def _page(report: Report, reviews: Sequence[ModelReviews], image_dir: str | os.PathLike | None) -> Iterator[str]:
    """The page in pieces: the reviews of many models are too much to be held as text."""
    style, script = _asset("page.css"), "".join(map(_asset, _SCRIPTS))
    before, after = map(Template, _asset("page.html").split("$data"))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    yield before.substitute(policy=policy, style=style)
    yield _data("report-data", report_data(report, reviews))
    samples = find_samples(report, reviews)
    yield _data("sample-data", sample_data(samples))
    yield _data("image-data", image_data([sample.record.image for sample in samples if sample.record.image], image_dir))
    for number, sample in enumerate(samples):
        yield _data(f"answers-{number}", answer_data(sample))
        yield _data(f"reviews-{number}", review_data(sample))
    yield after.substitute(script=script)


def _data(name: str, obj: Json) -> str:
    """An element that holds JSON, which the page's script finds by its name."""
    return f'<script type="application/json" id="{name}">{_inert_json(obj)}</script>\n'


def _inert_json(obj: Json) -> str:
    """JSON that cannot end the script element that it stands in, nor open a comment there: it has no `<`."""
    text = json.dumps(obj, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return resources.files("mmrole.scoring").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression that allows exactly this inline script or style (CSP level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
