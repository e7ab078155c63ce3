"""Checkpoint folders: which are complete, which are a run's own, and that no other is written over or removed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.base.errors import UserError
from mmrole.training import run_checkpoints
from mmrole.training.run_checkpoints import MANIFEST, UNFINISHED
from mmrole.training.run_fingerprint import difference

RUN = {"--seed": 42, "--data_path": "train.json 0123456789abcdef", "pixels": "2"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def complete(folder: Path, run: dict = RUN) -> Path:
    """A complete checkpoint of a run."""
    run_checkpoints.claim(folder, run)
    (folder / "states").mkdir()
    (folder / "states/weights").write_text("x")
    run_checkpoints.seal(folder, run)
    return folder


def unfinished(folder: Path, run: dict = RUN) -> Path:
    """What a kill leaves of a save."""
    run_checkpoints.claim(folder, run)
    (folder / "weights").write_text("x")
    return folder


def foreign(folder: Path) -> Path:
    """Another trainer's."""
    folder.mkdir()
    (folder / "weights").write_text("mine")
    return folder


def test_own_is_what_this_run_has_written_alone(tmp_path):
    assert run_checkpoints.is_own(complete(tmp_path / "checkpoint-1"), RUN)
    assert run_checkpoints.is_own(unfinished(tmp_path / "checkpoint-2"), RUN)
    assert not run_checkpoints.is_own(complete(tmp_path / "checkpoint-3"), RUN | {"--seed": 1})
    assert not run_checkpoints.is_own(foreign(tmp_path / "checkpoint-4"), RUN)
    (tmp_path / "checkpoint-1/notes.txt").write_text("mine")
    assert not run_checkpoints.is_own(tmp_path / "checkpoint-1", RUN)
    (tmp_path / "checkpoint-5").symlink_to(tmp_path / "checkpoint-2")
    assert not run_checkpoints.is_own(tmp_path / "checkpoint-5", RUN)


def test_surplus_is_counted_and_removed_among_own_checkpoints(tmp_path):
    for step in (1, 3, 10):
        complete(tmp_path / f"checkpoint-{step}")
    unfinished(tmp_path / "checkpoint-2")
    others = [foreign(tmp_path / "checkpoint-4"), complete(tmp_path / "checkpoint-5", RUN | {"--seed": 1})]
    assert run_checkpoints.find_newest(tmp_path)[0] == tmp_path / "checkpoint-10"
    run_checkpoints.remove_surplus(tmp_path, RUN, None)
    assert len(run_checkpoints.find_all(tmp_path)) == 6
    run_checkpoints.remove_surplus(tmp_path, RUN, 2)
    assert [folder.name for folder in run_checkpoints.find_all(tmp_path)] == [f"checkpoint-{n}" for n in (10, 5, 4, 3)]
    assert all((folder.exists()) for folder in others)


def test_what_a_kill_leaves_is_written_anew(tmp_path):
    folder = unfinished(tmp_path / "checkpoint-2")
    run_checkpoints.claim(folder, RUN)
    assert [file.name for file in folder.iterdir()] == [UNFINISHED]
    halfway = complete(tmp_path / "checkpoint-3")
    (halfway / MANIFEST).rename(halfway / UNFINISHED)  # a removal begins so
    assert run_checkpoints.fault(halfway) == "it was not written to the end"
    assert run_checkpoints.is_own(halfway, RUN)
    begun = tmp_path / "checkpoint-4"
    begun.mkdir()
    (begun / f".{UNFINISHED}.partial").write_text("{")
    run_checkpoints.check_free(tmp_path, RUN, done=3, total=4)
    complete(begun)
    assert run_checkpoints.fault(begun) is None
    assert not list(begun.glob(".*"))


@pytest.mark.parametrize("make", [foreign, lambda path: path.write_text("mine"), lambda path: path.symlink_to("gone")])
def test_what_is_somebody_elses_is_not_written_over(tmp_path, make):
    folder = tmp_path / "checkpoint-2"
    make(folder)
    with pytest.raises(UserError, match=r"checkpoint-2 was not written by this run"):
        run_checkpoints.check_free(tmp_path, RUN, done=1, total=2)
    with pytest.raises(UserError, match=r"checkpoint-2 was not written by this run"):
        run_checkpoints.claim(folder, RUN)
    run_checkpoints.check_free(tmp_path, RUN, done=2, total=4)
    run_checkpoints.check_free(tmp_path, RUN, done=0, total=1)


def test_finished_work_is_not_trained_again(tmp_path):
    complete(tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match=r"checkpoint-3 is complete, and going on from step 2 would write over it"):
        run_checkpoints.check_free(tmp_path, RUN, done=2, total=4)


@given(JSON)
def test_no_manifest_ends_in_a_traceback(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("manifests") / "checkpoint-1"
    folder.mkdir()
    for text in (value, {"run": value, "files": {}}, {"run": {}, "files": value}, {"run": {}, "files": {"x": value}}):
        (folder / MANIFEST).write_text(json.dumps(text))
        run_checkpoints.fault(folder)
        run_checkpoints.is_own(folder, RUN)
        run_checkpoints.find_newest(folder.parent)


@pytest.mark.parametrize("name", ["../mine", "/etc/hostname", "a/../../mine", ""])
def test_a_manifest_names_nothing_outside_of_its_folder(tmp_path, name):
    folder = complete(tmp_path / "checkpoint-1")
    (folder / MANIFEST).write_text(json.dumps({"run": RUN, "files": {name: 1}}))
    assert run_checkpoints.fault(folder) == f"its {MANIFEST} cannot be read"


@pytest.mark.parametrize(("fix_vit", "frozen"), [(True, "vision"), (False, "")])
def test_earlier_versions_said_whether_the_tower_is_frozen(tmp_path, fix_vit, frozen):
    folder = complete(tmp_path / "checkpoint-1", RUN | {"--fix_vit": fix_vit})
    run_checkpoints.check_run(folder, RUN | {"--freeze": frozen})
    with pytest.raises(UserError, match="--freeze"):
        run_checkpoints.check_run(folder, RUN | {"--freeze": "vision,projector"})


def test_what_makes_another_run():
    assert difference(RUN, RUN) is None
    assert difference(RUN, RUN | {"--data_path": "renamed.json 0123456789abcdef"}) is None
    assert difference(RUN, RUN | {"--data_path": "train.json 0000000000000000"}) == "--data_path"
    assert difference(RUN, RUN | {"--eval_data_path": "new.json 0000000000000000"}) is None
    assert difference({"--seed": 42}, RUN) == "pixels"
