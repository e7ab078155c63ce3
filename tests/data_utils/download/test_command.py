"""The command and its shell script: usage, help, all targets together, the bar on a terminal."""

import contextlib
import json
import os
import pty
import random
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from data_utils.download.__main__ import main
from data_utils.download.hub import REPOSITORIES
from data_utils.download.outcome import size_text
from mmrole.base.errors import UserError

COMMIT = 40 * "a"


@pytest.fixture
def everything(hub, server, photo):
    """A hub with all four repositories, and a server with the images."""
    dialogue = json.dumps([{"image": f"COCO/train2017/{number:012}.jpg"} for number in (1, 2)]).encode()
    data = {"dialogues/in-distribution/comment/x.json": dialogue, "images/Friends/01.jpg": photo(9)}
    for target, repository in REPOSITORIES.items():
        files = data if target == "data" else {"config.json": b"{}", "model.bin": target.encode() * 400, "x.py": b"x"}
        hub.put(repository.id, repository.type, files, COMMIT)
    server.files = {f"/{number:012}.jpg": photo(number) for number in (1, 2, 3)}
    return hub


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


WEIGHTS = [
    f"model_weights/{name}/{file}"
    for name in ("MMRole-Agent", "MMRole-Eval_RM", "Qwen-VL-Chat")
    for file in ("config.json", "download.json", "model.bin")
]
EVERYTHING = [
    "data/download.json",
    "dialogues/in-distribution/comment/x.json",
    "images/COCO/train2017/000000000001.jpg",
    "images/COCO/train2017/000000000002.jpg",
    "images/Friends/01.jpg",
    *WEIGHTS,
]


def test_all(everything, server, tmp_path, download, hub_env):
    arguments = ("all", "--data_root", tmp_path / "root", "--coco_url", server.url, "--rate", "0")
    done = download(*arguments, "--dry_run", **hub_env)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "root").exists()
    assert "the published data needs 10,839 images, about 1.8 GB\n" in done.stdout
    done = download(*arguments, "--revision", f"rm={COMMIT}", **hub_env)
    assert (done.returncode, done.stderr) == (0, "")
    assert files_below(tmp_path / "root") == EVERYTHING
    assert done.stdout.count(f"commit {COMMIT}") == 4
    summaries = re.findall(r"^(\w+): (\d+) files fetched", done.stdout, re.MULTILINE)
    assert summaries == [("data", "2"), ("images", "2"), ("agent", "2"), ("rm", "2"), ("base", "2")]
    done = download(*arguments, **hub_env)
    assert done.stdout.count(" 0 files fetched, 2 already there, 0 failed\n") == 5


