"""The chat page in a real browser: it answers, and takes no word for markup. Needs gradio and Chromium."""

import os
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures.engine import make_engine

from mmrole.chat.conversation import Responder
from mmrole.data.profiles import Character
from mmrole.data.requests import GenerationSettings

gradio = pytest.importorskip("gradio", reason="gradio, which chat.py --web needs, is not installed")
HOSTILE = (
    "<img src=http://192.0.2.1/x onerror=\"document.title='broken'\"> **Hello** "
    "<script>document.title='broken'</script>"
)
PROFILE = "### Personality\n![](http://192.0.2.1/y)"


@pytest.fixture(scope="module")
def page(make_model, tokenizer):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on the path")
    from mmrole.chat.web_guard import private_uploads
    from mmrole.chat.web_page import make_page, make_server

    settings = GenerationSettings(max_new_tokens=8, do_sample=False)
    engine = make_engine(make_model(torch.float32), tokenizer)
    responder = Responder(lambda requests: ([replace(request, settings=settings) for request in requests], []), engine)
    characters = {name: Character(name, "Lantern Bay", "in-distribution", PROFILE) for name in ("Mira", "Odo")}
    with private_uploads(), socket.socket() as listening, sync_api.sync_playwright() as playwright:
        listening.bind(("127.0.0.1", 0))
        server = make_server(make_page(responder, characters, characters["Mira"], None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield page
        browser.close()
        server.should_exit = True
        thread.join()
    assert not page.uploads.exists()


def files_of(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_words_are_shown_as_they_are_and_answered(page):
    box = page.get_by_placeholder("What do you see?")
    box.fill(HOSTILE)
    box.press("Enter")
    said = page.locator(".message.user")
    said.wait_for()
    assert HOSTILE in said.inner_text()
    reply = page.locator(".message.bot")
    reply.wait_for()
    assert page.title() != "broken"
    page.get_by_text("Profile").click()
    page.wait_for_timeout(300)
    outside = [url for url in page.requests if not url.startswith(("http://127.0.0.1", "data:", "blob:"))]
    assert not outside, outside


def test_what_is_no_picture_is_refused_in_words(page, tmp_path, capfd):
    for name in ("notes.png", "other.jpg"):
        (tmp_path / name).write_text("not a picture")
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        page.get_by_text(f"{name} is not a picture that can be read; drop another one.").wait_for()
        box = page.get_by_placeholder("What do you see?")
        box.fill("And now?")
        box.press("Enter")
        page.wait_for_timeout(1000)
        page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    assert "Traceback" not in capfd.readouterr().err


def test_a_picture_is_talked_about(page, pictures, tmp_path):
    pictures[0].save(tmp_path / "photo.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "photo.png")
    page.locator("img[alt='']").or_(page.locator(".image-frame img")).first.wait_for()
    box = page.get_by_placeholder("What do you see?")
    box.fill("What colour is it?")
    box.press("Enter")
    page.locator(".message.user").get_by_text("What colour is it?").wait_for()
    page.locator(".message.bot").wait_for()
    assert page.uploads.stat().st_mode & 0o077 == 0
    assert "photo.png" in files_of(page.uploads)
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    page.locator(".message.user").wait_for(state="detached")
    assert "photo.png" not in files_of(page.uploads)
    box.fill("What was it?")
    box.press("Enter")
    page.locator(".message.bot").wait_for()


def test_another_character_begins_anew(page):
    page.get_by_role("listbox", name="Character").or_(page.get_by_label("Character")).first.click()
    page.get_by_role("option", name="Odo").click()
    page.locator(".message.user").wait_for(state="detached")
