"""The built files against the published ones, and the rules of the split on other people's characters."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils import build_dataset
from mmrole.base.errors import UserError
from mmrole.base.files import read_json, read_records, write_json
from mmrole.data.dataset import Dataset, PlacedDialogue
from mmrole.data.dialogues import TYPES, Dialogue, DialogueFile
from mmrole.data.profiles import Character
from mmrole.data.prompts import HUMAN_PARTNER, HUMAN_SPEAKER
from mmrole.data.records import Sample, TrainingRecord
from mmrole.data.splits import draw_split, find_test_files, read_test_samples, split_by_ids

IN, OUT = "in-distribution", "out-of-distribution"


def build(data_root: Path, output_dir: Path, *more: object) -> dict:
    """Runs the command; returns its build_info.json."""
    build_dataset.main(["--data_root", str(data_root), "--output_dir", str(output_dir), *map(str, more)])
    return read_json(output_dir / "build_info.json", dict)


@pytest.fixture(scope="module")
def rebuilt(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built from the published dialogues, with the test samples of the published In-Test answers."""
    output_dir = tmp_path_factory.mktemp("rebuilt")
    build(shared / "mmrole", output_dir, "--test_from", shared / "mmrole/eval/in-test_answers/gpt-4-turbo")
    return output_dir


def test_published_in_test_samples_are_rebuilt_byte_for_byte(shared: Path, rebuilt: Path):
    left_out = read_json(rebuilt / "build_info.json", dict)["test_ids_left_out"]
    assert list(map(len, left_out.values())) == [25]
    missing = {id_ for ids in left_out.values() for id_ in ids}
    n_samples = 0
    for kind in TYPES:
        published = read_json(shared / f"mmrole/eval/in-test_answers/gpt-4-turbo/{kind}_test.json")
        for sample in published:
            del sample["conversations"][1]["answer"]
        available = [sample for sample in published if sample["id"] not in missing]
        n_samples += len(available)
        write_json(rebuilt / "published.json", available)
        built = rebuilt / f"test/{IN}/{kind}_test.json"
        assert built.read_bytes() == (rebuilt / "published.json").read_bytes()
    assert n_samples == 191
    assert not (rebuilt / f"test/{OUT}").exists()


def test_published_training_samples(rebuilt: Path):
    samples = read_records(rebuilt / "train/train.json", TrainingRecord)
    assert Counter(sample.type for sample in samples) == {"comment": 4795, "human-role": 22_093, "inter-role": 45_663}
    assert len({sample.id for sample in samples}) == len(samples) == 72_551
    tested = {sample.id for path in rebuilt.glob("test/*/*.json") for sample in read_records(path, Sample)}
    assert len(tested) == 191
    held_out = {id_.rpartition("_")[0] for id_ in tested}
    assert not held_out & {sample.id.rpartition("_")[0] for sample in samples}


def test_published_training_turns_are_those_of_the_original_trainer(shared: Path, rebuilt: Path):
    """The golden cases hold user turns with the markup that training files have, of samples that are tested here."""
    cases = read_json(shared / "golden/mmrole/preprocess_cases.json", dict)["cases"]
    golden = {case["name"].split()[-1]: case["conversations"] for case in cases if "_test.json[" in case["name"]}
    built = {
        sample["id"]: build_dataset.as_training(sample, "any")["conversations"]
        for kind in TYPES
        for sample in read_json(rebuilt / f"test/{IN}/{kind}_test.json")
    }
    assert golden.keys() & built.keys()
    for id_ in golden.keys() & built.keys():
        assert built[id_] == golden[id_]


