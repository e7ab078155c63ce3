"""Fixtures of the download's tests: real HTTP servers that misbehave on demand, a hub, pictures, the command."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from data_utils.download.__main__ import main
from mmrole.base import errors


class Request(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    time: float


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `faults` holds, by path, what goes wrong with its next GETs, one after the other."""

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.log: list[Request] = []
        self.delay = 0.0
        self.ranges = True
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges_of(self, path: str) -> list[str | None]:
        """The Range headers of the GETs of a path."""
        return [got.headers.get("Range") for got in self.log if (got.method, got.path) == ("GET", path)]

    def fetched(self) -> list[str]:
        """The paths of all GETs, in order."""
        return [request.path for request in self.log if request.method == "GET"]

    def next_fault(self, path: str) -> str:
        with self.lock:
            faults = self.faults.get(path, [])
            return faults.pop(0) if faults else ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: Server
    extra: dict[str, str] = {}  # noqa: RUF012 (replaced, not changed)

    def do_HEAD(self) -> None:
        self.answer(self.note())

    def do_GET(self) -> None:
        path = self.note()
        self.server.stopping.wait(self.server.delay)
        fault = self.server.next_fault(path)
        content = self.server.files.get(path)
        if not fault or content is None:
            self.answer(path)
        elif fault.isdigit():
            self.send_body(int(fault), b"<html>error</html>")
        elif fault.startswith("429 "):
            self.send_body(429, b"slow down", {"Retry-After": fault.split(" ", 1)[1]})
        elif fault == "html":
            self.send_body(200, b"<!DOCTYPE html><html>Sign in to this network</html>", {"Content-Type": "text/html"})
        elif fault == "stall":
            self.send_partly(content, len(content), len(content) // 2)
            self.server.stopping.wait(30)
        elif fault == "silence":
            self.server.stopping.wait(30)
        elif fault == "trickle":
            self.send_partly(content, len(content), 0)
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.server.stopping.wait(0.05):
                    break
        elif fault == "truncate":  # announces less than there is, and keeps to it
            self.send_body(200, content[: len(content) // 2])
        elif fault == "close":  # goes away in the middle
            self.send_partly(content, len(content), len(content) // 2)
        elif fault == "hang up":  # without any answer
            pass
        elif fault == "too long":  # announces more than there is
            self.send_partly(content, len(content) + 1000, len(content))
        elif fault == "too short":  # announces less than it sends
            self.send_partly(content, len(content) - 700, len(content))
        elif fault == "no length":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
        elif fault == "no length, close":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        elif fault == "huge":
            self.send_partly(content, 10**10, len(content))
        elif fault == "gzip":  # though it was asked not to
            self.send_body(200, gzip.compress(content), {"Content-Encoding": "gzip"})
        elif fault == "br":
            self.send_body(200, content, {"Content-Encoding": "br"})
        elif fault == "other part":
            self.send_body(206, content[1:], {"Content-Range": f"bytes 1-{len(content) - 1}/{len(content)}"})
        elif fault.startswith("endless "):
            self.send_response(int(fault.split()[1]))
            self.end_headers()
            while not self.server.stopping.is_set():  # until the client has gone
                self.wfile.write(bytes(1 << 20))
        elif fault == "damage":
            self.send_body(200, content[:-1] + bytes([content[-1] ^ 1]))
        elif fault.startswith("redirect "):
            self.send_body(302, b"", {"Location": fault.split(" ", 1)[1]})
        else:
            raise AssertionError(fault)
        self.close_connection = True

    def answer(self, path: str) -> None:
        content = self.server.files.get(path)
        if content is None:
            self.send_body(404, b"not found")
        else:
            self.send_file(content)

    def send_file(self, content: bytes) -> None:
        """The content, or the rest of it that was asked for."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if self.server.ranges and match and int(match[1]) < len(content):
            start = int(match[1])
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self.send_body(206, content[start:], headers)
        else:
            self.send_body(200, content)

    def send_body(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (self.extra | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_partly(self, content: bytes, announced: int, sent: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(announced))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content[:sent])
        self.wfile.flush()

    def note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.log.append(Request(self.command, path, dict(self.headers), time.monotonic()))
        return path

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as server:
        yield server


class Hub(Server):
    """As much of the hub's API as listing and fetching need: `put` adds a repository's commit."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = HubHandler
        self.infos: dict[str, dict] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.aliases: dict[str, str] = {}
        self.large: set[str] = set()
        self.cdn = ""
        """Where large files are redirected to: the address of another server."""

    def put(self, repository: str, kind: str, files: dict[str, bytes], commit: str, large: int = 1000) -> None:
        """Adds a commit, and makes it `main`. Files of at least `large` bytes are large files with a SHA-256."""
        siblings = []
        for name, content in files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling = {"rfilename": name, "size": len(content), "blobId": blob}
            path = f"/{'datasets/' if kind == 'dataset' else ''}{repository}/resolve/{commit}/{name}"
            if len(content) >= large:
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
                self.large.add(path)
            siblings.append(sibling)
            self.files[path] = content
            self.headers[path] = {"X-Repo-Commit": commit, "ETag": f'"{sibling.get("lfs", {}).get("sha256", blob)}"'}
            self.aliases[path.replace(commit, "main")] = path
        info = {"_id": "1", "id": repository, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        for revision in ("main", commit):
            self.infos[f"/api/{kind}s/{repository}/revision/{revision}"] = info


class HubHandler(Handler):
    """Answers a request of the hub's client."""

    server: Hub

    def answer(self, path: str) -> None:
        if path in self.server.infos:
            fault = self.server.next_fault("info")
            if fault:
                self.send_body(int(fault), b"error")
                return
            body = json.dumps(self.server.infos[path]).encode()
            self.send_body(200, body, {"Content-Type": "application/json"})
            return
        if path.startswith("/api/") and path not in self.server.files:
            known = any(path.rsplit("/revision/", 1)[0] in info for info in self.server.infos)
            code = "RevisionNotFound" if known else "RepoNotFound"
            self.send_body(404, b'{"error": "not found"}', {"X-Error-Code": code})
            return
        path = self.server.aliases.get(path, path)
        self.extra = self.server.headers.get(path, {})
        if path in self.server.large and self.server.cdn:
            self.send_body(302, b"", {"Location": self.server.cdn + self.path})
        else:
            super().answer(path)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub()) as hub:
        yield hub


@pytest.fixture
def hub_env(hub: Hub) -> dict[str, str]:
    """The environment in which the client asks the test's hub."""
    return {"HF_ENDPOINT": hub.url}


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """Makes the bytes of a JPEG file with noise in it, a few kilobytes, another one for every number."""

    def make(number: int = 0, size: tuple[int, int] = (48, 32), **options: object) -> bytes:
        picture = Image.frombytes("RGB", size, random.Random(number).randbytes(3 * size[0] * size[1]))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90, **options)
        return file.getvalue()

    return make


Command = Callable[..., subprocess.Popen]


@pytest.fixture
def start(repository: Path, tmp_path: Path) -> Iterator[Command]:
    """Starts the command in a process: arguments, then environment variables by name. What runs on is killed."""
    processes = []
    quick = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path / "hf_home")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}

    def start(*arguments: str | Path, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "data_utils.download", *map(str, arguments)]
        environment = inherited | quick | environment
        process = subprocess.Popen(
            command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


Outcome = subprocess.CompletedProcess[str]


@pytest.fixture
def download(start: Command) -> Callable[..., Outcome]:
    """Runs the command to its end: for images, which need no environment, in this process; see `start`."""

    def run_process(*arguments: str | Path, **environment: str) -> Outcome:
        process = start(*arguments, **environment)
        stdout, stderr = process.communicate(timeout=120)
        return Outcome(process.args, process.returncode, stdout, stderr)

    def run_here(*arguments: str | Path) -> Outcome:
        with (
            contextlib.redirect_stdout(io.StringIO()) as stdout,
            contextlib.redirect_stderr(io.StringIO()) as stderr,
            pytest.raises(SystemExit) as caught,
        ):
            errors.run(lambda: main(list(map(str, arguments))))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as it was: a script ends at once from there on
        return Outcome(arguments, caught.value.code, stdout.getvalue(), stderr.getvalue())

    def run(*arguments: str | Path, **environment: str) -> Outcome:
        return run_here(*arguments) if arguments[0] == "images" else run_process(*arguments, **environment)

    return run
