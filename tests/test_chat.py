"""chat.py as a person uses it: a talk through standard input, commands, mistakes in one line."""

import importlib.util
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time

import pytest
from fixtures.servers import completion, error, server
from PIL import Image

from mmrole.data.prompts import ROLE_PLAY_SYSTEM
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import byte_vocabulary

__all__ = ["server"]


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
    Image.new("RGB", (900, 2), "teal").save(folder / "line.png")
    return folder


@pytest.fixture
def chat(folder, repository):
    def run(*flags, said="", **environment):
        command = [sys.executable, repository / "chat.py", "--model_path", "model", "--max_new_tokens", "4", *flags]
        said = said.encode("utf-8", "surrogateescape")
        done = subprocess.run(command, cwd=folder, input=said, capture_output=True, env=os.environ | environment)
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        return done

    return run


@pytest.mark.parametrize("kind", ["qwen3_vl", "llava"])
def test_a_talk_with_a_model_of_transformers(chat, tiny_vlm, kind):
    said = "Hello.\nAnd what else?\n/role old_odo\nAnd you?\n/image line.png\nAnd that?\n/image sea.png\nAnd now?\n"
    limit = ("--max_pixels", "4096") if kind == "qwen3_vl" else ()
    done = chat("--model_path", tiny_vlm(kind), "--role", "mira", "--image", "sea.png", *limit, said=said)
    assert done.returncode == 0, done.stderr
    speakers = [line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith(("Mira:", "Old Odo:"))]
    assert speakers == ["Mira", "Mira", "Old Odo", "Old Odo"]
    assert "an image: 900 x 2 pixels, which the model does not take" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_files_as_terminals_write_them_and_faults_of_files_cost_no_talk(chat, folder):
    Image.new("RGB", (6, 4), "red").save(folder / "my photo (1).png")
    (folder / "sea's.png").write_bytes((folder / "sea.png").read_bytes())
    (folder / "bad\udcff.png").write_bytes((folder / "sea.png").read_bytes())
    sound = [
        "my\\ photo\\ \\(1\\).png",
        "my photo (1).png ",
        "'my photo (1).png'",
        '"my photo (1).png"',
        f"file://{folder}/my%20photo%20(1).png",
        f"'file://localhost{folder}/my%20photo%20(1).png'",
        f"file:{folder}/sea.png",
        "sea's.png",
        "bad\udcff.png",
        "'sea'\\''s.png'",
    ]
    faulty = [
        "~nobody-of-this-name/x",
        "x" * 5000,
        "'x",
        "file://",
        "a\0b",
        "/proc/1/root/x",
        "sea.png/x",
        "\udcff",
        ".",
    ]
    said = "".join(f"/image {text}\n" for text in [*sound, *faulty]) + "Still there?\n"
    done = chat("--role", "mira", "--no_random", "--max_new_tokens", "1", said=said)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert sum("a new talk with Mira about the image" in line for line in told) == len(sound), done.stderr
    assert sum("; give another image" in line for line in told) == len(faulty), done.stderr
    assert done.stdout.startswith("Mira: ")


