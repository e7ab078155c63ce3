"""Files damaged at random: there is always a report, what passes can be read, and repairs come to an end."""

import copy
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils import check
from data_utils.checks.checker import Checker
from data_utils.checks.copies import Copies
from data_utils.checks.forms import Form, find_files
from data_utils.checks.problems import KINDS, Place
from data_utils.checks.repairs import repair
from mmrole.base.files import read_json, read_records, write_json
from mmrole.base.json_values import Json
from mmrole.data.dialogues import Dialogue, Still
from mmrole.data.records import Answer, Review, Sample, TrainingRecord

READERS = {
    "dialogues": Dialogue,
    "annotations": Still,
    "test_samples": Sample,
    "answers": Answer,
    "reviews": Review,
    "training": TrainingRecord,
    "rm_training": TrainingRecord,
}
MOST_RECORDS = 3

FIELDS = (
    *("id", "system", "image", "images", "conversations", "role", "script", "other_role", "type", "rm_review"),
    *("rm_review_swapped", "role_info", "place_info", "scene_info", "from", "value", "content", "answer", "videos"),
    *("review", "score", "reason"),
)
"""The fields of all forms: any of them can be in a file of any other."""
OTHER_TYPES: tuple[Json, ...] = (
    *(None, True, 0, -1, 1e999, float("nan"), 10**400, "", "x", "\ud800", [], ["x"], [None], [[]], {}, {"x": 5}),
    *([{}], [{"from": "user"}], [{"from": "user", "value": 5}], [{"role": [], "value": {}}], [{"path": None}]),
    [{"from": "user", "value": "Picture 1: <img>images/x.jpg</img>\nWhat?"}, {"from": "assistant", "value": "<image>"}],
)
"""A value of every JSON type, and of every shape that some field of some form has."""

texts = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["", " ", "human", "user", "<|im_end|>", "</img>", "images/", "../x", "\x00", "\ud800", "Ada Nova:", "ada nova"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def paths(value: Json, path: tuple = ()) -> list[tuple]:
    """The paths of everything in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in paths(item, (*path, key)))]


def at(value: Json, path: tuple) -> Json:
    """What is at a path."""
    for key in path:
        value = value[key]
    return value


def nested(value: Json, depth: int) -> Json:
    """A value inside of many lists."""
    for _ in range(depth):
        value = [value]
    return value


def mistyped(value: Json) -> Iterator[Json]:
    """A value with any one thing in it replaced by every other type, or with a field of another form added."""
    for *outer, last in paths(value)[1:]:
        for other in OTHER_TYPES:
            damaged = copy.deepcopy(value)
            at(damaged, tuple(outer))[last] = copy.deepcopy(other)
            yield damaged
    yield from with_other_fields(value)


def with_other_fields(value: Json, fields: Collection[str] = FIELDS) -> Iterator[Json]:
    """A record with any of some fields in it, of every type."""
    for field in fields:
        for other in OTHER_TYPES:
            damaged = copy.deepcopy(value)
            record = damaged[0] if isinstance(damaged, list) else damaged
            record[field] = copy.deepcopy(other)
            yield damaged


@st.composite
def broken_values(draw: st.DrawFn, value: Json) -> Json:
    """A JSON value with one to three faults."""
    holder = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 3))):
        found = paths(holder)[1:]
        if not found:
            break
        *outer, last = draw(st.sampled_from(found))
        inner = at(holder, tuple(outer))
        action = draw(st.sampled_from(["delete", "replace", "swap", "copy", "nest", "null", "insert", "rename", "add"]))
        if action == "delete":
            del inner[last]
        elif action == "replace":
            inner[last] = draw(values)
        elif action == "null":
            inner[last] = None
        elif action == "nest":
            inner[last] = nested(inner[last], draw(st.sampled_from([1, 3, 60, 300])))
        elif action == "swap":
            other = draw(st.sampled_from(found))
            inner[last] = copy.deepcopy(at(holder, other))
        elif action == "copy" and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
        elif action == "insert" and isinstance(inner[last], str):
            place = draw(st.integers(0, len(inner[last])))
            inner[last] = inner[last][:place] + draw(texts) + inner[last][place:]
        elif action == "rename" and isinstance(inner, dict):
            inner[draw(texts | st.sampled_from(FIELDS))] = inner.pop(last)
        elif action == "add" and isinstance(inner, dict):
            # A copy: what it becomes by the next fault must not be drawn later.
            inner[draw(st.sampled_from(FIELDS))] = copy.deepcopy(draw(st.sampled_from(OTHER_TYPES) | values))
    return holder[0] if holder else None


@st.composite
def broken_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with one fault."""
    place = draw(st.integers(0, len(data)))
    action = draw(st.sampled_from(["truncate", "insert", "overwrite", "encode"]))
    if action == "truncate":
        return data[:place]
    if action == "encode":
        return data.decode().encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "gb18030"])), "replace")
    more = draw(st.binary(min_size=1, max_size=5))
    return data[:place] + more + data[place + (len(more) if action == "overwrite" else 0) :]


