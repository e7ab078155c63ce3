"""Reading with clear errors; writing that is atomic, whatever happens."""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.base.errors import Problems, UserError
from mmrole.base.files import read_json, read_records, replacing, sha256, write_json, write_json_list
from mmrole.data.records import Sample, TrainingRecord

# Text with every kind of character but pairs of surrogates, which JSON joins.
TEXT = st.text(st.characters(exclude_categories=[])).filter(
    lambda text: text == text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda values: st.lists(values) | st.dictionaries(TEXT, values),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.json is not JSON: Expecting value \(line 1, column 1\)"),
        (b'[\n  {"a": 1,}\n]', r"is not JSON: .* \(line 2, column 1[12]\)"),
        (b'["\xff"]', r"is not UTF-8 \(line 1, byte 2\); save it as UTF-8"),
        (b"{}", r"must hold a list \(\[…\]\), not an object \(\{…\}\)"),
        (b'{"a": ', r"must hold a list \(\[…\]\), not an object \(\{…\}\)"),
        (b"7", r"must hold a list \(\[…\]\), not 7"),
        (b'\xef\xbb\xbf[1,\n2,\n"\xc3', r"is not UTF-8 \(line 3, byte 11\); save it as UTF-8"),
        (b'[{"id": "a", "id": "b"}]', r"the key 'id' occurs twice in an object"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b'[{"a": -1e999}]', "the number -1e999 is too large"),
        (b"[" * 100_000, r"cannot be read as JSON: it is nested too deeply"),
        (b"[" + b"9" * 5_000 + b"]", r"cannot be read as JSON: a number has thousands of digits"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("begin", "end", "top"),
    [
        (b'{"a": "', b'"}', list),
        (b'{"a": "', b'"}', object),
        (b'{"a": "', b'"} x', object),
        (b'{"a": "', b"", object),
        (b'["', b"", list),
        (b'"', b'"', list),
        (b'["\xff', b'"]', list),
    ],
)
def test_what_cannot_be_used_takes_little_more_memory_than_its_text(
    tmp_path: Path, begin: bytes, end: bytes, top: type
):
    path, size = tmp_path / "x.json", 50_000_000
    path.write_bytes(begin + b"x" * size + end)
    tracemalloc.start()
    with contextlib.suppress(UserError):
        read_json(path, top)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.6 * size  # its text and its value, or the text and what is read on


def test_a_file_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file or directory"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="Is a directory"):
        read_json(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        sha256(tmp_path / "none.json")


def test_a_byte_order_mark_is_accepted(tmp_path: Path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "x.json", dict) == {}


def sample(name: str, **changes) -> dict:
    turns = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
    fields = {"system": "", "image": "1.jpg", "conversations": turns, "role": "r", "script": "s", "other_role": "o"}
    return {"id": name} | fields | changes


def test_all_faulty_records_are_named_together(tmp_path: Path):
    path = tmp_path / "x.json"
    write_json(path, [sample("a"), sample("b", role=""), sample("a"), 5, sample("c")])
    with pytest.raises(UserError) as caught:
        read_records(path, Sample)
    assert str(caught.value).splitlines() == [
        f"{path} has faulty records (3 problems):",
        f"""  {path}[1] (id 'b'): "role" must be a non-empty text, not ''""",
        f"  {path}[2] (id 'a'): the id is that of {path}[0] as well; ids must be unique",
        f"  {path}[3]: the record must be an object ({{…}}), not 5",
        "correct the file and run the same command again",
    ]
    problems = Problems()
    records = read_records(path, Sample, problems)
    assert ([record.id for record in records], len(problems)) == (["a", "c"], 3)
    assert [record.where.index for record in records] == [0, 4]


def test_training_rows_may_share_an_id(tmp_path: Path):
    write_json(tmp_path / "x.json", [sample("a"), sample("a")])
    assert len(read_records(tmp_path / "x.json", TrainingRecord)) == 2


@given(VALUES)
def test_the_form_is_that_of_json_and_reads_back(tmp_path_factory: pytest.TempPathFactory, value: object):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    data = path.read_bytes()
    assert json.loads(data) == value
    expected = json.dumps(value, ensure_ascii=False, indent=4)
    try:
        assert data == expected.encode()
    except UnicodeEncodeError:  # lone surrogates: escaped, and nothing else is
        assert data.decode() == "".join(f"\\u{ord(c):x}" if "\ud800" <= c <= "\udfff" else c for c in expected)


@given(st.lists(VALUES))
def test_a_list_written_item_by_item_is_the_list(tmp_path_factory: pytest.TempPathFactory, values: list):
    folder = tmp_path_factory.mktemp("json")
    write_json(folder / "at_once.json", values)
    assert write_json_list(folder / "by_item.json", iter(values)) == len(values)
    assert (folder / "by_item.json").read_bytes() == (folder / "at_once.json").read_bytes()


def test_a_large_file_is_written_in_pieces(tmp_path: Path):
    value = [{"text": "西游记 🐒 " * 1_000, "n": number} for number in range(500)]
    write_json(tmp_path / "x.json", value)
    data = (tmp_path / "x.json").read_bytes()
    assert data == json.dumps(value, ensure_ascii=False, indent=4).encode()
    assert sha256(tmp_path / "x.json") == hashlib.sha256(data).hexdigest()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "new folder/x.json"
    write_json(path, ["old"])
    with pytest.raises(TypeError):
        write_json(path, ["new" * 1_000_000, object()])
    assert read_json(path) == ["old"]
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.json").symlink_to("disk/x.json")
    write_json(tmp_path / "x.json", ["new"])
    assert (tmp_path / "x.json").is_symlink()
    assert read_json(tmp_path / "disk/x.json") == ["new"]


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/x\.json: (File exists|Not a directory)"):
        write_json(tmp_path / "file/x.json", [])
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_keeps_the_old_file(on_small_disk):
    result = on_small_disk("""
from mmrole.base.errors import UserError
from mmrole.base.files import read_json, write_json
path = folder / "x.json"
write_json(path, ["old"])
for size in (100_000, 10_000_000):  # fails when the file is closed, and while it is written
    try:
        write_json(path, ["new" * size])
    except UserError as error:
        print(error)
    assert read_json(path) == ["old"]
    assert {entry.name for entry in folder.iterdir()} <= {"x.json", "ballast"}
make_room()
write_json(path, ["new" * 20_000])
assert read_json(path) == ["new" * 20_000]
""")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "x.json: No space left on device; what was" in line or "x.json: File too large; what was" in line


WRITER = """
import sys
from mmrole.base.files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_the_old_file_and_does_not_block_the_next(tmp_path: Path, repository: Path):
    path = tmp_path / "x.json"
    write_json(path, ["old"])
    command = [sys.executable, "-c", WRITER, str(path)]
    writer = subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    with pytest.raises(UserError, match="is being written by another process"):
        write_json(path, ["new"])
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert read_json(path) == ["old"]
    write_json(path, ["new"])
    assert read_json(path) == ["new"]
    assert list(tmp_path.iterdir()) == [path]


RIVAL = """
import sys
from mmrole.base.errors import UserError
from mmrole.base.files import write_json
done = 0
while done < 100:
    try:
        write_json(sys.argv[1], [sys.argv[2]] * 5_000)
        done += 1
    except UserError as error:
        assert "is being written by another process" in str(error), error
"""


def test_rival_writers_never_mix(tmp_path: Path, repository: Path):
    path = tmp_path / "x.json"
    write_json(path, ["0"] * 5_000)
    rivals = [subprocess.Popen([sys.executable, "-c", RIVAL, str(path), name], cwd=repository) for name in "123"]
    while any(rival.poll() is None for rival in rivals):
        value = read_json(path)
        assert len(value) == 5_000
        assert len(set(value)) == 1
    assert [rival.returncode for rival in rivals] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_is_complete_or_not_there(tmp_path: Path):
    with replacing(tmp_path / "x.bin") as file:
        file.write(b"\x00\xff")
        assert not (tmp_path / "x.bin").exists()
    assert (tmp_path / "x.bin").read_bytes() == b"\x00\xff"
