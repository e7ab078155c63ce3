"""The results page: one HTML file that needs no network, with tables, figures and a browser of samples.

What models and data sets wrote is data on the page: JSON in inert script elements, which the page's own script shows
as text. Should a hole be left in that, the content security policy lets no other script run and nothing be fetched.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from data_utils.fields import Json
from data_utils.files import replacing
from mmrole.scoring.page_data import image_data, report_data, sample_data
from mmrole.scoring.report import Report
from mmrole.scoring.reviews import ModelReviews

NAME = "index.html"
_SCRIPTS = ("page_dom.js", "page_table.js", "page_figures.js", "page_samples.js", "page_sample.js", "page_main.js")


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
    page = _page(report, reviews, image_dir)
    path = Path(folder) / NAME
    with replacing(path) as file:
        # A lone surrogate, which UTF-8 cannot hold, is only in the data: there its escape is the same in JSON.
        file.write(page.encode("utf-8", "backslashreplace"))
    return path


def _page(report: Report, reviews: Sequence[ModelReviews], image_dir: str | os.PathLike | None) -> str:
    style, script = _asset("page.css"), "".join(map(_asset, _SCRIPTS))
    samples = sample_data(report, reviews)
    images = image_data([sample["image"] for sample in samples["samples"]], image_dir)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        policy=policy,
        style=style,
        script=script,
        report=_inert_json(report_data(report, reviews)),
        samples=_inert_json(samples),
        images=_inert_json(images),
    )


def _inert_json(obj: Json) -> str:
    """JSON that cannot end the script element that it stands in, nor open a comment there: it has no `<`."""
    text = json.dumps(obj, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression that allows exactly this inline script or style (CSP level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
