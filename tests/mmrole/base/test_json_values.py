"""Lists and objects read value by value are those that the standard library reads whole, wherever the text is cut."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmrole.base.files import read_json
from mmrole.base.json_values import read_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)
CHUNKS = st.integers(1, 40)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to write and read again and again."""
    return tmp_path_factory.mktemp("lists") / "list.json"


def read_whole(data: bytes) -> list | dict | None:
    """The slow twin."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (list, dict)) else None


@given(
    values=st.lists(VALUES, max_size=6) | st.dictionaries(st.text(max_size=3), VALUES, max_size=6),
    indent=st.sampled_from([None, 0, 4]),
    space=st.text(" \t\r\n", max_size=3),
    ascii_only=st.booleans(),
    chunk=CHUNKS,
)
@example(values=[0.0, -1.5e-7, 1e300, float("inf")], indent=None, space="", ascii_only=True, chunk=1)
def test_the_values(file: Path, values: list | dict, indent: int | None, space: str, ascii_only: bool, chunk: int):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    file.write_bytes(f"{space}{text}{space}".encode())
    assert read_values(file, json.JSONDecoder(), chunk) == values


@given(
    data=st.binary(max_size=20) | st.text('[]{},:"\\u12e.-+ntrfals \n\ufeff', max_size=20).map(str.encode), chunk=CHUNKS
)
@example(b"[1, 23]", 3)
@example(b"[1] x", 1)
@example(b"[1,]", 2)
@example(b"[1 2]", 2)
@example(b"[", 1)
@example(b"", 1)
@example(b"[]]", 1)
@example(b"\xef\xbb\xbf[true]", 1)
@example(b'{"a" 1}', 2)
@example(b'{"a": 1,}', 2)
@example(b"{1: 1}", 2)
@example(b'{"a": {}} ,', 2)
@example(b"[" * 5_000, 7)
def test_what_is_neither(file: Path, data: bytes, chunk: int):
    file.write_bytes(data)
    assert read_values(file, json.JSONDecoder(), chunk) == read_whole(data)


def test_published_files(shared: Path):
    for path in sorted((shared / "mmrole/dialogues/in-distribution/inter-role").glob("*.json"))[:20]:
        assert read_json(path) == json.loads(path.read_bytes())
