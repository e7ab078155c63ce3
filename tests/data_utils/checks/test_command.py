"""The command: usage, exit status, reports, folders, and repairs that lose nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from data_utils import check
from mmrole.base.errors import UserError
from mmrole.base.files import read_json, write_json

COMMENT = "dialogues/in-distribution/comment/Ada_Nova_COCO.json"
ANSWERS = "eval/in-test_answers/some-model/human-role_test.json"
TRAIN = "data/train/train.json"


@pytest.fixture
def report(capsys):
    """Runs the command: its exit status and its report."""

    def run(*args):
        capsys.readouterr()
        status = check.main([*map(str, args), "--format", "json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def command(repository, *args):
    arguments = [sys.executable, "-m", "data_utils.check", *map(str, args)]
    return subprocess.run(arguments, cwd=repository, capture_output=True, text=True)


def damage(file, change):
    value = read_json(file, object)
    change(value)
    write_json(file, value)


def test_help_needs_no_torch(repository):
    code = (
        "import sys\nfrom data_utils import check\n"
        "try: check.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in (
        "--form",
        "--data_root",
        "--image_dir",
        "--no_images",
        "--tokenizer",
        "--max_length",
        "--fix",
        "--drop",
    ):
        assert flag in done.stdout


def test_exit_status_of_the_process(repository, root):
    assert command(repository, root / COMMENT).returncode == 0
    damage(root / COMMENT, lambda records: records[1]["conversations"].pop())
    warned = command(repository, root / COMMENT)
    assert (warned.returncode, warned.stderr) == (0, "")
    assert command(repository, root / COMMENT, "--strict").returncode == 1
    (root / COMMENT).write_text("[")
    assert command(repository, root / COMMENT).returncode == 1
    absent = command(repository, root / "absent.json")
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr == f"error: {root / 'absent.json'} does not exist; give files or folders of data\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["{file}", "--tokenizer", "x"],
        ["{file}", "--max_length", "5"],
        ["{file}", "--tokenizer", "x", "--max_length", "0"],
        ["{file}", "--drop"],
        ["{file}", "{root}", "--fix", "x"],
        ["{file}", "--form", "novel"],
    ],
)
def test_bad_usage(arguments, clean_root):
    with pytest.raises(SystemExit) as stop:
        check.main([argument.format(file=clean_root / COMMENT, root=clean_root) for argument in arguments])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{root}/absent"], "does not exist"),
        (["{root}/images/COCO"], "no JSON file"),
        (["{root}", "--image_dir", "{root}/absent"], "not a folder"),
        (["{root}", "--data_root", "{root}/absent"], "not a folder"),
        (["{root}", "--tokenizer", "{root}/absent", "--max_length", "9"], "absent"),
        (["{root}", "--fix", "{root}/images"], "exists"),
    ],
)
def test_bad_input(arguments, words, clean_root):
    with pytest.raises(UserError, match=words):
        check.main([argument.format(root=clean_root) for argument in arguments])


def test_text_names_kind_file_index_and_id(root, capsys):
    damage(root / COMMENT, lambda records: records[2].update(image="/x.jpg"))
    damage(root / COMMENT, lambda records: records[1]["conversations"].pop())
    assert check.main([str(root / COMMENT)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("error image_outside (1): ")
    assert lines[1] == (
        f"  {root / COMMENT}[2] (id 'Ada_Nova_comment_COCO_2'): image: '/x.jpg' is absolute; "
        "write it relative to the image folder"
    )
    assert lines[3].startswith("warning failed_generation (1, --fix repairs it): ")
    assert lines[4] == f"  {root / COMMENT}[1] (id 'Ada_Nova_comment_COCO_1'): there is only a question"
    assert lines[-2:] == ["dialogues: 1 file, 3 records", "1 error, 1 warning in 1 file"]


def test_all_faults_of_a_record_are_told(root, report):
    def change(records):
        del records[0]["image"]
        records[0]["id"] = 3
        records[0]["conversations"][1]["value"] = ""

    damage(root / COMMENT, change)
    assert report(root / COMMENT)[1]["counts"] == {"missing_field": 1, "wrong_type": 1, "empty_text": 1}


def test_what_is_not_checked_is_told(root, report, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    alone = shutil.copyfile(root / COMMENT, tmp_path / "mine.json")
    status, found = report(alone)
    assert (status, found["counts"]) == (0, {})
    assert list(found["not_checked"]) == [
        "image files (no images/ in the data root; give --image_dir)",
        "names of characters (no profiles/*/roles.json; give --data_root)",
    ]
    assert not report(alone, "--data_root", root)[1]["not_checked"]
    assert list(report(alone, "--data_root", root, "--no_images")[1]["not_checked"]) == ["image files (--no_images)"]
    shutil.rmtree(root / "data/test")
    untested = "against test samples (no data/test/*/*_test.json; give --data_root)"
    for file in (root / ANSWERS, root / "data/train/train.json"):
        assert list(report(file)[1]["not_checked"]) == [untested]


@pytest.mark.parametrize("fields", [{}, {"script": "Moon Tales"}])
@pytest.mark.parametrize("name", ["data/test/in-distribution/inter-role_test.json", TRAIN])
def test_who_talks_with_himself_is_seen_without_the_characters(root, report, monkeypatch, tmp_path, name, fields):
    monkeypatch.chdir(tmp_path)
    sample = read_json(root / name)[0]
    for partner in (sample["role"], sample["role"].lower().replace(" ", "_")):
        write_json(tmp_path / "mine.json", [sample | fields | {"other_role": partner}])
        for roots in ([], ["--data_root", root]):
            counts = report(tmp_path / "mine.json", "--no_images", *roots)[1]["counts"]
            assert counts["wrong_partner"] == 1


def test_images_are_sought_in_the_given_folder(root, report, tmp_path):
    shutil.move(root / "images/COCO", tmp_path / "COCO")
    assert report(root / COMMENT)[1]["counts"] == {"missing_image": 3}
    assert report(root / COMMENT, "--image_dir", tmp_path)[1]["counts"] == {}
    assert report(root / COMMENT, "--no_images")[1]["counts"] == {}


def test_dialogues_of_two_files_share_no_id(root, report):
    shutil.copyfile(root / COMMENT, (root / COMMENT).with_name("Captain_Rook_COCO.json"))
    status, found = report(root / "dialogues")
    assert status == 1
    assert found["counts"] == {"duplicate_id": 3, "wrong_owner": 3}
    assert not any(problem["fixable"] for problem in found["problems"])


@pytest.mark.parametrize(
    "place", ["comment.json", "in_distribution/comment/x.json", "in-distribution/comment/a/x.json"]
)
def test_dialogues_where_nobody_looks_are_misplaced(root, report, place):
    (root / "dialogues" / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / COMMENT, root / "dialogues" / place)
    assert report(root)[1]["counts"] == {"misplaced": 1}


def test_files_of_answers_that_are_not_there_are_told_of_folders(root, report):
    os.remove(root / ANSWERS)
    for folder in (root, (root / ANSWERS).parent):
        status, found = report(folder)
        assert (status, found["counts"]) == (1, {"missing_samples": 1})
        assert "there is no human-role_test.json for the 2 samples of " in found["problems"][0]["text"]
    assert report((root / ANSWERS).with_name("comment_test.json"))[0] == 0


def test_a_file_given_twice_is_checked_once(root, report):
    status, found = report(root / COMMENT, root / "dialogues", root / COMMENT)
    assert (status, found["counts"], len(found["files"])) == (0, {}, 12)


def test_other_json_of_a_repository_is_not_data(root, report):
    write_json(root / "model_weights/config.json", {"model_type": "qwen"})
    write_json(root / ".venv/data.json", [1])
    assert (root / "data/build_info.json").exists()
    status, found = report(root, "--strict")
    assert (status, len(found["files"])) == (0, 48)
    assert report(root / "data", "--strict")[0] == 0
    assert report(root / "model_weights")[1]["counts"] == {"unknown_form": 1}


def test_linked_folders_are_checked(root, report, tmp_path):
    for name in ("dialogues/in-distribution/comment", "eval", "profiles"):
        shutil.move(root / name, tmp_path / "disk" / name)
        (root / name).symlink_to(tmp_path / "disk" / name)
    status, found = report(root, "--strict")
    assert (status, found["counts"], len(found["files"])) == (0, {}, 48)
    (tmp_path / "all").symlink_to(root)
    (root / "dialogues/again").symlink_to(root)  # the folder itself is not entered once more
    status, found = report(tmp_path / "all", "--strict", "--fix", tmp_path / "fixed")
    assert (status, found["counts"], len(found["files"])) == (0, {}, 48)


@pytest.mark.parametrize(
    "name", ["dialogues/in-distribution/comment/x.json", "profiles/in-distribution/raw_info_en/x.txt"]
)
def test_what_is_no_file_is_reported_without_waiting(root, report, name):
    (root / name).parent.mkdir(exist_ok=True)
    os.mkfifo(root / name)
    (root / name).with_stem("y").symlink_to("nothing")
    for path, number in ((root, 2), (root / name, 1)):
        status, found = report(path)
        assert (status, found["counts"]) == (1, {"unreadable": number})


def test_form_can_be_given(root, report, tmp_path):
    test = shutil.copyfile(root / "data/test/in-distribution/human-role_test.json", tmp_path / "mine.json")
    assert report(test, "--data_root", root)[1]["files"][0]["form"] == "test_samples"
    status, found = report(test, "--data_root", root, "--form", "answers")
    assert (status, found["counts"]) == (1, {"missing_field": 2})


def test_file_names_of_any_bytes(repository, root):
    name = os.path.join(os.fsencode(root), b"mine_\xff.json")
    with open(name, "wb") as file:
        file.write(b'["\\ud800"]')
    done = command(repository, os.fsdecode(name), "--form", "answers")
    assert done.returncode == 1
    assert "mine_\\udcff.json[0]: the record is not an object but '\\ud800'" in done.stdout


def test_a_repaired_folder_is_complete_and_passes(root, report, tmp_path):
    damage(root / COMMENT, lambda records: records[1]["conversations"].pop())
    damage(root / "images/annotations.json", lambda stills: stills[0].update(image="STAR_TALES/01.jpg"))
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    out = tmp_path / "repaired"
    status, found = report(root, "--strict", "--fix", out)
    assert (status, found["repaired"]) == (0, {"failed_generation": 1, "image_case": 1})
    assert len(found["files"]) == 48
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before
    for file, content in before.items():
        copy = out / file.relative_to(root)
        changed = file in (root / COMMENT, root / "images/annotations.json")
        assert copy.exists() or file.suffix == ".jpg" or file.name == "build_info.json"
        assert changed or not copy.exists() or copy.read_bytes() == content
    assert report(out, "--strict", "--image_dir", root / "images")[0] == 0


def test_repairs_of_one_text_are_made_in_turn(root, report, tmp_path):
    text = " Ada\r\nsays so.</s> \x07<|im_end|>\n"
    damage(root / COMMENT, lambda records: records[0]["conversations"][1].update(role="ada nova", value=text))
    status, found = report(root / COMMENT, "--strict", "--fix", tmp_path / "fixed.json")
    assert (status, found["counts"]) == (0, {})
    assert set(found["repaired"]) == {"control_character", "trailing_token", "surrounding_space", "role_spelling"}
    fixed = read_json(tmp_path / "fixed.json")[0]["conversations"][1]
    assert fixed == {"role": "Ada Nova", "value": "Ada\nsays so."}


def test_markup_is_kept_when_the_text_behind_it_is_repaired(root, report, tmp_path):
    def change(records):
        turn = records[0]["conversations"][0]
        turn["value"] = turn["value"].replace("<img>images/COCO/", "<img>coco\\") + "\x07"

    before = read_json(root / TRAIN)
    damage(root / TRAIN, change)
    status, found = report(root / TRAIN, "--strict", "--fix", tmp_path / "fixed.json")
    assert (status, set(found["repaired"])) == (0, {"image_form", "image_case", "control_character"})
    assert read_json(tmp_path / "fixed.json") == before


def test_drop_leaves_out_what_cannot_be_repaired(root, report, tmp_path):
    def change(records):
        del records[1]["image"]
        records[2]["conversations"][1]["value"] += "\n"

    damage(root / COMMENT, change)
    status, found = report(root / COMMENT, "--fix", tmp_path / "fixed.json")
    assert (status, found["counts"], found["repaired"]) == (1, {"missing_field": 1}, {"surrounding_space": 1})
    status, found = report(root / COMMENT, "--strict", "--fix", tmp_path / "dropped.json", "--drop")
    assert (status, found["repaired"]) == (0, {"surrounding_space": 1, "dropped": 1})
    assert [record["id"][-1] for record in read_json(tmp_path / "dropped.json")] == ["0", "2"]


def test_what_is_left_is_checked_as_what_the_file_was(root, report, tmp_path):
    def change(records):
        del records[3:]
        records[0]["conversations"][0]["role"] = None  # by itself it looks like a dialogue
        del records[1]["conversations"][1]["value"], records[2]["conversations"][1]["value"]

    file = root / "RM_data/train/RM-train.json"
    damage(file, change)
    status, found = report(file, "--fix", tmp_path / "fixed.json", "--drop")
    assert (status, found["repaired"]) == (0, {"dropped": 2})
    assert found["files"] == [{"file": str(tmp_path / "fixed.json"), "form": "rm_training", "records": 1}]


def test_what_cannot_be_read_is_not_repaired(root, report, tmp_path, capsys):
    (root / ANSWERS).write_text("[{")
    status, found = report(root / ANSWERS, "--fix", tmp_path / "fixed.json")
    assert (status, found["counts"]) == (1, {"unreadable": 1})
    assert not (tmp_path / "fixed.json").exists()
    assert check.main([str(root / ANSWERS), "--fix", str(tmp_path / "fixed.json")]) == 1
    assert f"fixed.json is not written: {root / ANSWERS} cannot be repaired\n" in capsys.readouterr().err


def test_a_full_disk_ends_repairs_with_one_line(on_small_disk):
    code = """
import json
from data_utils import check
from mmrole.base.errors import run
turns = [{"role": "human", "value": "a"}, {"role": "Ada", "value": "b "}] * 500
record = {"id": "Ada_human-role-dialogue_COCO_0", "image": "COCO/1.jpg", "conversations": turns}
(folder / "mine.json").write_text(json.dumps([record]))
run(lambda: check.main([str(folder / "mine.json"), "--fix", str(folder / "fixed.json")]))
"""
    done = on_small_disk(code)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: cannot write ")
    assert len(done.stderr.splitlines()) == 1
