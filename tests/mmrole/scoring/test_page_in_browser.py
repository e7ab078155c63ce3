"""The results page: what a real browser makes of it."""

import http.server
import re
import shutil
import threading

import pytest
from fixtures.pages import PAPER, read_page, record
from PIL import Image

from mmrole.data.prompts import METRICS
from mmrole.scoring.measures import WEIGHTED
from mmrole.scoring.page import write_page
from mmrole.scoring.report import PaperRow, make_report
from mmrole.scoring.reviews import read_models


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


def test_why_there_is_no_answer_is_shown(tmp_path, open_page):
    refused = record(1, answer="")
    refused["conversations"][1]["answer_error"] = "refused: <not> that"
    tab = open_page(read_page(tmp_path, {"a": [refused], "b": [record(1)]}))
    assert tab.text_content("#detail .board .empty").startswith("No answer, refused: <not> that")
    assert tab.errors == []


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


def test_where_too_few_images_give_no_interval_there_are_no_empty_brackets(tmp_path, open_page):
    swapped = {"review": "Now. [Scores]: (9, 6)", "score": [6.0, 9.0]}
    tab = open_page(read_page(tmp_path, {"a": [record(1, rm_review_swapped=dict.fromkeys(METRICS, swapped))]}))
    note = tab.text_content("#table-note")
    assert "Position bias: a: " in note
    assert "()" not in note
    assert tab.errors == []


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
