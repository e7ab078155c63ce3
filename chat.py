"""Talks with a trained agent about an image, in the terminal or in a browser.

    python chat.py --model_path model_weights/MMRole-Agent --role "Iron Man" --image photo.jpg
    python chat.py --model_path model_weights/MMRole-Agent --web
    python chat.py --api_base http://localhost:8000/v1 --api_model NAME --role "Iron Man"    # a server's model

In the terminal: a line is said to the character; /image FILE shows another image, /role NAME calls another character,
both for a new talk, /again forgets what was said, Ctrl-C gives up a reply, /quit or Ctrl-D ends. Whatever fails is said
in a line, and the talk goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from mmrole.backends.api.options import add_api_arguments
    from mmrole.backends.backend import ProcessPlace
    from mmrole.backends.options import BackendOptions, ModelFlag, add_model_arguments, find_backend
    from mmrole.base.arguments import at_least
    from mmrole.base.errors import UserError, run
    from mmrole.base.terminal import find_file, keep_any_bytes, readable
    from mmrole.chat.conversation import Conversation, Responder
    from mmrole.chat.web_guard import forget_settings
    from mmrole.data.images import ImagePathError, open_photo
    from mmrole.data.profiles import Character, find_character, read_characters
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from PIL import Image


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, model_path="model_weights/MMRole-Agent")
    add_api_arguments(parser, job=False)
    add = parser.add_argument_group("talk").add_argument
    add("--role", help="who answers, as profiles.json names the character")
    add("--image", metavar="FILE", help="what the talk is about")
    add(
        "--data_root",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder with profiles/{in,out-of}-distribution/ (default: the current folder)",
    )
    add("--no_random", action=ModelFlag, nargs=0, default=False, help="greedy: always the most probable token")
    add(
        "--seed",
        action=ModelFlag,
        type=at_least(0, most=2**63 - 1),
        default=1234,
        help="seed of the sampling (default: %(default)s)",
    )
    add("--max_new_tokens", action=ModelFlag, type=at_least(1), metavar="N", help="most tokens of a reply")
    add = parser.add_argument_group("browser (needs gradio: pip install -e '.[web]')").add_argument
    add("--web", action="store_true", help="serve a page to chat in, on this machine only")
    add("--port", type=at_least(1, most=65535), default=7860, help="of the page (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if not arguments.web and arguments.role is None:
        parser.error("give --role NAME, or --web")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = parse_arguments(argv)
    if arguments.web:
        check_web(arguments.port)
    characters = read_characters(arguments.data_root)
    character = None if arguments.role is None else find_character(arguments.role, characters)
    path = None if arguments.image is None else find_file(arguments.image)
    image = None if path is None else read_image(path)
    backend = find_backend(BackendOptions.of_flags(vars(arguments)), place=ProcessPlace(progress=sys.stderr.isatty()))
    backend.fit([])
    print(backend, file=sys.stderr)
    with backend.open() as generator:
        responder = Responder(backend.fit, generator)
        if character is None or arguments.web:
            forget_settings()
            from mmrole.chat.web_page import serve

            serve(responder, characters, character, path, arguments.port)
        else:
            talk(Conversation(character, image), responder, characters)
    return 0


def check_web(port: int) -> None:
    """Raises UserError if the page cannot be served."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("--web needs gradio, which is not installed; run: pip install -e '.[web]'")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; give another --port") from None


def read_image(path: Path) -> Image.Image:
    """The picture in a file; raises UserError if there is none that can be read."""
    try:
        return open_photo(path)
    except ImagePathError as error:
        raise UserError(f"{error}; give another image") from None


def talk(conversation: Conversation, responder: Responder, characters: Mapping[str, Character]) -> None:
    """Reads lines from the terminal, or another standard input, until it ends."""
    keep_any_bytes()
    if conversation.image is None:
        print("no image; /image FILE shows one", file=sys.stderr)
    while (line := _read_line()) is not None:
        words = line.strip()
        command, _, argument = words.partition(" ")
        if command == "/quit":
            return
        if command.startswith("/"):
            try:
                _obey(command, argument.strip(), conversation, characters)
            except UserError as error:
                print(error, file=sys.stderr)
        elif words:
            _answer(conversation, responder, readable(words))


def _read_line() -> str | None:
    """A line, or None at the end. In a terminal the first Ctrl-C, which may be for a reply just ended, ends nothing."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    for interrupted in (False, True):
        try:
            return input("you: " if terminal else "")
        except KeyboardInterrupt:
            if interrupted or not terminal:
                raise
            print("\nCtrl-C again, Ctrl-D or /quit ends", file=sys.stderr)
        except (EOFError, RuntimeError, OSError):  # the end of the input, no input at all, a terminal that is gone
            print()
            break
    return None


def _answer(conversation: Conversation, responder: Responder, words: str) -> None:
    """Prints a reply as it comes; given up half-way, it is not remembered."""
    name = f"{conversation.character.name}: "  # until a word is said
    pieces = conversation.reply(responder, words)
    try:
        for piece in pieces:
            print(name + piece, end="", flush=True)
            name = ""
    except KeyboardInterrupt:
        pieces.close()
        print(f"{name} …", flush=True)
    except UserError as error:
        print("" if name else "\n", end="", flush=True)
        print(f"{error}; /again begins a new talk", file=sys.stderr)
    else:
        print(name, flush=True)


def _obey(command: str, argument: str, conversation: Conversation, characters: Mapping[str, Character]) -> None:
    """Carries out a command; a new image or character begins a new talk."""
    if command == "/image" and argument:
        conversation.image = read_image(find_file(argument))
    elif command == "/role" and argument:
        conversation.character = find_character(argument, characters)
    elif command != "/again":
        raise UserError("commands: /image FILE, /role NAME, /again, /quit")
    conversation.history.clear()
    about = "no image" if conversation.image is None else "the image"
    print(f"a new talk with {conversation.character.name} about {about}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
