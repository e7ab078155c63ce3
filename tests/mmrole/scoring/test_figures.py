"""Tests of the figures: all are drawn, equal data give equal files, and unusual reports can be drawn."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mmrole.scoring.figures import draw_figures
from mmrole.scoring.figures_samples import short_name
from mmrole.scoring.paper import PAPER_ROWS
from mmrole.scoring.report import make_report
from mmrole.scoring.reviews import ModelReviews, read_models

NAMES = ["overall", "dimensions", "radar", "types", "characters", "distributions", "length"]


def test_figures_of_the_published_models(published: list[ModelReviews], tmp_path: Path) -> None:
    report = make_report(published, PAPER_ROWS, draws=200)
    files = draw_figures(tmp_path / "one", report, published)
    assert [path.name for path in files] == [f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")]
    for path in files:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            with Image.open(path) as image:
                assert min(image.size) > 400
                assert len(image.convert("L").getcolors()) > 20
    again = draw_figures(tmp_path / "two", report, published)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


@pytest.mark.parametrize("pairs", [(8, 10), None])
def test_figures_of_one_model_with_strange_names(
    pairs: object, review_record: Callable, write_reviews: Callable, tmp_path: Path
) -> None:
    swapped = review_record(0, (7, 10))["rm_review"]
    records = [review_record(number, pairs, role="$x_{1$", rm_review_swapped=swapped) for number in range(3)]
    models = read_models([write_reviews(records, model="$\\frac" + "m" * 60, kind="$t")], {})
    files = draw_figures(tmp_path, make_report(models, draws=200), models)
    assert ("position.png" in [path.name for path in files]) == (pairs is not None)


def test_no_name_hides_its_label() -> None:
    """Matplotlib leaves labels that begin with `_` out of legends."""
    assert (short_name("_base"), short_name("base_1"), short_name("$x" * 40)[-1]) == (" _base", "base_1", "…")
