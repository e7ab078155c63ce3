"""A part of the GPU benchmark as a process: started early, told to begin, listened to, and ended with all it has begun.

At its limit it says what it was doing: which processes there are, and where each of Python's stands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "MMROLE_BENCH_PART"
"""Environment variable of all processes of a part: of torchrun's, too, which leave its group and outlive torchrun."""
SECONDS_TO_SPEAK = 3
COMPILERS = "compile_worker"
"""In the command of torch's processes that compile: a dozen that wait."""


class Ending(NamedTuple):
    """How a part ended.

    Attributes:
        words: `done`, or why not.
        seconds: from its beginning.
    """

    words: str
    seconds: float


class Running(NamedTuple):
    """A process that runs.

    Attributes:
        pid: its number.
        seconds: of processor time that it has used.
        command: its command line.
    """

    pid: int
    seconds: float
    command: str

    @property
    def is_python(self) -> bool:
        """Whether it is an interpreter, whose fault handler answers."""
        return Path(self.command.partition(" ")[0]).name.startswith("python")


class PartProcess:
    """A part in a process of its own, which is started while the part before it is at work.

    It imports what it needs, and uses the device when a line comes on its standard input (`begin`).
    """

    def __init__(self, command: Sequence[str], folder: Path, hear: Callable[[str, str], None]) -> None:
        """Starts it.

        Args:
            command: its command line.
            folder: where it runs.
            hear: gets when a line came (seconds after the beginning, or `early`), and the line.
        """
        self._hear, self._mark = hear, f"{os.getpid()}-{id(self)}"
        self._began: float | None = None
        self._seconds = 0.0
        self._last = ("", "it said nothing")
        self._timer: threading.Timer | None = None
        self._expired = self._ended = False
        # Python's fault handler then says where each thread stands when the process is aborted.
        environment = os.environ | {MARK: self._mark, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            text=True,
            errors="replace",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=target) for target in (self._listen, self._watch)]
        for thread in self._threads:
            thread.start()

    def begin(self, limit: float) -> None:
        """Lets it begin, for so many seconds at the most."""
        self._timer = threading.Timer(limit, self._stop, [limit])
        self._began = time.monotonic()
        self._timer.start()
        if self._process.poll() is not None:  # it has ended already
            self._timer.cancel()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write("\n")
            self._process.stdin.close()

    def wait(self) -> Ending:
        """Waits until it has ended."""
        assert self._timer is not None
        code = self._process.wait()
        self._timer.join()
        self.end()
        for thread in self._threads:
            thread.join()
        when, line = self._last
        if self._expired:
            return Ending(f"stopped after {self._seconds:.0f} s; its last line, at {when} s: {line}", self._seconds)
        return Ending("done" if code == 0 else f"failed: {line}", self._seconds)

    def end(self) -> None:
        """Ends it, and all that it has begun and left behind."""
        if self._ended:
            return
        self._ended = True
        for process in self._processes():
            _send(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _watch(self) -> None:
        """Stops the clock when it ends, whoever waits for it then."""
        self._process.wait()
        if self._began is not None and self._timer is not None:
            self._seconds = time.monotonic() - self._began
            self._timer.cancel()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            when = "early" if self._began is None else f"{time.monotonic() - self._began:.1f}"
            if line.strip() and not self._expired:
                self._last = when, line.strip()[:300]
            self._hear(when, line)

    def _stop(self, limit: float) -> None:
        """Lets its processes say where they stand, then ends them."""
        self._expired = True
        processes = self._processes()
        self._hear("limit", f"stopped after {limit:.0f} s; its processes, and the processor time of each:\n")
        for process in processes:
            self._hear("limit", f"{process.pid} {process.seconds:.1f} s {process.command}\n")
        asked = [each for each in processes if each.is_python and COMPILERS not in each.command]
        # What the others say goes through the part's own process: it comes last.
        for members in ([each.pid for each in asked if each.pid != self._process.pid], [self._process.pid]):
            for pid in members:
                _send(pid, signal.SIGABRT)
            if members:
                time.sleep(SECONDS_TO_SPEAK)
        self.end()

    def _processes(self) -> list[Running]:
        return [process for process, environment in _all_processes() if environment.get(MARK) == self._mark]


def _all_processes() -> list[tuple[Running, Mapping[str, str]]]:
    """This user's processes with their environments, as far as Linux tells."""
    found = []
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda folder: int(folder.name)):
        try:
            pairs = (folder / "environ").read_text(errors="replace").split("\0")
            times = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[11:13]
            command = " ".join((folder / "cmdline").read_text(errors="replace").replace("\0", " ").split())
        except OSError:  # another user's, or gone
            continue
        environment = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
        seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        found.append((Running(int(folder.name), seconds, command[:200]), environment))
    return found


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