def test_a_photo_whose_notes_cannot_be_read_is_shown(chat, folder):
    Image.new("RGB", (6, 4), "red").save(folder / "notes.png", exif=b"Exif\0\0MM junk junk")
    done = chat("--role", "mira", "--image", "notes.png", "--no_random", said="/image notes.png\n")
    assert done.returncode == 0, done.stderr
    assert "a new talk with Mira about the image" in done.stderr


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_bytes_of_another_encoding_cost_no_talk(chat, environment):
    said = "hello\n\udcc4\udce3\udcba\n/role \udcc4\n/\udcc4\nmore\n"
    done = chat("--role", "mira", "--no_random", "--max_new_tokens", "1", said=said, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Mira: ") == 3
    assert "Traceback" not in done.stderr


def test_without_any_input(folder, repository):
    command = f"exec {sys.executable} {repository}/chat.py --model_path model --role mira <&-"
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_in_a_terminal_an_interruption_at_the_prompt_costs_no_talk(folder, repository):
    control, terminal = pty.openpty()
    command = [
        sys.executable,
        repository / "chat.py",
        "--model_path",
        "model",
        "--role",
        "mira",
        "--max_new_tokens",
        "1",
    ]
    process = subprocess.Popen(
        command, cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    read_until(control, b"you: ")
    interrupt(process)
    assert b"Ctrl-C again" in read_until(control, b"you: ")
    os.write(control, b"hello\n")
    assert b"Mira: " in read_until(control, b"you: ")
    interrupt(process)
    read_until(control, b"you: ")
    interrupt(process)
    assert b"Traceback" not in read_until(control, b"interrupted")
    assert process.wait() == 130
    os.close(control)


def interrupt(process):
    time.sleep(0.5)  # it waits for a line by then; between the prompt and that the signal would count with the next key
    process.send_signal(signal.SIGINT)


def read_until(descriptor, mark):
    seen = b""
    while mark not in seen:
        seen += os.read(descriptor, 1024)
    return seen


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


def test_who_declines_says_nothing(folder, repository):
    replies = [{"id": "1", "finish_reason": "refused", "error": "not that"}, {"id": "2", "text": "Aye."}]
    (folder / "replies.jsonl").write_text("\n".join(map(json.dumps, replies)))
    command = [sys.executable, repository / "chat.py", "--replies", "replies.jsonl", "--role", "mira"]
    done = subprocess.run(command, cwd=folder, input="Hello.\nAnd now?\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Mira: Aye.\n\n"), done.stderr
    assert "there is no reply, it was refused: not that; /again begins a new talk" in done.stderr.splitlines()


def asking(folder, repository, server, *flags, said=""):
    command = [sys.executable, repository / "chat.py", "--api_base", server.url, "--api_model", "calm-1", *flags]
    return subprocess.run(command, cwd=folder, input=said, capture_output=True, text=True, timeout=60)


def test_a_servers_model_speaks_in_character(folder, repository, server):
    server.behaviour = lambda ask: completion(f"Aye, {ask.id}.")
    flags = ("--role", "mira", "--image", "sea.png", "--max_new_tokens", "9", "--temperature", "0.5")
    done = asking(folder, repository, server, *flags, said="Hello.\nAnd now?\n/role old_odo\nYou?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Mira: Aye, 1.\nMira: Aye, 2.\nOld Odo: Aye, 3.\n\n"
    first, second, _ = [ask.body for ask in server.log]  # and no probe
    system, turn = second["messages"]
    assert system == {"role": "system", "content": ROLE_PLAY_SYSTEM}
    assert turn["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert turn["content"][1]["text"].endswith(":\nAnd now?")
    assert "[human]: Hello.\n[Mira]: Aye, 1." in turn["content"][1]["text"]
    assert (first["max_tokens"], first["temperature"], first["model"]) == (9, 0.5, "calm-1")


def test_a_server_that_fails_costs_no_talk(folder, repository, server):
    failing = {"1": error(401, "no key"), "2": error(400, "not that")}
    server.behaviour = lambda ask: failing.get(ask.id) or completion("Aye.")
    done = asking(folder, repository, server, "--role", "mira", said="Hello.\nAnd?\nNow?\n")
    assert (done.returncode, done.stdout) == (0, "Mira: Aye.\n\n"), done.stderr
    told = done.stderr.splitlines()
    assert any(line.startswith(f"{server.url}: 401 Unauthorized: no key; the key is wrong") for line in told), told
    assert "there is no reply, it failed: 400 Bad Request: not that; /again begins a new talk" in told
    assert "the same command" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_path", "m"], "leave out --model_path"),
        (["--replies", "r"], "leave out --api_base and --api_model"),
        (["--no_random", "--temperature", "1"], "leave out --temperature, or --no_random"),
        (["--api_key_env", "NOWHERE_SET"], "there is no key for"),
    ],
)
def test_flags_of_a_server_that_do_not_go_together(folder, repository, server, flags, message):
    done = asking(folder, repository, server, "--role", "mira", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_somebody_must_be_called(chat):
    done = chat()
    assert done.returncode == 2
    assert "--role NAME, or --web" in done.stderr