@pytest.fixture(scope="module")
def damaged_root(clean_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the data set, whose files are damaged in turn."""
    root = Path(shutil.copytree(clean_root, tmp_path_factory.mktemp("damaged") / "root"))
    for file in find_files(root):
        if file.suffix == ".json" and isinstance(value := read_json(file, object), list):
            write_json(file, value[:MOST_RECORDS])
    return root


@pytest.fixture(scope="module")
def run_check(damaged_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, dict]]:
    """Runs the command: its exit status and its report."""
    printed = tmp_path_factory.mktemp("printed") / "report.json"

    def run(*args: object) -> tuple[int, dict]:
        with pytest.MonkeyPatch.context() as patch, printed.open("w", encoding="utf-8") as stream:
            patch.setattr("sys.stdout", stream)
            status = check.main([*map(str, args), "--format", "json"])
        return status, json.loads(printed.read_text(encoding="utf-8"))

    return run


def kinds_of_files(root: Path) -> list[Path]:
    """One file of every form, and of every type of dialogue."""
    chosen = {}
    for file in find_files(root):
        parts = file.relative_to(root).parts
        chosen.setdefault(
            (parts[0], parts[-2] if parts[0] in ("profiles", "dialogues") else parts[1], file.suffix), file
        )
        if file.parent.name == "in-distribution":
            chosen[file.name] = file
    return list(chosen.values())


@pytest.fixture(scope="module")
def whole_files(damaged_root: Path) -> dict[Path, bytes]:
    """The files to damage as they are without: what is drawn must not depend on what is on the disk by then."""
    return {file: file.read_bytes() for file in kinds_of_files(damaged_root)}


def check_and_repair(values: Iterator[Json], form: Form, file: Path, root: Path) -> None:
    """Checks contents of a file as a form and repairs them: nothing is raised."""
    checker, place = Checker(data_root=root, look_at_images=False), Place("file")
    source = checker.source(file, form)
    for value in values:
        checker.check_value(value, source, place, Copies())
        repair(value, source, place, checker, drop=True)


def test_every_field_can_have_every_type(damaged_root):
    checker, seen = Checker(data_root=damaged_root, look_at_images=False), set()
    for file in kinds_of_files(damaged_root):
        form = checker.check_file(file).form
        if file.suffix == ".json" and form not in seen:
            seen.add(form)
            value = read_json(file, object)
            check_and_repair(mistyped(value[:1] if isinstance(value, list) else value), form, file, damaged_root)


@pytest.mark.parametrize("form", [form for form in Form if form not in (Form.RAW_INFO, Form.RESULTS)])
def test_every_form_can_have_fields_of_others(form, damaged_root):
    for name in ("data/train/train.json", "images/annotations.json"):
        value = read_json(damaged_root / name)[:1]
        fields = ("conversations", "image", "images", "rm_review", "role")
        check_and_repair(with_other_fields(value, fields), form, damaged_root / name, damaged_root)


@settings(max_examples=1000)
@given(data=st.data())
def test_any_damage_gives_a_report(data, damaged_root, whole_files, run_check):
    file = data.draw(st.sampled_from(list(whole_files)), label="file")
    whole = whole_files[file]
    if file.suffix == ".json" and data.draw(st.integers(0, 3), label="damage"):
        damaged = json.dumps(data.draw(broken_values(json.loads(whole)))).encode()
    else:
        damaged = data.draw(broken_bytes(whole))
    try:
        file.write_bytes(damaged)
        status, report = run_check(file)
        assert status == (1 if report["errors"] else 0)
        assert report["counts"].keys() <= KINDS.keys()
        assert len(report["problems"]) == sum(report["counts"].values()) == report["errors"] + report["warnings"]
        form = report["files"][0]["form"]
        if status == 0 and form in READERS:
            read_records(file, READERS[form])
        if form is None:
            return
        others = [damaged_root / "dialogues", damaged_root / "eval"] if file.name == "roles.json" else []
        assert run_check(*others, file)[0] in (0, 1)  # what is damaged is around other files, too

        fixed = damaged_root.parent / f"fixed{file.suffix}"
        fixed.unlink(missing_ok=True)
        status, report = run_check(file, "--fix", fixed, "--drop")
        assert not any(problem["fixable"] for problem in report["problems"])
        if form in READERS:
            assert all(problem["index"] is None for problem in report["problems"] if problem["level"] == "error")
            if status == 0:
                read_records(fixed, READERS[form])
    finally:
        file.write_bytes(whole)
