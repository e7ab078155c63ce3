"""The lines of a journal file: a header with the fingerprint, then a finished record each."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmrole.base.errors import UserError, shown
from mmrole.base.json_values import Json, JsonObject

FORMAT = 1
"""Version of the journal's form, in its first line."""


class Payloads(Mapping[str, Json]):
    """Payloads by record id, decoded when they are asked for: as objects they take several times the memory."""

    def __init__(self, lines: Mapping[str, bytes]) -> None:
        self._lines = lines

    def __getitem__(self, record_id: str) -> Json:
        return _decoded(self._lines[record_id])["payload"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


def encode_line(line: dict[str, Json]) -> bytes:
    """A line with its end."""
    # surrogatepass: lone surrogates come back exactly as they were, which UTF-8 or JSON escapes do not promise.
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def decode_line(line: bytes) -> JsonObject:
    """The object in a line; an empty one if there is none."""
    try:
        value = _decoded(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_lines(path: Path, data: bytes, fingerprint: dict[str, Json]) -> tuple[dict[str, bytes], int]:
    """The records of a journal file, line by id, and the length in bytes of its whole lines.

    A file without records has nothing to lose and may have any header: it counts as empty.

    Args:
        path: the file, for messages.
        data: what it holds.
        fingerprint: what its header must hold.

    Raises:
        UserError: the file is damaged, repeats a record or has another fingerprint.
    """
    size = data.rfind(b"\n") + 1
    lines = data[:size].split(b"\n")[:-1]
    if len(lines) < 2:
        return {}, 0
    _check_header(path, decode_line(lines[0]), fingerprint)
    records = {}
    for number, line in enumerate(lines[1:], start=2):
        entry = decode_line(line)
        fault = _fault(entry)
        if fault:
            raise UserError(
                f"{path}: line {number} {fault}; delete the line (its record is made again), or start anew with "
                "--overwrite"
            )
        if entry["id"] in records and attempt_of(line) <= attempt_of(records[entry["id"]]):
            raise UserError(
                f"{path}: line {number} repeats the record {shown(entry['id'])}; delete one of the two lines, or start "
                "anew with --overwrite"
            )
        records[entry["id"]] = line
    return records, size


def attempt_of(line: bytes) -> int:
    """Which attempt at its record a line is of, from 0: the last one counts."""
    return decode_line(line).get("attempt", 0)


def differences(made_with: dict[str, Json], expected: dict[str, Json]) -> list[str]:
    """What differs between two fingerprints, in words."""
    return [
        f"{name} was {_noted(made_with, name)}, is {_noted(expected, name)}"
        for name in expected | made_with
        if made_with.get(name) != expected.get(name)
    ]


def _decoded(line: bytes) -> Json:
    return json.loads(line.decode("utf-8", "surrogatepass"))


def _fault(entry: JsonObject) -> str | None:
    if not isinstance(entry.get("id"), str) or "payload" not in entry:
        return "is damaged"
    if type(entry.get("attempt", 0)) is not int:
        return "is damaged"
    unknown = entry.keys() - {"id", "payload", "attempt"}
    return f"has a field that is not known, {shown(min(unknown))}" if unknown else None


def _check_header(path: Path, header: JsonObject, fingerprint: JsonObject) -> None:
    made_with = header.get("fingerprint")
    if not isinstance(made_with, dict) or header.get("journal") != FORMAT:
        raise UserError(f"{path}: line 1 is not the header of a journal of this version; start anew with --overwrite")
    changes = differences(made_with, fingerprint)
    if changes:
        raise UserError(
            f"{path} was made with other settings: {', '.join(changes)}; go on with the same settings, or start anew "
            "with --overwrite"
        )


def _noted(fingerprint: dict[str, Json], name: str) -> str:
    return shown(fingerprint[name]) if name in fingerprint else "not noted"
