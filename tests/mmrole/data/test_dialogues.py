"""Dialogues, stills and characters: what is read, where it is found, and what a person got wrong."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mmrole.base.errors import RecordError, UserError
from mmrole.base.files import read_json, read_records, write_json
from mmrole.data.dataset import read_dataset
from mmrole.data.dialogues import Dialogue, Still, dialogue_files, overlooked_files
from mmrole.data.profiles import category, read_characters, read_profiles, read_roles

DIALOGUE = {
    "id": "Ana_human-role-dialogue_COCO_0",
    "image": "COCO/train2017/000000000001.jpg",
    "conversations": [{"role": "human", "value": "Hello?"}, {"role": "Ana", "value": "Ahoy."}],
}


def dialogue(**changes: object) -> Dialogue:
    return Dialogue.from_json(DIALOGUE | changes)


def test_what_macos_leaves_beside_files_is_none_of_them(tmp_path: Path):
    folder = tmp_path / "dialogues/in-distribution/comment"
    (folder / ".backup").mkdir(parents=True)
    write_json(folder / "Ana_COCO.json", [DIALOGUE])
    for name in ("._Ana_COCO.json", ".backup/Ana_COCO.json", "../../._other.json"):
        (folder / name).write_bytes(b"\0\5\x16\7\xff")
    assert [file.path.name for file in dialogue_files(tmp_path)] == ["Ana_COCO.json"]
    assert overlooked_files(tmp_path) == []


def test_published_dialogues(shared: Path, tmp_path: Path):
    files = dialogue_files(shared / "mmrole")
    assert len(files) == 358
    failed, targets = 0, Counter()
    for file in files:
        records = read_records(file.path, Dialogue)
        failed += sum(record.failed for record in records)
        targets[file.type] += sum(len(record.targets) for record in records)
        assert {record.owner for record in records} <= {file.owner, None}
    assert failed == 850
    assert sum(targets.values()) == 73_644
    write_json(tmp_path / "copy.json", [record.to_json() for record in records])
    assert (tmp_path / "copy.json").read_bytes() == files[-1].path.read_bytes()
    assert len(read_records(shared / "mmrole/images/annotations.json", Still)) == 193


def test_published_characters_have_the_categories_that_the_paper_counts(shared: Path):
    characters = read_characters(shared / "mmrole").values()
    counted = Counter(category(character.series) for character in characters)
    assert counted == {"fictional": 41, "historical and public": 11, "hypothetical": 20}


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ("the Victorian era", "historical and public"),
        ("The Tang Dynasty", "historical and public"),
        ("清朝", "historical and public"),
        ("Hypothetical Characters", "hypothetical"),
        ("Hard Times", "fictional"),
        ("the Muppets", "fictional"),
        (" ", "fictional"),
    ],
)
def test_category_of_other_series(series: str, expected: str):
    assert category(series) == expected
    assert category(series, {series: "hypothetical"}) == "hypothetical"


def test_what_a_dialogue_tells():
    record = dialogue(place_info=None)
    assert record.speakers == ("human", "Ana")
    assert (record.owner, record.targets, record.sample_id(1)) == ("Ana", (1,), "Ana_human-role-dialogue_COCO_0_1")
    assert (record.role_info, record.place_info, record.scene_info) == ("", "", "")
    comment = dialogue(conversations=[{"from": "human", "value": "Well?"}, {"role": "Ana", "value": "Grey."}])
    assert comment.speakers == ("human", "Ana")
    pair = dialogue(conversations=[{"role": "Bo", "value": "Ana!"}, {"role": "Ana", "value": "Bo!"}])
    assert (pair.owner, pair.targets) == ("Ana", (0, 1))


@pytest.mark.parametrize("turns", [[], DIALOGUE["conversations"][:1], DIALOGUE["conversations"][1:]])
def test_nothing_or_a_lone_utterance_is_a_failed_generation(turns: list):
    record = dialogue(conversations=turns)
    assert (record.failed, record.owner, record.targets) == (True, None, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 3}, '"id" must be'),
        ({"image": ""}, '"image" must be a non-empty text'),
        ({"conversations": None}, '"conversations" must be a list'),
        ({"conversations": ["Hi"]}, r"conversations\[0\] must be an object"),
        ({"conversations": [{"value": "Hi"}]}, r'"role" of conversations\[0\] is missing'),
        ({"conversations": [{"role": "Ana", "value": " "}]}, r'"value" of conversations\[0\] must be a non-empty'),
        ({"scene_info": 3}, '"scene_info" must be a text'),
    ],
)
def test_faulty_dialogues_are_named(changes: dict, message: str):
    with pytest.raises(RecordError, match=message):
        dialogue(**changes)


def test_files_are_found_in_both_forms(small_world: Path):
    (small_world / "dialogues/in-distribution/comment/Cap'n_Jo.json").write_text("[]")
    (small_world / "dialogues/notes.json").write_text("not looked at")
    found = {(file.distribution, file.type, file.owner, file.source) for file in dialogue_files(small_world)}
    assert ("in-distribution", "comment", "Bo Li", "COCO") in found
    assert ("in-distribution", "comment", "Cap'n Jo", None) in found
    assert ("in-distribution", "inter-role", "Ana", "script") in found
    assert ("out-of-distribution", "inter-role", None, None) in found
    assert len(found) == len(dialogue_files(small_world)) == 4 + 4 + 2 + 3 + 1


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("in-distribution/roles.json", {"Harbour": "Ana"}, "'Harbour' must be a list of names"),
        ("in-distribution/roles.json", {"A": ["Ana"], "B": ["Ana"]}, "'Ana' is named under 'A' and 'B'"),
        ("in-distribution/profiles.json", {"Ana": ""}, "profile of 'Ana' must be a non-empty text"),
        ("in-distribution/profiles.json", {"Ana": "A."}, "profiles.json has no profile of 'Bo Li'"),
        ("out-of-distribution/roles.json", {"Harbour": ["Ana", "Dee", "Eli"]}, "roles.json of both distributions"),
        ("out-of-distribution/profiles.json", [], r"must hold an object"),
    ],
)
def test_faulty_characters_are_named(small_world: Path, place: str, content: object, message: str):
    path = small_world / "profiles" / place
    write_json(path, content)
    if content == {"Harbour": ["Ana", "Dee", "Eli"]}:
        write_json(path.with_name("profiles.json"), dict.fromkeys(content["Harbour"], "Known."))
    with pytest.raises(UserError, match=message):
        read_characters(small_world)


def test_a_folder_without_characters_or_dialogues(tmp_path: Path, small_world: Path):
    with pytest.raises(UserError, match=r"has no profiles/in-distribution/roles\.json"):
        read_characters(tmp_path / "nowhere")
    for path in small_world.glob("dialogues/*/**/*.json"):
        path.unlink()
    with pytest.raises(UserError, match="has no dialogues"):
        read_dataset(small_world)


def test_characters_in_order_of_the_files(small_world: Path):
    folder = small_world / "profiles/in-distribution"
    assert read_roles(folder / "roles.json") == {
        "Ana": "Harbour",
        "Bo Li": "Harbour",
        "Cai": "the Bronze age",
        "小船": "西游记",
    }
    assert read_profiles(folder / "profiles.json")["Cai"] == "\n### Cai\nKnows the sea.\n"
    assert list(read_characters(small_world)) == ["Ana", "Bo Li", "Cai", "小船", "Dee", "Eli"]


HUMAN_ROLE = "in-distribution/human-role/Ana_COCO.json"


@pytest.mark.parametrize(
    ("place", "speakers", "message"),
    [
        (HUMAN_ROLE, ["human", "Ana", "Ana"], r"'Ana' speaks twice at conversations\[2\]"),
        (HUMAN_ROLE, ["human", "Ana", "human", "Bo Li"], "two speakers, this one has 'human', 'Ana', 'Bo Li'"),
        (HUMAN_ROLE, ["Ana", "Bo Li"], "human-role is between"),
        (HUMAN_ROLE, ["human", "Anna"], "'Anna' is not in profiles/in-distribution/roles.json"),
        (HUMAN_ROLE, ["human", "Dee"], "'Dee' is out of distribution and must not be trained on"),
        ("in-distribution/comment/Ana_COCO.json", ["human", "Ana", "human", "Ana"], "a comment is one question"),
        ("in-distribution/comment/Ana_COCO.json", ["Ana", "human"], "a comment is one question"),
        ("in-distribution/inter-role/Ana_script.json", ["human", "Ana"], "inter-role is between two characters"),
        ("in-distribution/inter-role/Ana_script.json", ["Cai", "Ana"], "'Cai' and 'Ana' are of two series"),
        ("in-distribution/inter-role/Ana_script.json", ["Dee", "Eli"], "'Dee' is out of distribution"),
        ("out-of-distribution/human-role.json", ["human", "Ana"], "no speaker is out of distribution"),
    ],
)
def test_dialogues_that_make_no_sense_are_named(small_world: Path, place: str, speakers: list[str], message: str):
    path = small_world / "dialogues" / place
    records = read_json(path)
    records[0]["conversations"] = [{"role": speaker, "value": "Well."} for speaker in speakers]
    write_json(path, records)
    with pytest.raises(UserError, match=message) as caught:
        read_dataset(small_world)
    assert f"{path}[0] (id '{records[0]['id']}')" in str(caught.value)


def test_an_id_in_two_files_and_an_image_outside_are_named_together(small_world: Path):
    path = small_world / "dialogues" / HUMAN_ROLE
    records = json.loads(path.read_text("utf-8"))
    records[0]["id"] = "Cai_human-role-dialogue_COCO_0"
    records[1]["image"] = "../secret.jpg"
    write_json(path, records)
    with pytest.raises(UserError, match="2 problems") as caught:
        read_dataset(small_world)
    assert "ids must be unique" in str(caught.value)
    assert "image '../secret.jpg' has '..'" in str(caught.value)
