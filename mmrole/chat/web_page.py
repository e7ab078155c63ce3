"""A page in the browser to talk with characters: pick one, drop an image, chat. Needs gradio."""

from __future__ import annotations

import html
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio
import uvicorn
from fastapi import FastAPI
from gradio.data_classes import ImageData
from gradio.themes import Soft
from PIL import Image

from mmrole.base.errors import UserError
from mmrole.chat.conversation import Conversation, Responder
from mmrole.chat.web_guard import LARGEST_UPLOAD, ThisMachineOnly, forget_settings, private_uploads
from mmrole.data.images import ImagePathError, open_photo
from mmrole.data.profiles import Character
from mmrole.data.prompts import HUMAN_SPEAKER

Messages = list[dict[str, str]]

THEME = Soft(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
"""With fonts of the machine: the page calls no other address."""


def serve(
    responder: Responder,
    characters: Mapping[str, Character],
    character: Character | None,
    image: Path | None,
    port: int,
) -> None:
    """Serves the page on this machine until it is interrupted.

    Args:
        responder: what answers for the characters.
        characters: by name.
        character: whom the page shows first; the first one by default.
        image: what it shows first.
        port: of the page.

    Raises:
        UserError: the port is not free.
    """
    first = character or next(iter(characters.values()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is uploaded is removed then, too
    forget_settings()
    with private_uploads(), socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
            listening.listen()
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; give another --port") from None
        server = make_server(make_page(responder, characters, first, image))
        print(f"http://127.0.0.1:{port} (Ctrl-C ends)", flush=True)
        server.run(sockets=[listening])


def make_server(page: gradio.Blocks) -> uvicorn.Server:
    """What serves a page on a socket, to this machine only, whatever the environment says.

    gradio's own `launch` would open the page to others where the environment asks for it.
    """
    # One reply at a time: the model is shared by all who have the page open.
    page.queue(default_concurrency_limit=1)
    app = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        server_name="127.0.0.1",
        max_file_size=LARGEST_UPLOAD,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        footer_links=[],
    )
    # Requests without an end, by which the page gets its news, end with the page.
    return uvicorn.Server(uvicorn.Config(ThisMachineOnly(app), log_level="error", timeout_graceful_shutdown=1))


def make_page(
    responder: Responder, characters: Mapping[str, Character], first: Character, image: Path | None
) -> gradio.Blocks:
    """The page, not yet served."""

    def say(words: str, messages: Messages, name: str, photo: str | None) -> Iterator[tuple[str, Messages]]:
        words = words.strip()
        if not words:
            yield "", messages
            return
        conversation = Conversation(characters[name], _read(photo), _history(messages, name))
        shown = [*messages, _message("user", words), _message("assistant", "")]
        yield "", shown
        reply = ""
        try:
            for piece in conversation.reply(responder, words):
                reply += piece
                yield "", [*shown[:-1], _message("assistant", reply)]
        except UserError as error:
            yield words, messages  # as if nothing had been said
            raise gradio.Error(html.escape(f"{error}; start again."), print_exception=False) from None

    def call(name: str) -> tuple[str, dict[str, Any]]:
        return _introduction(characters[name]), gradio.update(value=[], label=_title(name))

    def look(photo: str | None, before: str | None) -> tuple[Messages, str | None]:
        if photo != before:
            _remove(before)
        try:
            _read(photo)
        except gradio.Error:
            _remove(photo)
            raise
        return [], photo

    with gradio.Blocks(title="MMRole", analytics_enabled=False, fill_height=True) as page:
        gradio.Markdown("# MMRole\nPick a character, drop an image, and talk about it.")
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=2, min_width=280):
                role = gradio.Dropdown(list(characters), value=first.name, label="Character")
                picture = gradio.Image(
                    value=None if image is None else str(image),
                    type="filepath",
                    label="Image",
                    height=280,
                    sources=["upload", "clipboard"],
                )
                # gradio would decode the file itself first, with a traceback for whatever is no picture. This holds as
                # long as no event has the component among its outputs: it would be made anew.
                picture.preprocess = _uploaded
                with gradio.Accordion("Profile", open=False):
                    profile = gradio.Textbox(_introduction(first), show_label=False, lines=12, interactive=False)
            with gradio.Column(scale=3, min_width=320):
                # Without the button that would send the conversation to a server.
                talk = gradio.Chatbot(
                    label=_title(first.name),
                    height="60vh",
                    render_markdown=False,
                    buttons=["copy"],
                    placeholder="Drop an image, then ask about it.",
                )
                words = gradio.Textbox(label="You", placeholder="What do you see?", submit_btn=True, autofocus=True)
                again = gradio.Button("Start again")
        said = words.submit(say, [words, talk, role, picture], [words, talk])
        # A reply on its way must not come into the talk after it.
        again.click(list, outputs=talk, cancels=said)
        role.change(call, role, [profile, talk], cancels=said)
        seen = gradio.State(delete_callback=_remove)  # when the page is closed
        picture.change(look, [picture, seen], [talk, seen], cancels=said)
    return page


def _history(messages: Messages, name: str) -> list[tuple[str, str]]:
    """The talk in the page as a conversation's history."""
    speakers = {"user": HUMAN_SPEAKER, "assistant": name}
    return [(speakers[message["role"]], _text(message)) for message in messages]


def _text(message: dict) -> str:
    """A message's text: what comes back from the page is a list of parts."""
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return html.unescape(text)


def _message(role: str, content: str) -> dict[str, str]:
    # The page takes messages for HTML, even without Markdown: an image in one could call any address.
    return {"role": role, "content": html.escape(content, quote=False)}


def _uploaded(payload: ImageData | None) -> str | None:
    """The path of an uploaded file, which is in gradio's own folder."""
    return None if payload is None else payload.path


def _read(photo: str | None) -> Image.Image | None:
    if photo is None:
        return None
    try:
        return open_photo(photo)
    except ImagePathError:
        words = f"{Path(photo).name} is not a picture that can be read; drop another one."
        raise gradio.Error(html.escape(words), print_exception=False) from None


def _remove(upload: str | None) -> None:
    """Removes an upload that is talked about no more."""
    if upload is not None:
        Path(upload).unlink(missing_ok=True)


def _title(name: str) -> str:
    return f"A talk with {name}"


def _introduction(character: Character) -> str:
    profile = re.sub(r"^#+ *", "", character.profile, flags=re.MULTILINE)
    return f"{character.name} · {character.series}\n\n{profile}"
