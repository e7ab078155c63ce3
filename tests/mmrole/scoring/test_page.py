"""The results page: what is in the file."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest
from fixtures.pages import PAPER, read_page, record
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrole.data.prompts import DIMENSIONS, HUMAN_SPEAKER, METRICS
from mmrole.scoring.measures import WEIGHTED


class Elements(HTMLParser):
    """Start tags with attributes, and the text of script and style elements, as an HTML parser sees them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, dict, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.texts.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style") and self.texts:
            tag, attributes, text = self.texts[-1]
            self.texts[-1] = (tag, attributes, text + data)

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))

    @property
    def policy(self) -> str:
        return next(own["content"] for tag, own in self.tags if own.get("http-equiv") == "Content-Security-Policy")

    def json(self, name: str):
        return json.loads(next(text for _, attributes, text in self.texts if attributes.get("id") == name))


def test_the_numbers_are_those_of_the_report(tmp_path):
    records = {"good": [record(1), record(2)], "weak": [record(1, 4.5), record(2, 9.0)]}
    data = Elements(read_page(tmp_path, records, PAPER).read_text("utf-8")).json("report-data")
    good, weak = data["models"]
    assert (good["name"], weak["name"]) == ("good", "weak")
    assert good["scores"]["In-Test"]["Overall"][0] == 1.0
    assert weak["scores"]["In-Test"]["Fluency"][0] == 0.75
    assert weak["groups"]["character"]["Captain"]["Overall"][0] == 0.75
    assert data["views"][0] == "In-Test"
    assert set(data["views"]) == {"In-Test", WEIGHTED, "In-Test · comment"}
    assert data["dimensions"] == {name: list(metrics) for name, metrics in DIMENSIONS.items()}
    assert data["paper"] == [{"name": "Paper model", "view": WEIGHTED, "scores": PAPER[0].scores}]


def test_samples_of_models_stand_side_by_side(tmp_path):
    missing = record(3, rm_review={"Fluency": {"review": "No.", "score": None, "reason": "no marker"}})
    page = read_page(tmp_path, {"a": [record(1), record(2, answer="")], "b": [record(2), missing]})
    elements = Elements(page.read_text("utf-8"))
    samples = elements.json("sample-data")["samples"]
    assert [sample["id"] for sample in samples] == [f"Captain_comment_{number}" for number in (1, 2, 3)]
    by_id = {sample["id"][-1]: sample for sample in samples}
    assert by_id["1"]["scores"] == [1.0, False]  # of another model no such sample
    assert by_id["2"]["scores"] == [None, 1.0]
    assert elements.json("answers-0") == ["Ahoy! Answer 1.", None]
    assert elements.json("answers-1") == ["", "Ahoy! Answer 2."]
    none, second = elements.json("reviews-2")
    assert none is None
    assert second["first"][METRICS.index("Fluency")]["reason"] == "no marker"
    assert second["first"][0] is None
    assert by_id["1"]["history"] == [[HUMAN_SPEAKER, "Who are you?"], ["Captain", "The captain."]]
    assert by_id["1"]["last"] == "What is that, captain 1?"


def unanswered(number: int) -> dict:
    """A record whose answer was refused."""
    refused = record(number, answer="")
    refused["conversations"][1]["answer_error"] = "refused: not that"
    return {key: value for key, value in refused.items() if key != "rm_review"}


def test_why_there_is_no_answer_is_there(tmp_path):
    page = read_page(tmp_path, {"a": [record(1), unanswered(2), record(3, answer="")]})
    elements = Elements(page.read_text("utf-8"))
    errors = [elements.json(f"reviews-{number}")[0].get("error") for number in range(3)]
    assert errors == [None, "refused: not that", None]
    assert "answers that were refused or failed" in json.dumps(elements.json("report-data"))


def test_reviews_with_the_answers_exchanged_are_there(tmp_path):
    swapped = {"review": "Now. [Scores]: (9, 6)", "score": [6.0, 9.0]}
    page = read_page(tmp_path, {"a": [record(1, rm_review_swapped=dict.fromkeys(METRICS, swapped))]})
    elements = Elements(page.read_text("utf-8"))
    (reviews,) = elements.json("reviews-0")
    assert [review["score"] for review in reviews["swapped"]] == [[6.0, 9.0]] * 8
    assert elements.json("sample-data")["samples"][0]["scores"][0] == pytest.approx((1 + 6 / 9) / 2, abs=1e-6)
    assert elements.json("report-data")["models"][0]["position"]["difference"][0] == pytest.approx(1 / 3, abs=1e-6)


def test_thumbnails_are_embedded_once_and_bounded(tmp_path):
    folder = tmp_path / "images" / "Ships"
    folder.mkdir(parents=True)
    Image.new("RGB", (3000, 1500), "teal").save(folder / "1.png")
    (folder / "2.png").write_bytes(b"not an image")
    records = [record(number) for number in (1, 2, 3)]
    records += [record(4, image="Ships/1.png"), record(5, image="../images/Ships/1.png")]
    page = read_page(tmp_path, {"a": records}, image_dir=tmp_path / "images").read_text("utf-8")
    images = Elements(page).json("image-data")
    assert list(images) == ["Ships/1.png"]
    data = images["Ships/1.png"].removeprefix("data:image/jpeg;base64,")
    (tmp_path / "thumbnail.jpg").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "thumbnail.jpg") as thumbnail:
        assert thumbnail.size == (400, 200)
    assert page.count(data) == 1


def test_nothing_is_fetched_and_only_its_own_script_may_run(tmp_path):
    elements = Elements(read_page(tmp_path, {"a": [record(1)]}).read_text("utf-8"))
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements.tags}
    for _, attributes in elements.tags:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    allowed = {}
    for tag, attributes, text in elements.texts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            allowed[tag] = f"'sha256-{digest}'"
    directives = dict(part.strip().split(" ", 1) for part in elements.policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "script-src": allowed["script"],
        "style-src": allowed["style"],
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_same_reviews_give_the_same_page(tmp_path):
    pages = [read_page(tmp_path / name, {"a": [record(1), record(2)]}).read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


@settings(max_examples=30)
@given(st.lists(st.text(), min_size=1, max_size=3))
def test_no_text_ends_its_script_element(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("page")
    records = [record(number, answer=f"x</script><!--<script>{text}") for number, text in enumerate(texts)]
    page = read_page(folder, {"a": records}).read_text("utf-8")
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags].count("script") == 4 + 2 * len(texts)
    answers = [elements.json(f"answers-{number}")[0] for number in range(len(texts))]
    assert answers == [item["conversations"][1]["answer"] for item in records]
