"""Outcome of a download: counts, progress while it runs, and the summary at its end."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from tqdm import tqdm

from data_utils.download.web import Failure, Pace
from mmrole.base.errors import listed

_IN_A_ROW = 50
"""So many failed files one after the other mean that the server or the address is the trouble, not the files."""
_SHOWN_NAMES = 50


@dataclass
class Outcome:
    """What became of the files of one target."""

    target: str
    fetched: int = 0
    fetched_bytes: int = 0
    present: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by file."""
    kept: list[str] = field(default_factory=list)
    """Files that are not fetched, because something else is in their place."""
    stopped: str = ""
    """Why not all files were tried."""
    notes: list[str] = field(default_factory=list)
    """What else is to be said."""

    @property
    def complete(self) -> bool:
        """Whether every file is there, as it is published."""
        return not (self.failed or self.kept or self.stopped)

    def summary(self) -> str:
        """One line with the counts, and the names of what failed, grouped by reason."""
        size = f" ({size_text(self.fetched_bytes)})" if self.fetched else ""
        counts = f"{self.fetched:,} files fetched{size}, {self.present:,} already there, {len(self.failed):,} failed"
        lines = [f"{self.target}: {counts}"]
        reasons = defaultdict(list)
        for name, reason in self.failed.items():
            reasons[reason].append(name)
        for reason, names in reasons.items():
            lines.append(f"  {reason}: {listed(sorted(names), _SHOWN_NAMES)}")
        lines += [f"  {text}" for text in (*self.notes, self.stopped) if text]
        if self.kept:
            lines.append(f"  {kept_text(self.kept)}")
        if self.failed or self.stopped:
            lines.append("  the same command again tries these once more, and fetches nothing else again")
        return "\n".join(lines)


class FetchProgress:
    """A bar on a terminal, nothing elsewhere: files, bytes and rate. Threads share it.

    Args:
        title: before the bar.
        files: how many there are.
        size: bytes of all of them, if known: the bar then measures bytes, else files.
    """

    def __init__(self, title: str, files: int, size: int | None = None) -> None:
        self._files, self._size = files, size
        self._done = self._bytes = 0
        self._started = time.monotonic()
        self._lock = threading.Lock()
        total, unit = (files, "file") if size is None else (size, "B")
        self._bar = tqdm(total=total, unit=unit, unit_scale=size is not None, desc=title, disable=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def add_bytes(self, count: int) -> None:
        """Counts received bytes; a negative number takes back what has to be fetched again."""
        with self._lock:
            self._bytes += count
            if self._size is not None:
                self._bar.update(count)
            self._show()

    def add_file(self) -> None:
        """Counts a file that is finished, whether it succeeded or not."""
        with self._lock:
            self._done += 1
            if self._size is None:
                self._bar.update()
            self._show()

    def _show(self) -> None:
        if self._size is None:
            rate = self._bytes / max(time.monotonic() - self._started, 1e-3)
            text = f"{size_text(self._bytes)}, {size_text(rate)}/s"
        else:
            text = f"{self._done}/{self._files} files"
        self._bar.set_postfix_str(text, refresh=False)


def fetch_all(
    names: Iterable[str],
    fetch: Callable[[str], int],
    outcome: Outcome,
    progress: FetchProgress,
    pace: Pace,
    workers: int,
) -> None:
    """Calls `fetch` for every name, in threads, and counts what came of it.

    Args:
        names: of the files.
        fetch: fetches one file completely and returns its size in bytes, or raises `Failure`. Any other exception
            ends the download.
        outcome: receives what was fetched and what failed; `stopped` if too many files in a row failed.
        progress: is told of finished files.
        pace: is stopped when the download ends early.
        workers: threads.
    """
    lock, in_a_row = threading.Lock(), 0

    def fetch_one(name: str) -> None:
        nonlocal in_a_row
        try:
            size = fetch(name)
        except Failure as failure:
            with lock:
                outcome.failed[name] = str(failure)
                in_a_row += 1
                if in_a_row == _IN_A_ROW:
                    outcome.stopped = f"stopped: {in_a_row} files in a row failed, the last with: {failure}"
        else:
            with lock:
                outcome.fetched += 1
                outcome.fetched_bytes += size
                in_a_row = 0
        progress.add_file()

    with _threads(workers, pace) as pool:
        for future in as_completed([pool.submit(fetch_one, name) for name in names]):
            future.result()
            if outcome.stopped:
                break


def kept_text(names: list[str]) -> str:
    """What is said of files that are not fetched, because something else is in their place."""
    return f"kept, though not as published (--overwrite replaces): {listed(sorted(names), _SHOWN_NAMES)}"


def size_text(size: float) -> str:
    """A number of bytes for people: `1.7 GB` (powers of 1,000)."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95 or unit == "GB":
            break
    return f"{size:.1f} {unit}"


@contextmanager
def _threads(workers: int, pace: Pace) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads end as soon as the block does: waiting ones at once, others with their current request."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pace.stop()
        pool.shutdown(cancel_futures=True)