def test_a_small_world(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    info = build(small_world, tmp_path / "out")
    counts = {name: file["records"] for name, file in info["files"].items()}
    assert counts == {
        "train/train.json": 4 * (1 + 3) + 2 * 5,  # of two usable dialogues of each kind, one is tested
        **{f"test/{IN}/{kind}_test.json": 2 if kind == "inter-role" else 4 for kind in TYPES},
        **{f"test/{OUT}/{kind}_test.json": 4 for kind in TYPES},
    }
    assert info["training_samples"] == {"comment": 4, "human-role": 12, "inter-role": 10}
    printed = capsys.readouterr().out
    assert "characters: 6, dialogues: 32 (besides 10 failed generations, which are left out)" in printed
    assert "no inter-role dialogues of their own (2): Cai, 小船" in printed
    for sample in read_records(tmp_path / "out/train/train.json", TrainingRecord):
        assert sample.turns[0].value.startswith(
            f"Picture 1: <img>images/{sample.images[0]}</img>\nPlease step into the"
        )
        assert (sample.type in sample.id) or sample.type == "inter-role"
        assert list(sample.json) == ["id", "type", "system", "image", "conversations", "role", "script", "other_role"]
    samples = {path.stem: read_records(path, Sample) for path in (tmp_path / f"out/test/{IN}").glob("*.json")}
    assert [sample.role for sample in samples["comment_test"]] == ["Ana", "Bo Li", "Cai", "小船"]
    turns = Counter(int(sample.id.rpartition("_")[2]) for sample in samples["human-role_test"])
    assert turns[1] == turns[3] + turns[5] == 2
    assert "in Chinese using" in samples["comment_test"][3].question


def test_files_that_are_not_read_are_named(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = small_world / "dialogues" / IN
    for name in ("comment/old/Ana_COCO.json", "human_role.json", "README.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("[]")
    build(small_world, tmp_path / "out")
    names = [str(folder / name) for name in ("comment/old/Ana_COCO.json", "human_role.json")]
    wanted = "not read, since they are not in dialogues/<distribution>/<type>/ (2): "
    assert wanted + ", ".join(names) in capsys.readouterr().out


def test_dialogues_that_all_failed_build_nothing(small_world: Path, tmp_path: Path):
    for path in (small_world / "dialogues").rglob("*.json"):
        write_json(path, [dialogue | {"conversations": []} for dialogue in read_json(path)])
    with pytest.raises(UserError, match="has no samples to build: every dialogue's generation failed"):
        build(small_world, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_given_ids_are_found_in_and_below_folders(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    first = build(small_world, tmp_path / "drawn")
    again = build(small_world, tmp_path / "again", "--test_from", tmp_path / "drawn/test")
    assert again["files"] == first["files"]
    assert "22 of 22 are the same as in --test_from" in capsys.readouterr().out
    places = [tmp_path / f"drawn/test/{IN}", tmp_path / f"drawn/test/{OUT}/comment_test.json"]
    parts = build(small_world, tmp_path / "parts", "--test_from", *places)
    assert parts["files"]["train/train.json"] == first["files"]["train/train.json"]
    assert f"test/{OUT}/comment_test.json" in parts["files"]
    assert f"test/{OUT}/human-role_test.json" not in parts["files"]


def test_ids_that_cannot_be_made_are_left_out_and_named(small_world: Path, tmp_path: Path):
    build(small_world, tmp_path / "drawn")
    path = tmp_path / "drawn/test/in-distribution/human-role_test.json"
    samples = read_json(path)
    ids = [
        "Ana_human-role-dialogue_COCO_9_1",
        "Ana_human-role-dialogue_COCO_2_1",
        "Cai_human-role-dialogue_COCO_0_2",
        "x",
    ]
    write_json(path, [samples[0] | {"id": id_} for id_ in ids])
    info = build(small_world, tmp_path / "out", "--test_from", path)
    assert info["test_ids_left_out"] == {
        "the dialogue is not there": ["Ana_human-role-dialogue_COCO_9_1", "x"],
        "the dialogue's generation failed": ["Ana_human-role-dialogue_COCO_2_1"],
        "the dialogue has no such utterance of a character": ["Cai_human-role-dialogue_COCO_0_2"],
    }
    trained = {sample.id for sample in read_records(tmp_path / "out/train/train.json", TrainingRecord)}
    assert not any(id_.startswith("Cai_human-role-dialogue_COCO_0_") for id_ in trained)


def test_what_differs_from_the_given_samples_is_told(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    build(small_world, tmp_path / "drawn")
    path = small_world / "profiles/in-distribution/profiles.json"
    write_json(path, read_json(path, dict) | {"Cai": "Has changed."})
    build(small_world, tmp_path / "out", "--test_from", tmp_path / "drawn/test")
    assert "2 differ, because a dialogue or a profile does: Cai_comment_COCO_" in capsys.readouterr().out


def test_nothing_is_overwritten_unasked(small_world: Path, tmp_path: Path):
    build(small_world, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    with pytest.raises(UserError, match="exists already; give another --output_dir, or --overwrite"):
        build(small_world, tmp_path / "out", "--seed", 5)
    with pytest.raises(UserError, match="of --test_from would be replaced"):
        build(small_world, tmp_path / "out", "--test_from", tmp_path / "out/test", "--overwrite")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    (tmp_path / "out/test/in-distribution/notes.txt").write_text("mine")
    for path in small_world.glob("dialogues/out-of-distribution/*.json"):
        path.unlink()
    info = build(small_world, tmp_path / "out", "--overwrite")
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left == {*info["files"], "build_info.json", "test/in-distribution/notes.txt"}


def test_the_seed_decides(small_world: Path, tmp_path: Path):
    first = build(small_world, tmp_path / "a", "--seed", 1)["files"]
    assert build(small_world, tmp_path / "b", "--seed", 1)["files"] == first
    assert build(small_world, tmp_path / "c", "--seed", 2)["files"] != first


def test_command_line(repository: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "data_utils.build_dataset",
        "--data_root",
        tmp_path,
        "--output_dir",
        tmp_path / "o",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "o").exists()
    code = "import sys; from data_utils import build_dataset; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=repository, text=True) == "False\n"


NAMES = st.text("abcXY é'\"船", min_size=1, max_size=6).filter(lambda name: name.strip() and name != HUMAN_SPEAKER)


@st.composite
def worlds(draw: st.DrawFn) -> Dataset:
    """Characters of several series in and out of distribution, with talks of any length, some of them failed."""
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    characters = {}
    for name in names:
        distribution = draw(st.sampled_from([IN, IN, OUT]))
        series = draw(st.sampled_from(["Harbour", "中国唐代", "Hypothetical Characters"]))
        characters[name] = Character(name, series, distribution, f"\n{name} is known.\n")
    placed = []
    for number in range(draw(st.integers(1, 25))):
        kind, owner = draw(st.sampled_from(TYPES)), draw(st.sampled_from(names))
        of_series = [name for name in names if characters[name].series == characters[owner].series and name != owner]
        partner = draw(st.sampled_from(of_series)) if kind == "inter-role" and of_series else HUMAN_SPEAKER
        if kind == "inter-role" and partner == HUMAN_SPEAKER:
            continue
        outside = OUT in {characters[name].distribution for name in (owner, partner) if name in characters}
        length = draw(st.sampled_from([0, 1, 2] if kind == "comment" else [0, 1, 2, 3, 4, 7]))
        turns = [{"role": (partner, owner)[n % 2], "value": f"{number}.{n}"} for n in range(length)]
        image = draw(st.sampled_from(["COCO/1.jpg", "Harbour/1.jpg"]))
        dialogue = Dialogue.from_json({"id": f"{owner}_{number}", "image": image, "conversations": turns})
        file = DialogueFile(Path("any.json"), OUT if outside else IN, kind, None, None)
        placed.append(PlacedDialogue(dialogue, file))
    return Dataset(characters, placed)


@given(world=worlds(), seed=st.integers())
def test_a_drawn_split_obeys_the_published_rule(world: Dataset, seed: int):
    split = draw_split(world, seed)
    for (distribution, kind), targets in split.targets.items():
        pools = Counter()
        longer = set()
        for dialogue in world.usable(distribution, kind):
            pool = dialogue.owner, distribution == OUT and dialogue.image.startswith("COCO")
            pools[pool] += 1
            allowed = [world.characters.get(utterance.speaker) for utterance in dialogue.utterances]
            spoken = Counter(who.name for who in allowed if who and who.distribution == distribution)
            if max(spoken.values()) > 1:
                longer.add(pool)
        drawn = [
            (target.placed.dialogue.owner, distribution == OUT and target.placed.dialogue.image.startswith("COCO"))
            for target in targets
        ]
        assert sorted(drawn) == sorted(pools)  # one for each, and none twice
        later = 0
        for target in targets:
            dialogue = target.placed.dialogue
            speaker = dialogue.utterances[target.index].speaker
            assert world.characters[speaker].distribution == distribution
            later += any(utterance.speaker == speaker for utterance in dialogue.utterances[: target.index])
        assert later <= len(targets) // 2
        assert later >= len(targets) // 2 - (len(pools) - len(longer))


@given(world=worlds(), seed=st.integers())
def test_training_samples_are_all_other_utterances_of_in_distribution_characters(world: Dataset, seed: int):
    split = draw_split(world, seed)
    trained = list(build_dataset.training_samples(world, split))
    assert len(split.held_out) == sum(map(len, split.targets.values()))
    expected = {
        (f"{dialogue.id}_{index}", utterance.speaker, utterance.value)
        for kind in TYPES
        for dialogue in world.usable(IN, kind)
        if dialogue.id not in split.held_out
        for index, utterance in enumerate(dialogue.utterances)
        if utterance.speaker != HUMAN_SPEAKER
    }
    found = [(sample["id"], sample["role"], sample["conversations"][1]["value"]) for sample in trained]
    assert len(found) == len(expected)
    assert set(found) == expected
    for sample in trained:
        partner = sample["other_role"]
        assert world.characters[sample["role"]].distribution == IN
        assert partner == HUMAN_PARTNER or world.characters[partner].distribution == IN
        # Everything that was said before is in the prompt, in order, and nothing of what comes after.
        _, number, target = sample["id"].rsplit("_", 2)
        question = sample["conversations"][0]["value"]
        places = [question.find(f"{number}.{n}") for n in range(int(target))]
        assert -1 not in places
        assert places == sorted(places)
        assert f"{number}.{target}" not in question


@given(world=worlds(), seed=st.integers())
def test_drawn_ids_give_the_same_split(world: Dataset, seed: int):
    drawn = draw_split(world, seed)
    targets = [target for targets in drawn.targets.values() for target in targets]
    split = split_by_ids(world, [target.placed.dialogue.sample_id(target.index) for target in targets])
    assert split == drawn


@given(world=worlds(), seed=st.integers(), data=st.data())
def test_a_new_character_moves_at_most_one_other_draw_of_a_type(world: Dataset, seed: int, data: st.DataObject):
    owners = sorted({placed.dialogue.owner for placed in world.dialogues if not placed.dialogue.failed})
    if not owners:
        return
    new = data.draw(st.sampled_from(owners))
    without = Dataset(world.characters, [placed for placed in world.dialogues if placed.dialogue.owner != new])
    before, after = draw_split(without, seed).targets, draw_split(world, seed).targets
    for (distribution, kind), targets in after.items():
        added = sum(target.placed.dialogue.owner == new for target in targets)
        assert len(set(before[distribution, kind]) - set(targets)) <= added


def test_published_answers_and_reviews_name_the_same_ids(shared: Path):
    folder = shared / "mmrole/eval"
    of_one_model = read_test_samples(find_test_files([folder / "in-test_answers/yi-vl-6b"]))
    of_all = read_test_samples(find_test_files([folder]))
    reviewed = read_test_samples(find_test_files(sorted((folder / "in-test_reviews/gpt-4-turbo").glob("*.json"))))
    assert [sample.id for sample in reviewed] == [sample.id for sample in of_one_model]
    assert {sample.id for sample in of_all} == {sample.id for sample in of_one_model}
    assert len(of_all) == 216
