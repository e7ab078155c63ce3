"""The results page: what is in the file, and what a real browser makes of it."""

import base64
import hashlib
import http.server
import json
import re
import shutil
import threading
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrole.data.prompts import DIMENSIONS, HUMAN_PARTNER, HUMAN_SPEAKER, METRICS, role_play_prompt
from mmrole.scoring.measures import WEIGHTED
from mmrole.scoring.page import write_page
from mmrole.scoring.report import PaperRow, make_report
from mmrole.scoring.reviews import read_models

PAPER = [PaperRow("Paper model", WEIGHTED, dict.fromkeys(("Overall", *METRICS), 1.25))]


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


def record(number: int, score: float = 9.0, **fields) -> dict:
    """A reviewed answer."""
    answer = fields.pop("answer", f"Ahoy! Answer {number}.")
    review = {"review": f"Both are fine ({number}). [Scores]: ({score}, 9)", "score": [score, 9.0]}
    question = role_play_prompt(
        role="Captain",
        series="Ships",
        other_role=HUMAN_PARTNER,
        profiles={"Captain": "A captain."},
        history=[(HUMAN_SPEAKER, "Who are you?"), ("Captain", "The captain.")],
        last_utterance=f"What is that, captain {number}?",
    )
    return {
        "id": f"Captain_comment_{number}",
        "system": "",
        "image": f"Ships/{number}.png",
        "conversations": [
            {"from": "user", "value": question},
            {"from": "assistant", "value": f"A ship, number {number}.", "answer": answer},
        ],
        "role": "Captain",
        "script": "Ships",
        "other_role": HUMAN_PARTNER,
        "rm_review": dict.fromkeys(METRICS, review) if answer else {},
    } | fields


def read_page(folder, models: dict[str, list[dict]], paper=(), image_dir=None):
    """Writes reviews by model, and the page about them; returns its path."""
    for name, records in models.items():
        path = folder / "in-test_reviews" / name / "comment_test.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(json.dumps(records, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    reviews = read_models([folder / "in-test_reviews"], {})
    return write_page(folder / "report", make_report(reviews, paper, draws=100), reviews, image_dir)


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


