"""chat.py as a person uses it: a talk through standard input, commands, mistakes in one line."""

import importlib.util
import json
import socket
import subprocess
import sys

import pytest
from PIL import Image

from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import byte_vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("chat")
    config = random_config(256, num_hidden_layers=1, visual_layers=1, image_size=224)
    write_checkpoint(folder / "model", random_model(config, seed=1, dtype=torch.float32), byte_vocabulary())
    profiles = folder / "profiles" / "in-distribution"
    profiles.mkdir(parents=True)
    (profiles / "roles.json").write_text(json.dumps({"Lantern Bay": ["Mira", "Old Odo"]}), encoding="utf-8")
    (profiles / "profiles.json").write_text(json.dumps({"Mira": "A pilot.", "Old Odo": "A guard."}), encoding="utf-8")
    Image.new("RGB", (60, 40), "teal").save(folder / "sea.png")
    return folder


@pytest.fixture
def chat(folder, repository):
    def run(*flags, said=""):
        command = [sys.executable, repository / "chat.py", "--model_path", "model", "--max_new_tokens", "4", *flags]
        return subprocess.run(command, cwd=folder, input=said, capture_output=True, text=True, encoding="utf-8")

    return run


def test_a_talk(chat):
    said = (
        "Hello.\n\n/role old_odo\nAnd you?\n/image sea.png\nWhat is it?\n/sing\n/image gone.png\n/again\n/quit\nnever\n"
    )
    done = chat("--role", "mira", "--image", "sea.png", "--no_random", said=said)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith(("Mira:", "Old Odo:"))] == [
        "Mira",
        "Old Odo",
        "Old Odo",
    ]
    told = done.stderr.splitlines()
    assert "commands: /image FILE, /role NAME, /again, /quit" in told
    assert "gone.png: no such file; give another image" in told
    assert "a new talk with Old Odo about the image" in told


def test_commands_with_mistakes_cost_no_talk(chat):
    said = "/image sea.png\n/image profiles\n/image\nHello.\n"
    done = chat("--role", "mira", "--no_random", said=said)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Mira: ")
    told = done.stderr.splitlines()
    assert "no image; /image FILE shows one" in told
    assert "profiles: not a file; give another image" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--role", "Mirra"], "error: role Mirra: not in profiles.json; did you mean Mira?"),
        (["--role", "Mira", "--image", "gone.png"], "error: gone.png: no such file; give another image"),
        (["--role", "Mira", "--image", "profiles/in-distribution/roles.json"], "give another image"),
        (["--role", "Mira", "--data_root", "model"], "has no profiles/in-distribution/roles.json"),
        (["--role", "Mira", "--model_path", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_gets_one_line(chat, flags, message):
    done = chat(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_a_taken_port_is_told_before_the_model_loads(chat):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = chat("--web", "--port", str(port), "--model_path", "nowhere")
    assert done.returncode == 2
    assert done.stderr == f"error: port {port}: Address already in use; give another --port\n"


def test_somebody_must_be_called(chat):
    done = chat()
    assert done.returncode == 2
    assert "--role NAME, or --web" in done.stderr
