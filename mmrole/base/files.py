"""Reads and writes JSON files of records, in the published form, with clear errors and without ever losing a file."""

import codecs
import contextlib
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, Self, TypeVar

from mmrole.base.disk import open_locked, sync_folder
from mmrole.base.errors import Problems, RecordError, UserError, Where, reason, shown
from mmrole.base.json_values import Json, first_character, read_values
from mmrole.base.paths import open_regular

_NAMES = {dict: "an object ({…})", list: "a list ([…])"}
_OPENING = {"{": dict, "[": list}


class Record(Protocol):
    """What `read_records` reads: the classes of `mmrole.data.records`."""

    UNIQUE_IDS: ClassVar[bool]

    @property
    def id(self) -> str | None:
        """What names the record, if anything does."""
        ...

    @classmethod
    def from_json(cls, obj: object, where: Where) -> Self:
        """Reads one record, or raises `RecordError`."""
        ...


AnyRecord = TypeVar("AnyRecord", bound=Record)
Value = TypeVar("Value")


def read_json(path: str | os.PathLike, top: type = list) -> Json:
    """Reads a JSON file whose top level is a `top`.

    Raises:
        UserError: the file cannot be read, is not UTF-8, not JSON (with line and column), names a key twice in one
            object, holds NaN, Infinity or a number as large, or has another top level.
    """
    opening = _OPENING.get(_readable(path, first_character))
    if opening and not issubclass(opening, top):  # said without reading a file that may be of gigabytes
        raise UserError(f"{path} must hold {_NAMES[top]}, not {_NAMES[opening]}")
    try:
        value = _readable(path, lambda file: read_values(file, _DECODER)) if opening else None
        if value is None:
            value = parse_json(read_text_file(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:  # a key twice, a number of thousands of digits
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, top):
        raise UserError(f"{path} must hold {_NAMES[top]}, not {_NAMES.get(type(value), shown(value))}")
    return value


def parse_json(text: str) -> Json:
    """The value that a text is as JSON, as strictly as `read_json`.

    Raises:
        ValueError: it is none (`json.JSONDecodeError`), or holds what `read_json` refuses.
        RecursionError: it is nested too deeply.
    """
    try:
        return _DECODER.decode(text)
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError("a number has thousands of digits") from None
        raise


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Json]] | None:
    """The objects of a file of JSON Lines, if it is one of at least two."""
    objects = []
    try:
        with open_regular(path) as data, io.TextIOWrapper(data, encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    objects.append(parse_json(line))
                    if not isinstance(objects[-1], dict):
                        return None
    except (UserError, OSError, ValueError, RecursionError):
        return None
    return objects if len(objects) > 1 else None


def read_text_file(path: str | os.PathLike) -> str:
    """The text of a file, which is never held beside its bytes.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    decoder, text, end = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    with open_regular(path) as file:
        try:
            while block := file.read(1 << 24):
                end += len(block)
                text += decoder.decode(block)
            text += decoder.decode(b"", final=True)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None
        except UnicodeDecodeError as error:
            line = text.count("\n") + error.object.count(b"\n", 0, error.start) + 1
            byte = end - len(error.object) + error.start
            raise UserError(f"{path} is not UTF-8 (line {line}, byte {byte}); save it as UTF-8") from None
    return text


def read_records(
    path: str | os.PathLike, record_type: type[AnyRecord], problems: Problems | None = None
) -> list[AnyRecord]:
    """Reads and validates a file of records.

    Args:
        path: a JSON file with a list of objects.
        record_type: a class of `mmrole.data.records`.
        problems: receives the faulty records, which are left out of the result. Without it they raise an error.

    Raises:
        UserError: the file cannot be read, or a record is faulty (all of them are named) and `problems` is None.
    """
    found = Problems() if problems is None else problems
    records, places = [], {}
    for index, obj in enumerate(read_json(path)):
        try:
            record = record_type.from_json(obj, Where(str(path), index))
        except RecordError as error:
            found.add(error)
            continue
        if record_type.UNIQUE_IDS and places.setdefault(record.id, index) != index:
            where = Where(str(path), index, record.id)
            found.add(f"{where}: the id is that of {path}[{places[record.id]}] as well; ids must be unique")
        else:
            records.append(record)
    if problems is None:
        found.raise_if_any(f"{path} has faulty records", "correct the file and run the same command again")
    return records


def write_json(path: str | os.PathLike, obj: Json) -> None:
    """Writes a JSON file in the published form (indent 4, text as it is, no final newline), atomically.

    A lone surrogate, which UTF-8 cannot hold, is written as its JSON escape (`\\ud800`): the file is always UTF-8 and
    reads back the same, but for two lone surrogates side by side that form a pair, which read back as its character.

    Raises:
        UserError: the file cannot be written; what was there before is unchanged.
    """
    with replacing(path) as file:
        for piece in _pieces(obj):
            file.write(piece.encode("utf-8", "backslashreplace"))


def write_json_list(path: str | os.PathLike, items: Iterable[Json]) -> int:
    """Writes what `write_json` writes for a list, one item after the other: none of them is kept.

    Returns:
        The number of items.

    Raises:
        UserError: the file cannot be written; what was there before is unchanged.
    """
    count = 0
    with replacing(path) as file:
        for item in items:
            text = json.dumps(item, ensure_ascii=False, indent=4).replace("\n", "\n    ")
            file.write(f"{',' if count else '['}\n    {text}".encode("utf-8", "backslashreplace"))
            count += 1
        file.write(b"\n]" if count else b"[]")
    return count


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends without an exception, and not before.

    The content is written to `.<name>.partial` beside it (folders are made as needed), flushed to the disk and
    renamed. After an exception nothing is left behind; after a kill the partial file is, and the next writer uses it.

    Raises:
        UserError: the file cannot be written (full disk, permissions), or another process is writing it.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    partial = partial_file(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _open_alone(partial, path) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        sync_folder(target.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {reason(error)}; what was there is unchanged: make room, or make it writable, and "
            "run the same command again"
        ) from error


def partial_file(path: Path) -> Path:
    """Where `replacing` writes what will be at a path; a kill leaves it there."""
    return path.with_name(f".{path.name}.partial")


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        UserError: the file cannot be read.
    """
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None


def _readable(path: str | os.PathLike, read: Callable[[str | os.PathLike], Value]) -> Value:
    """What `read` returns of a regular file."""
    open_regular(path).close()
    try:
        return read(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    obj = {sys.intern(key): value for key, value in pairs}  # each record would have keys of its own else
    if len(obj) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} occurs twice in an object")
    return obj


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # JSON has no way to write it back
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _no_number(name: str) -> Json:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_no_number)


def _pieces(obj: Json) -> Iterator[str]:
    """The JSON text of `obj` in pieces of about a megabyte: a training file is not held twice in memory."""
    pieces, size = [], 0
    for piece in json.JSONEncoder(ensure_ascii=False, indent=4).iterencode(obj):
        pieces.append(piece)
        size += len(piece)
        if size > 1 << 20:
            yield "".join(pieces)
            pieces, size = [], 0
    yield "".join(pieces)


def _open_alone(partial: Path, path: str | os.PathLike) -> BinaryIO:
    """Opens the partial file, emptied, as its only writer."""
    descriptor = open_locked(partial, os.O_RDWR)
    if descriptor is None:
        raise UserError(f"{path} is being written by another process; wait for it, or stop it")
    file = os.fdopen(descriptor, "wb")
    file.truncate()
    return file