# In a browser


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium; tests that need it are skipped without."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens a file, notes the addresses that it asks for and its errors, and waits until it is drawn."""
    contexts = []

    def opened(path, width=1400, height=900):
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        tab = context.new_page()
        tab.requested, tab.errors = [], []
        tab.on("request", lambda request: tab.requested.append(request.url))
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
        tab.goto(path.as_uri())
        tab.wait_for_selector("#detail h3")
        return tab

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def outside():
    """A server whose requests are noted: what a page on the network could be asked to fetch."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.hits = hits
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    server.server_close()


def hostile(address: str) -> str:
    """Text that runs or fetches something wherever it is taken for markup."""
    run = "window.ran=(window.ran||0)+1"
    return "\n".join(
        [
            f"<script>{run}</script>",
            f"</script><script>{run}</script>",
            f"<script src={address}/script.js></script>",
            f'"><img src={address}/image.png onerror="{run}">',
            f"'><img src='x' onerror='{run}'>",
            f"<svg/onload={run}><animate onbegin={run} attributeName=x>",
            f"<details open ontoggle={run}>",
            f"<iframe src={address}/frame srcdoc='<script>top.ran=1</script>'></iframe>",
            f"<style>@import url({address}/style.css); body {{ background: url({address}/background.png) }}</style>",
            f"<link rel=stylesheet href={address}/link.css><link rel=prefetch href={address}/prefetch>",
            f"<meta http-equiv=refresh content='0;url={address}/refresh'><base href={address}/base/>",
            f"<form action={address}/form><input autofocus onfocus={run}></form>",
            f"<a href='javascript:{run}'>javascript:{run}</a> [x](javascript:{run}) ![x]({address}/markdown.png)",
            f"<object data={address}/object></object><embed src={address}/embed><video src={address}/video autoplay>",
            f"<template><script>{run}</script></template><!-- <script>{run}</script> --><![CDATA[ ]]>",
            f"${{{run}}} `${{{run}}}` {{{{constructor.constructor('{run}')()}}}} $policy $$ \\u003cscript>{run}",
            "&lt;script&gt; &#60;script&#62; \x00 \x1b[2J \u2028 \u202e \ufeff",
        ]
    )


def test_a_hostile_answer_runs_nothing_and_fetches_nothing(tmp_path, open_page, outside):
    text = hostile(outside.address)
    name = "<img src=x onerror=window.ran=1>"
    review = {"review": f"{text} \ud800", "score": [9.0, 9.0]}
    unscored = {"review": text, "score": None, "reason": text}
    evil = record(
        1,
        answer=text,
        id=text,
        role=text,
        script=text,
        other_role=text,
        image=f'"><img src={outside.address}/field.png>',
        conversations=[{"from": "user", "value": text}, {"from": "assistant", "value": text, "answer": text}],
        rm_review=dict.fromkeys(METRICS, review) | {METRICS[0]: unscored},
    )
    paper = [PaperRow(text, "In-Test", PAPER[0].scores)]
    tab = open_page(read_page(tmp_path, {name: [evil, record(2)], "other": [record(2)]}, paper))
    tab.evaluate("open(browser.samples.find((sample) => sample.id.includes('<script>')))")
    tab.click("#toggle-reviews")
    for summary in tab.query_selector_all("summary"):
        summary.click()
    for select in tab.query_selector_all("select"):
        if select.is_visible():
            for index in range(select.evaluate("(select) => select.options.length")):
                select.select_option(index=index)
            select.select_option(index=0)
    for button in tab.query_selector_all("thead button, .chip"):
        button.evaluate("(button) => button.click()")
    tab.evaluate("open(browser.samples.find((sample) => sample.id.includes('<script>')))")
    tab.wait_for_timeout(200)

    answer = tab.evaluate("[...document.querySelectorAll('.board > :not(.head) > .words')].map((e) => e.textContent)")
    assert text in answer
    assert tab.evaluate("window.ran") is None
    assert tab.errors == []
    assert outside.hits == []
    assert {url.split("#")[0] for url in tab.requested} == {(tmp_path / "report/index.html").as_uri()}
    assert tab.evaluate("document.querySelectorAll('img, iframe, object, embed, video, base, form, link').length") == 0
    assert tab.evaluate("document.scripts.length") == 4 + 2 * 2
    assert tab.evaluate("[...document.querySelectorAll('a')].every((a) => a.getAttribute('href').startsWith('#'))")


def test_the_policy_holds_where_escaping_would_fail(tmp_path, open_page, outside):
    """Markup that does get into the page: the browser itself runs and fetches nothing of it.

    No policy keeps a page from being left, so the line with the refresh is not among it.
    """
    tab = open_page(read_page(tmp_path, {"a": [record(1)]}))
    markup = "\n".join(line for line in hostile(outside.address).splitlines() if "refresh" not in line)
    tab.evaluate("(text) => { document.body.insertAdjacentHTML('beforeend', text); }", markup)
    tab.evaluate(
        "() => { const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s); }"
    )
    tab.evaluate(f"() => fetch('{outside.address}/fetch').catch(() => 0)")
    tab.wait_for_timeout(300)
    assert outside.hits == []
    assert tab.evaluate("window.ran") is None


@pytest.fixture
def two_models(tmp_path):
    records = {
        "good": [record(1), record(2, role="Mate"), record(3, answer="")],
        "weak": [record(1, 4.5), record(2, 3.0, role="Mate"), record(3, 9.0, answer="A whale!")],
    }
    folder = tmp_path / "images" / "Ships"
    folder.mkdir(parents=True)
    Image.new("RGB", (60, 40), "teal").save(folder / "1.png")
    return read_page(tmp_path, records, PAPER, tmp_path / "images")


def rows(tab, table: str) -> list[str]:
    """The first cells of a table's rows, without what is small in them."""
    return tab.evaluate(
        """(table) => [...document.querySelectorAll(`${table} tbody th`)].map((cell) =>
        [...cell.childNodes].filter((node) => node.nodeName !== "SMALL").map((node) => node.textContent).join(""))""",
        table,
    )


def test_the_table_sorts_and_shows_the_papers_rows(two_models, open_page):
    tab = open_page(two_models)
    assert rows(tab, "#table") == ["good", "weak"]
    tab.click('[data-sort="Overall"]')
    assert rows(tab, "#table") == ["weak", "good"]
    assert tab.get_attribute("#table th:has([data-sort='Overall'])", "aria-sort") == "ascending"
    tab.select_option("#view", WEIGHTED)
    assert rows(tab, "#table") == ["Paper model (paper)"]
    tab.uncheck("#paper")
    assert rows(tab, "#table") == []
    assert tab.errors == []


