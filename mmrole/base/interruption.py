"""Ctrl-C: one line and status 130, while modules are imported as well, and nothing more when it is pressed again."""

import os
import signal
import sys
import threading
from types import TracebackType
from typing import NoReturn

STATUS = 128 + signal.SIGINT

_show_exception = sys.excepthook


def expect_interruption() -> None:
    """Makes Ctrl-C outside of `errors.run`, in the imports of a script, end it without a traceback."""
    sys.excepthook = _end_or_show


def was_interrupted(error: BaseException) -> bool:
    """Whether an error comes from Ctrl-C: compiled modules, when their import is cut short, raise others of it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def end_quietly() -> None:
    """Makes Ctrl-C end the process at once from now on: the interpreter's exit shows a traceback for each."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> NoReturn:
    os._exit(STATUS)


def _end_or_show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if was_interrupted(error):
        end_quietly()
        print("interrupted", file=sys.stderr, flush=True)
        _end()
    _show_exception(kind, error, traceback)
