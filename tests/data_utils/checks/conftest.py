"""A small data set in the published layout, with every form of file and nothing wrong in it."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from data_utils import build_dataset, build_rm_data
from mmrole.base.files import read_json, write_json
from mmrole.data.prompts import METRICS

ROLES = {
    "Star Tales": ["Ada Nova", "Captain Rook"],
    "西游记": ["孙悟空", "唐僧"],
    "the Age of Sail": ["Grace Tide", "Tom Wick"],
    "Hypothetical Characters": ["Mina Okafor", "Jon Berg"],
}
IMAGES = ["Star_Tales/01.jpg", "西游记/01.jpg", "Hypothetical_Characters/01.jpg", "COCO/train2017/000000000001.jpg"]
INFO = {"role_info": "A pilot.", "place_info": "Dock 7.", "scene_info": "The ship is late."}

QUESTIONS = {
    "English": ["What do you see in this image?", "Does it remind you of home?", "Who could have built that?"],
    "Chinese": ["你在这幅画里看到了什么？", "这让你想起了家乡吗？", "这会是谁造的呢？"],
}
REPLIES = {
    "English": [
        "A ship that waits for its pilot, as I do on most days of the week.",
        "A little. The lamps at the dock were just as yellow when I was small.",
        "Somebody with more patience than money, if you ask me.",
    ],
    "Chinese": [
        "俺老孙看到一条大船，停在水边等着开航。",
        "有一点像花果山的清晨，雾气还没有散去。",
        "必是个手艺了得的匠人所造。",
    ],
}


def _dialogue(owner: str, partner: str, kind: str, name: str, source: str, number: int, chinese: bool) -> dict:
    language = "Chinese" if chinese else "English"
    number_of_all = 10 * len(name) + number  # so that no two dialogues say the same
    first = f"第{number_of_all}幅，" if chinese else f"Number {number_of_all}, "
    rounds = 1 if kind == "comment" else 3
    turns = []
    for question, reply in zip(QUESTIONS[language][:rounds], REPLIES[language], strict=False):
        key = "from" if kind == "comment" else "role"
        turns += [{key: partner, "value": first + question}, {"role": owner, "value": first + reply}]
    series = next(series for series, roles in ROLES.items() if owner in roles)
    image = IMAGES[-1] if source == "COCO" else f"{series.replace(' ', '_')}/01.jpg"
    id_ = f"{owner.replace(' ', '_')}_{name}_{source}_{number}"
    info = {} if source == "COCO" else INFO
    return {"id": id_, "image": image, **info, "conversations": turns}


def _write_dialogues(root: Path) -> None:
    for owner, partner in (("Ada Nova", "Captain Rook"), ("孙悟空", "唐僧")):
        types = {"comment": "comment", "human-role": "human-role-dialogue", "inter-role": "role-role-dialogue"}
        for kind, name in types.items():
            for source in ("COCO", "script"):
                speaker = partner if kind == "inter-role" else "human"
                dialogues = [_dialogue(owner, speaker, kind, name, source, n, owner == "孙悟空") for n in range(3)]
                file = f"dialogues/in-distribution/{kind}/{owner.replace(' ', '_')}_{source}.json"
                write_json(root / file, dialogues)


def _write_characters(root: Path) -> None:
    folder = root / "profiles/in-distribution"
    write_json(folder / "roles.json", ROLES)
    roles = [role for names in ROLES.values() for role in names]
    write_json(folder / "profiles.json", {role: f"### Introduction\n{role} is known far and wide." for role in roles})
    for role in roles:
        name = role.replace(" ", "_")
        fields = ("introduction", "personality", "experience", "relationship", "catchphrase")
        write_json(folder / f"detailed_profiles/{name}.json", {field: f"The {field} of {role}." for field in fields})
        (folder / "raw_info_en").mkdir(exist_ok=True)
        (folder / f"raw_info_en/{name}.txt").write_text(f"All about {role}.", encoding="utf-8")
    for role in ROLES["Hypothetical Characters"]:
        meta = {"name": role, "gender": "x", "age": "30", "origin": "Oslo", "personality": "calm", "experience": ""}
        write_json(folder / f"meta_info_hypo/{role.replace(' ', '_')}.json", meta)


def _write_answers(root: Path) -> None:
    for file in sorted((root / "data/test/in-distribution").glob("*.json")):
        answers = read_json(file)
        for answer in answers:
            chinese = answer["script"] == "西游记"
            text = "好一幅画，俺老孙喜欢得紧。" if chinese else "I like it; there is a story in every window."
            answer["conversations"][1]["answer"] = text
        write_json(root / "eval/in-test_answers/some-model" / file.name, answers)
        review = {"review": "Both do well. [Scores]: (8, 10)", "score": [8.0, 10.0]}
        reviews = [answer | {"rm_review": dict.fromkeys(METRICS, review)} for answer in answers]
        write_json(root / "eval/in-test_reviews/some-model" / file.name, reviews)
        table = root / "eval/in-test_results/some-model" / f"{file.stem}.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(",".join(["count", *METRICS]) + f"\n{len(answers)}" + ",0.8" * 8 + "\n")


@pytest.fixture(scope="session")
def clean_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set; not to be changed."""
    root = tmp_path_factory.mktemp("clean")
    for image in IMAGES:
        (root / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "teal").save(root / "images" / image)
    write_json(root / "images/annotations.json", [{"image": image, **INFO} for image in IMAGES[:-1]])
    _write_characters(root)
    _write_dialogues(root)
    build_dataset.main(["--data_root", str(root), "--output_dir", str(root / "data")])
    _write_answers(root)
    build_rm_data.main(["--reviews", str(root / "eval/in-test_reviews"), "--output_dir", str(root / "RM_data")])
    return root


@pytest.fixture
def root(clean_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set to damage."""
    return Path(shutil.copytree(clean_root, tmp_path / "root"))
