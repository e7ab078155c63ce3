"""A person's mistakes: one clear message on stderr and exit status 2, never a traceback."""

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from mmrole.base.interruption import STATUS, end_quietly, was_interrupted

_SHOWN_PROBLEMS = 10
_SHOWN_CHARACTERS = 80
# Also what turns the direction of the text around it: a name or a server's words could show as others.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Bad usage or bad input. The text names the file, the record and the remedy, in one line or a short list.

    Each argument is a line. Names of files may hold line ends and other control characters, which are escaped.
    """

    @property
    def lines(self) -> list[str]:
        """The lines of the text."""
        return [in_one_line(str(line)) for line in self.args]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class RecordError(UserError, ValueError):
    """A record that does not have the form of its file. The text names file, index and id, the fault and the remedy."""


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file: `file[index]`, index from 0. The id is filled in as soon as it is known."""

    file: str = "record"
    index: int = 0
    id: str | None = None

    def __str__(self) -> str:
        return f"{self.file}[{self.index}]" + ("" if self.id is None else f" (id {shown(self.id)})")


class Problems:
    """Collects what is wrong with an input, so that all of it can be reported together."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str | Exception) -> None:
        """Notes one problem: a line that names the file and the record."""
        self.texts.append(str(text))

    def raise_if_any(self, headline: str, remedy: str) -> None:
        """Raises one `UserError` that lists the first ten problems and counts the rest.

        A single problem gives a single line, `problem; remedy`, without the headline.
        """
        if not self.texts:
            return
        if len(self.texts) == 1:
            raise UserError(f"{self.texts[0]}; {remedy}")
        lines = [f"{headline} ({len(self.texts)} problems):", *(f"  {text}" for text in self.texts[:_SHOWN_PROBLEMS])]
        if len(self.texts) > _SHOWN_PROBLEMS:
            lines.append(f"  … and {len(self.texts) - _SHOWN_PROBLEMS} more")
        raise UserError(*lines, remedy)


def shown(value: object) -> str:
    """`value` as it may appear in a message: control characters escaped, long values cut."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def in_one_line(text: str) -> str:
    """`text` with its control characters, line ends and marks of direction among them, escaped."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def listed(names: Sequence[str], most: int) -> str:
    """The first names, those that are not printable as `shown`, and how many more there are."""
    more = f" … and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name if name.isprintable() else shown(name) for name in names[:most]) + more


def reason(error: OSError | ValueError) -> str:
    """The system's words for a failed file operation, without errno and path: "No space left on device"."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls a script's `main` and exits with its status (None is 0).

    A `UserError` prints `error: …` on stderr and exits with 2, as does what the system refuses to do with a file;
    Ctrl-C exits with 130, the second one at once. Other exceptions are bugs and pass. Characters that the encoding of
    stdout does not have are printed as escapes.
    """
    _name_files_in_utf8()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: names can hold any characters
    try:
        status = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone: Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        if error.filename is None:
            raise
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
        print(f"error: cannot use {name if name.isprintable() else shown(name)}: {reason(error)}", file=sys.stderr)
        status = 2
    except BaseException as error:
        if not was_interrupted(error) or isinstance(error, SystemExit):
            raise
        end_quietly()
        print("interrupted", file=sys.stderr)
        status = STATUS
    end_quietly()
    sys.exit(status)


def _name_files_in_utf8() -> None:
    """Starts the program again where the locale has Python write the names of files otherwise than in UTF-8.

    Published images are in folders with Chinese names, which most locales could not name. What is typed and printed
    stays in the locale's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdin.encoding if sys.stdin else 'utf-8'}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