def test_the_browser_of_samples_searches_filters_and_links(two_models, open_page):
    tab = open_page(two_models)
    listed = "[...document.querySelectorAll('#list .who')].map((cell) => cell.textContent)"
    assert tab.evaluate(listed) == ["Captain", "Mate", "Captain"]
    turns = ["humanWho are you?", "CaptainThe captain.", "a curious humanWhat is that, captain 1?"]
    assert tab.locator("#detail .turn").all_text_contents() == [*turns, "Captain (reference answer)A ship, number 1."]
    assert tab.evaluate("document.querySelector('#detail img').naturalWidth") == 60
    tab.fill("#search", "WHALE")
    tab.wait_for_selector("#list li:only-child")
    assert "Empty answer" in tab.text_content("#detail .board")
    assert "The image is not available" in tab.text_content("#detail .picture")
    tab.fill("#search", "fine")
    tab.wait_for_selector("#list:empty", state="hidden")
    tab.check("#search-reviews")
    assert len(tab.evaluate(listed)) == 3
    tab.click("#clear")
    tab.select_option('[data-filter="role"]', "Mate")
    assert tab.evaluate(listed) == ["Mate"]
    address = tab.evaluate("document.querySelector('#detail a.id').href")
    other = tab.context.new_page()
    other.goto(address)
    other.wait_for_selector("#detail h3")
    assert other.text_content("#detail h3") == "Mate with a curious human"
    tab.select_option('[data-filter="role"]', "")
    tab.select_option("#order", "spread")
    assert tab.evaluate(listed)[0] == "Mate"
    tab.keyboard.press("Tab")
    tab.locator("#samples-title").click()
    tab.keyboard.press("j")
    assert tab.text_content("#detail h3") == "Captain with a curious human"


def test_a_metric_opens_the_reviews_of_all_models_and_the_heat_map_leads_to_samples(two_models, open_page):
    tab = open_page(two_models)
    assert tab.locator(".board .review").count() == 0
    tab.click('[data-metric="Fluency"]')
    assert tab.locator(".board .review").all_text_contents() == [
        "Both are fine (1). [Scores]: (9.0, 9)",
        "Both are fine (1). [Scores]: (4.5, 9)",
    ]
    assert rows(tab, "#heat") == ["Captain", "Mate"]
    tab.locator("#heat tbody tr").nth(1).locator("button").nth(1).click()
    assert tab.text_content("#detail h3") == "Mate with a curious human"
    assert tab.text_content("#count") == "1 of 3 samples"


def test_names_that_javascript_has_for_itself_are_names(tmp_path, open_page):
    names = ("__proto__", "constructor")
    records = [record(n, role=name, image=name, script=name) for n, name in enumerate(names)]
    page = read_page(tmp_path, {"__proto__": records, "toString": [record(5, role="hasOwnProperty"), *records[:1]]})
    tab = open_page(page)
    assert sorted(rows(tab, "#table")) == ["__proto__", "toString"]
    assert rows(tab, "#heat") == ["__proto__", "constructor", "hasOwnProperty"]
    for name in names:
        tab.select_option('[data-filter="role"]', name)
        assert tab.text_content("#detail .picture") == f"The image is not available:{name}"
    assert tab.errors == []


def test_many_models_can_be_chosen_from(tmp_path, open_page):
    records = {f"model-{n:02}": [record(1, 9 - n / 8), record(2, 9 - n / 8)] for n in range(30)}
    tab = open_page(read_page(tmp_path, records))
    assert rows(tab, "#table") == [f"model-{n:02}" for n in range(12)]
    assert tab.text_content("#pairs-note") == "135 of 435 pairs"  # at most five ranks apart
    assert tab.locator("#group-table thead th").count() == tab.locator("#heat thead th").count() == 13
    assert tab.locator("#detail .board .head").count() == 12
    tab.fill("#model-words", "L-20 L-29")
    tab.wait_for_selector("#table tbody tr:nth-child(3)", state="detached")
    assert rows(tab, "#table") == ["model-20", "model-29"]
    assert tab.locator("#detail .board .head").count() == 2
    assert tab.locator("#list li:first-child .scores span[title]").count() == 2
    tab.fill("#model-words", "")
    tab.select_option("#model-most", "30")
    assert len(rows(tab, "#table")) == 30
    tab.select_option("#pair-choice", label="model-07 and each other model")
    assert tab.text_content("#pairs-note") == "29 of 435 pairs"
    tab.select_option("#pair-choice", "all")
    assert tab.locator("#pair-table tbody tr").count() == 435
    assert tab.errors == []


@pytest.mark.parametrize("width", [360, 390, 768, 1400])
def test_the_page_is_as_wide_as_the_window(two_models, open_page, width):
    tab = open_page(two_models, width=width)
    tab.click("#toggle-reviews")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.querySelectorAll('#radar svg, #bars svg').length") == 2
    assert not re.search("NaN|undefined|null", tab.inner_text("main"))
    assert not re.search("NaN|undefined", tab.inner_html("#figures"))


def test_the_published_reviews_make_a_page(shared, tmp_path, open_page):
    models = read_models([shared / "mmrole/eval/in-test_reviews"], {})
    page = write_page(tmp_path, make_report(models, draws=200), models, shared / "mmrole/images")
    assert page.stat().st_size < 20e6
    tab = open_page(page)
    assert rows(tab, "#table") == ["gpt-4-turbo", "mmrole-agent", "qwen-vl-chat", "yi-vl-6b"]
    assert tab.text_content("#table tbody tr:nth-child(2) td").startswith("0.999")
    assert tab.text_content("#count") == "216 samples"
    assert tab.locator("#heat tbody tr").count() == 72
    assert tab.errors == []