def test_all_goes_on_after_failed_files(everything, server, tmp_path, download, hub_env):
    server.faults = {"/000000000001.jpg": ["404"]}
    arguments = ("all", "--data_root", tmp_path, "--coco_url", server.url, "--rate", "0")
    done = download(*arguments, **hub_env)
    assert (done.returncode, done.stderr) == (1, "")
    assert set(EVERYTHING) - set(files_below(tmp_path)) == {"images/COCO/train2017/000000000001.jpg"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["agent", "--coco_zip", "x.zip"], "--coco_zip is for the target images, not for agent"),
        (["data", "--rate", "3"], "--rate is for the target images, not for data"),
        (["images", "--coco_zip", "x.zip", "--rate", "3"], "leave out --coco_url and --rate"),
        (["images", "--coco_url", "file:///etc"], "--coco_url file:///etc is no web address"),
        (["images", "--revision", "main"], "--revision main fits none of the targets"),
        (["all", "--revision", "main"], "write --revision data=REVISION or --revision agent=REVISION"),
        (["agent", "--revision", "rm=main"], "write --revision agent=REVISION"),
        (["agent", "--revision", "agent="], "write --revision agent=REVISION"),
        (["images", "--data_root", "nowhere"], "no JSON file that could name images in nowhere/dialogues"),
        (["images", "--names_from", "nowhere"], "no JSON file that could name images in nowhere;"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        main(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["weights"], ["images", "--workers", "0"], ["images", "--rate", "-1"], ["images", "--timeout", "nan"]),
        *(["images", "--retries", "1.5"], ["images", "--timeout", "inf"], ["images", "--retry_wait", "x"]),
    ],
)
def test_argparse_refuses(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m data_utils.download" in capsys.readouterr().err


def test_help_loads_nothing_heavy(repository):
    code = """
import sys
from data_utils.download.__main__ import main
try:
    main(["--help"])
finally:
    loaded = {"torch", "transformers", "huggingface_hub", "PIL"} & set(sys.modules)
    assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for flag in ("data_root", "dry_run", "overwrite", "verify", "revision", "workers", "retries", "retry_wait"):
        assert re.search(rf"--{flag}\b.{{20}}", text)


def test_the_script(repository, tmp_path):
    script = repository / "scripts/download.sh"
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(["bash", script, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "{data,images,agent,rm,base,all}" in done.stdout
    clone = tmp_path / "a clone"
    for folder in ("scripts", "bin", ".venv/bin"):
        (clone / folder).mkdir(parents=True)
    shutil.copy(script, clone / "scripts")
    for name in ("bin/python", ".venv/bin/python"):
        (clone / name).write_text(f'#!/bin/sh\necho {name} "$PWD" "$@"\n')
        (clone / name).chmod(0o755)
    path = {"PATH": f"{clone}/bin:/usr/bin:/bin"}
    for expected in (".venv/bin/python", "bin/python"):
        done = subprocess.run(["bash", clone / "scripts/download.sh", "data"], env=path, capture_output=True, text=True)
        assert done.stdout == f"{expected} {clone} -m data_utils.download data\n"
        (clone / ".venv/bin/python").unlink(missing_ok=True)


def on_terminal(command: list[str], **environment: str) -> str:
    """Runs a command whose stderr is a terminal: what it writes there."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 150))
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while True:
            shown += os.read(controller, 4096)
    os.close(controller)
    assert process.wait() == 0
    return shown.decode().replace("\r", "\n")


def test_a_bar_of_files(server, photo, tmp_path):
    server.files = {f"/{number:012}.jpg": photo(number) for number in (1, 2)}
    (tmp_path / "x.json").write_text(" ".join(f"COCO/train2017/{number:012}.jpg" for number in (1, 2)))
    options = ["--data_root", str(tmp_path), "--names_from", str(tmp_path / "x.json"), "--coco_url", server.url]
    bar = on_terminal([sys.executable, "-m", "data_utils.download", "images", *options])
    assert re.search(r"images: 100%.* 2/2 .*file/s, [\d.]+ kB, [\d.]+ [kM]?B/s", bar)


def test_a_bar_of_bytes(hub, tmp_path):
    """What has to come again counts once, and the hub's client shows no bars of its own."""
    repository = REPOSITORIES["agent"].id
    hub.put(repository, "model", {"model.bin": random.Random(0).randbytes(3_000_000), "config.json": b"{}"}, COMMIT)
    hub.faults = {f"/{repository}/resolve/{COMMIT}/model.bin": ["truncate", "truncate", "damage"]}
    options = ["--data_root", str(tmp_path), "--retry_wait", "0.01"]
    command = [sys.executable, "-m", "data_utils.download", "agent", *options]
    bar = on_terminal(command, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf_home"))
    assert re.search(r"agent: 100%.* 3.00M/3.00M .*B/s, 2/2 files", bar)
    assert "bin:" not in bar


def test_texts():
    assert [size_text(size) for size in (0, 999, 1000, 163_480, 999_949, 999_960, 19.3e9, 1e13)] == [
        *("0 B", "999 B", "1.0 kB", "163.5 kB", "999.9 kB", "1.0 MB", "19.3 GB", "10000.0 GB"),
    ]
