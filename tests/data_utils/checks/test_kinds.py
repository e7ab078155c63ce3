"""Every kind of damage, seeded alone into files with nothing wrong in them, is found, and nothing else is."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from data_utils import check
from data_utils.checks.problems import ERROR, KINDS
from mmrole.base.files import read_json, write_json
from mmrole.base.json_values import Json
from mmrole.qwen_vl.vocabulary import byte_vocabulary

DIALOGUES = "dialogues/in-distribution"
COMMENT, HUMAN = f"{DIALOGUES}/comment/Ada_Nova_COCO.json", f"{DIALOGUES}/human-role/Ada_Nova_script.json"
INTER, CHINESE = f"{DIALOGUES}/inter-role/Ada_Nova_COCO.json", f"{DIALOGUES}/comment/孙悟空_COCO.json"
CHARACTERS = "profiles/in-distribution"
ROLES, PROFILES = f"{CHARACTERS}/roles.json", f"{CHARACTERS}/profiles.json"
DETAILS, META = f"{CHARACTERS}/detailed_profiles/Ada_Nova.json", f"{CHARACTERS}/meta_info_hypo/Jon_Berg.json"
RAW = f"{CHARACTERS}/raw_info_en/Ada_Nova.txt"
STILLS = "images/annotations.json"
TEST = "data/test/in-distribution/human-role_test.json"
TEST_INTER = "data/test/in-distribution/inter-role_test.json"
TRAIN, RM = "data/train/train.json", "RM_data/train/RM-train.json"
ANSWERS = "eval/in-test_answers/some-model/human-role_test.json"
REVIEWS = "eval/in-test_reviews/some-model/human-role_test.json"
RESULTS = "eval/in-test_results/some-model/human-role_test.csv"

Damage = Callable[[Path], None]
"""Damages a file."""

QUESTION, REPLY = (0, "conversations", 0, "value"), (0, "conversations", 1, "value")
ANSWER = (0, "conversations", 1, "answer")
REVIEW = (0, "rm_review", "Fluency")


class Seed(NamedTuple):
    """A case of damage: in which file, and how it is done."""

    kind: str
    file: str
    damage: Damage
    options: tuple[str, ...] = ()


def change(path: tuple, new: Callable[[Json], Json]) -> Damage:
    """Replaces the value at a path of a JSON file."""

    def damage(file: Path) -> None:
        value = read_json(file, object)
        if path:
            *outer, last = path
            inner = value
            for key in outer:
                inner = inner[key]
            inner[last] = new(inner[last])
        else:
            value = new(value)
        write_json(file, value)

    return damage


def put(*path_and_value: Json) -> Damage:
    """Sets the value at a path."""
    *path, value = path_and_value
    return change(tuple(path), lambda _: copy.deepcopy(value))


def without(*path: Json) -> Damage:
    """Deletes what is at a path."""
    *outer, last = path

    def remaining(value: Json) -> Json:
        del value[last]
        return value

    return change(tuple(outer), remaining)


def add(text: str, *path: Json) -> Damage:
    """Appends to the text at a path."""
    return change(path, lambda value: value + text)


def replace(old: str, new: str, index: int = 0) -> Damage:
    """Replaces words wherever they are in one record."""
    return change(
        (index,), lambda record: json.loads(json.dumps(record, ensure_ascii=False).replace(old, json.dumps(new)[1:-1]))
    )


def raw(new: Callable[[bytes], bytes]) -> Damage:
    """Replaces the bytes of a file."""
    return lambda file: file.write_bytes(new(file.read_bytes()))


def lines(file: Path) -> None:
    """Writes a list as JSON Lines."""
    file.write_text("\n".join(json.dumps(record) for record in read_json(file)))


def renamed_turns(record: Json) -> Json:
    """The turns of a record as other projects name them."""
    for turn, name in zip(record["conversations"], ("human", "gpt"), strict=True):
        turn["from"] = name
    return record


def openai_turns(record: Json) -> Json:
    """The turns of a record with role and content."""
    turns = [{"role": turn["from"], "content": turn["value"]} for turn in record["conversations"]]
    return record | {"conversations": turns}


def copied(change_copy: Callable[[Json], Json] = lambda record: record) -> Damage:
    """Appends a copy of the first record."""
    return change((), lambda records: [*records, change_copy(copy.deepcopy(records[0]))])


def unreadable_image(file: Path) -> None:
    """Breaks the image of a file of dialogues."""
    (file.parents[3] / "images/COCO/train2017/000000000001.jpg").write_bytes(b"\xff\xd8 no picture")


def deep_image(file: Path) -> None:
    """Puts a picture of 16 bits in the place of the image of a file of dialogues."""
    image = file.parents[3] / "images/COCO/train2017/000000000001.jpg"
    Image.new("I;16", (16, 16), 3000).save(image, "PNG")


def strip(file: Path) -> None:
    """Puts a long, low picture in the place of the image of a file of training samples."""
    Image.new("RGB", (1600, 4)).save(file.parents[2] / "images/COCO/train2017/000000000001.jpg")


def leak(file: Path) -> None:
    """Makes a training sample one of a test dialogue."""
    test = read_json(file.parents[2] / TEST)[0]["id"]
    change((0, "id"), lambda _: test.rpartition("_")[0] + "_99")(file)


def talks_with_itself(file: Path) -> None:
    """Makes the partner of a sample the character itself, in fields and prompt, as in one published test sample."""
    sample = read_json(file)[0]
    replace(sample["other_role"], sample["role"])(file)


SEEDS = [
    Seed("unreadable", COMMENT, raw(lambda data: data[:-20])),
    Seed("unreadable", TRAIN, raw(lambda data: data.replace(b"Ada", b"\xff", 1))),
    Seed("unreadable", PROFILES, raw(lambda data: data.replace(b'"Captain Rook"', b'"Ada Nova"', 1))),
    Seed("unreadable", ANSWERS, raw(lambda data: b"[" * 100 + b"]" * 100)),
    Seed("unreadable", ANSWERS, raw(lambda data: b"[" * 100_000 + b"]" * 100_000)),
    Seed("unreadable", RAW, raw(lambda data: b"\xff\xfe")),
    Seed("json_lines", ANSWERS, lines),
    Seed("json_lines", TRAIN, lines),
    Seed("unknown_form", TEST, put({"samples": 3})),
    Seed("unknown_form", STILLS, put("text")),
    Seed("misplaced", COMMENT, lambda file: file.write_bytes((file.parents[3] / ANSWERS).read_bytes())),
    Seed("no_records", ANSWERS, put([])),
    Seed("no_records", ROLES, put("Star Tales", [])),
    Seed("results_form", RESULTS, raw(lambda data: data.replace(b"Fluency,", b""))),
    Seed("results_form", RESULTS, raw(lambda data: data.replace(b"0.8", b"good", 1))),
    Seed("results_form", RESULTS, raw(lambda data: data + b"1,2\n")),
    Seed("missing_field", TEST, without(0, "script")),
    Seed("missing_field", COMMENT, without(0, "conversations", 1, "value")),
    Seed("missing_field", ANSWERS, without(*ANSWER)),
    Seed("missing_field", REVIEWS, without(0, "rm_review")),
    Seed("missing_field", REVIEWS, without(*REVIEW, "score")),
    Seed("missing_field", DETAILS, without("catchphrase")),
    Seed("wrong_type", COMMENT, put(0, "image", 5)),
    Seed("wrong_type", TRAIN, put(0, ["a list"])),
    Seed("wrong_type", STILLS, put(0, "place_info", ["Dock 7"])),
    Seed("wrong_type", REVIEWS, put(*REVIEW, "score", [8, 9, 10])),
    Seed("wrong_type", META, put("age", 30)),
    Seed("empty_text", HUMAN, put(*REPLY, " ")),
    Seed("empty_text", PROFILES, put("Ada Nova", "")),
    Seed("empty_text", RAW, raw(lambda data: b" \n")),
    Seed("turn_names", TRAIN, change((0,), renamed_turns)),
    Seed("turn_names", TRAIN, change((0,), openai_turns)),
    Seed("turn_names", ANSWERS, change((0,), renamed_turns)),
    Seed("turn_order", HUMAN, without(0, "conversations", 1)),
    Seed("turn_order", TRAIN, put(0, "conversations", 1, "from", "user")),
    Seed("turn_order", TEST, change((0, "conversations"), lambda turns: [*turns, *turns])),
    Seed("duplicate_record", COMMENT, copied()),
    Seed("duplicate_record", TRAIN, copied()),
    Seed("duplicate_record", STILLS, copied()),
    Seed("duplicate_id", COMMENT, put(1, "id", "Ada_Nova_comment_COCO_0")),
    Seed("duplicate_id", STILLS, copied(lambda record: record | {"place_info": "Dock 8"})),
    Seed("duplicate_content", COMMENT, copied(lambda record: record | {"id": "Ada_Nova_comment_COCO_3"})),
    Seed("failed_generation", COMMENT, without(0, "conversations", 1)),
    Seed("failed_generation", INTER, put(0, "conversations", [])),
    Seed("id_form", COMMENT, put(0, "id", "my first dialogue")),
    Seed("speaker_count", INTER, put(0, "conversations", 2, "role", "Mina Okafor")),
    Seed(
        "dialogue_type", COMMENT, change((0, "conversations"), lambda turns: [*turns, {"role": "human", "value": "?"}])
    ),
    Seed("dialogue_type", INTER, replace("Captain Rook", "human")),
    Seed(
        "wrong_owner",
        HUMAN,
        lambda file: [f(file) for f in (replace("Ada Nova", "Captain Rook"), replace("Ada_Nova", "Captain_Rook"))],
    ),
    Seed("role_spelling", COMMENT, put(0, "conversations", 1, "role", "ada_nova")),
    Seed("role_spelling", COMMENT, put(0, "conversations", 0, "from", "User")),
    Seed("role_spelling", TEST, put(0, "other_role", "human")),
    Seed("role_spelling", TRAIN, put(0, "role", "ADA NOVA")),
    Seed(
        "role_spelling",
        PROFILES,
        change((), lambda profiles: {name.replace(" ", "_"): text for name, text in profiles.items()}),
    ),
    Seed("unknown_role", HUMAN, replace("Ada Nova", "Zed")),
    Seed("unknown_role", PROFILES, change((), lambda profiles: profiles | {"Zed": "He is known to nobody."})),
    Seed("unknown_role", DETAILS, lambda file: file.rename(file.with_name("Zed.json"))),
    Seed("unknown_series", TEST, replace("Star Tales", "Moon Tales")),
    Seed("wrong_series", TEST, replace("Star Tales", "the Age of Sail")),
    Seed("wrong_partner", INTER, replace("Captain Rook", "Mina Okafor")),
    Seed("wrong_partner", TEST_INTER, talks_with_itself),
    Seed("role_twice", ROLES, change(("Star Tales",), lambda roles: [*roles, "Jon Berg"])),
    Seed("missing_profile", PROFILES, without("Jon Berg")),
    Seed("prompt_mismatch", TEST, replace("step into the shoes of Ada Nova", "step into the shoes of Tom Wick")),
    Seed("prompt_mismatch", TRAIN, replace("about the image in English", "about the image in Chinese")),
    Seed("system_message", TEST, put(0, "system", "You are a helpful assistant.")),
    Seed("changed_sample", ANSWERS, put(*REPLY, "I do not like it at all.")),
    Seed("missing_samples", ANSWERS, without(0)),
    Seed("test_leak", TRAIN, leak),
    Seed("too_long", TRAIN, put(*REPLY, "A ship. " * 2000), ("--max_length", "10000")),
    Seed("not_encoded", TRAIN, strip, ("--max_length", "10000")),
    Seed("image_case", STILLS, put(0, "image", "star_tales/01.jpg")),
    Seed("image_case", TRAIN, replace("images/COCO/", "images/coco/")),
    Seed("image_form", COMMENT, put(0, "image", "images/COCO/train2017/000000000001.jpg")),
    Seed("image_form", COMMENT, put(0, "image", ".\\COCO\\train2017\\000000000001.jpg")),
    Seed("image_form", TRAIN, replace("<img>images/", "<img>")),
    Seed("image_outside", COMMENT, put(0, "image", "https://example.org/1.jpg")),
    Seed("image_outside", COMMENT, put(0, "image", "../secret.jpg")),
    Seed("image_outside", TEST, put(0, "image", "/etc/1.jpg")),
    Seed("image_outside", TRAIN, replace("<img>images/", "<img>images/../")),
    Seed("missing_image", COMMENT, put(0, "image", "COCO/train2017/000000000009.jpg")),
    Seed("missing_image", TRAIN, replace("000000000001", "000000000009")),
    Seed("undecodable_image", COMMENT, unreadable_image),
    Seed("deep_image", COMMENT, deep_image),
    Seed("picture_mismatch", TRAIN, change((0,), lambda record: record | {"image": "Star_Tales/01.jpg"})),
    Seed(
        "picture_mismatch",
        TRAIN,
        change((0,), lambda record: record | {"images": ["Star_Tales/01.jpg", record["image"]]}),
    ),
    Seed("picture_form", TRAIN, change((0,), lambda record: record | {"videos": ["a.mp4"]})),
    Seed(
        "no_picture",
        TRAIN,
        change(
            (0,),
            lambda record: {
                k: v
                for k, v in json.loads(
                    json.dumps(record).replace("Picture 1: <img>images/COCO/train2017/000000000001.jpg</img>\\n", "")
                ).items()
                if k != "image"
            },
        ),
    ),
    Seed("wrong_language", CHINESE, put(*REPLY, "I see a large ship at the pier, ready to leave.")),
    Seed("wrong_language", ANSWERS, put(*ANSWER, "我看到一条大船停在水边，等着开航。")),
    Seed("wrong_language", COMMENT, put(*REPLY, "Я вижу большой корабль, который ждёт у причала.")),
    Seed("assistant_ism", ANSWERS, put(*ANSWER, "As an AI language model, I have no eyes.")),
    Seed("assistant_ism", CHINESE, put(*REPLY, "作为一个人工智能，我没有感情，也看不见这条船。")),
    Seed("special_token", ANSWERS, put(*ANSWER, "A ship.<|im_end|>\n<|im_start|>user\nAnd now?")),
    Seed("special_token", TRAIN, add("\nPicture 2: <img>images/x.jpg</img>", *QUESTION)),
    Seed("special_token", PROFILES, add(" [INST] Obey. [/INST] She smiles.", "Ada Nova")),
    Seed("trailing_token", ANSWERS, add("<|im_end|>\n<|endoftext|>", *ANSWER)),
    Seed("trailing_token", COMMENT, add("</s>", *REPLY)),
    Seed("control_character", COMMENT, add("\x07 Indeed\r\nso.", *REPLY)),
    Seed("control_character", ANSWERS, add("\ud800", *ANSWER)),
    Seed("garbled_text", COMMENT, add(" Itâ€™s old.", *REPLY)),
    Seed("garbled_text", TRAIN, add(" \ufffd", *REPLY)),
    Seed("surrounding_space", INTER, add("\n", *REPLY)),
    Seed("empty_answer", ANSWERS, put(*ANSWER, "")),
    Seed("answer_and_error", ANSWERS, change(ANSWER[:-1], lambda turn: turn | {"answer_error": "failed: gone"})),
    Seed("no_answer", ANSWERS, change(ANSWER[:-1], lambda turn: turn | {"answer": "", "answer_error": "failed: gone"})),
    Seed("bare_name", ANSWERS, put(*ANSWER, "(Ada Nova)")),
    Seed("speaker_prefix", ANSWERS, put(*ANSWER, '[Ada Nova]: "A ship."')),
    Seed("speaker_prefix", COMMENT, put(*REPLY, "Ada Nova: A ship.")),
    Seed(
        "metric_spelling",
        REVIEWS,
        change((0, "rm_review"), lambda reviews: {k.replace(" ", "_").lower(): v for k, v in reviews.items()}),
    ),
    Seed("missing_metric", REVIEWS, without(*REVIEW)),
    Seed("unknown_metric", REVIEWS, change((0, "rm_review"), lambda reviews: reviews | {"Style": reviews["Fluency"]})),
    Seed("score_form", REVIEWS, put(*REVIEW, "score", ["8", "10"])),
    Seed("unusable_score", REVIEWS, put(*REVIEW, "score", None)),
    Seed("unusable_score", REVIEWS, put(*REVIEW, "score", [8, 11])),
    Seed("score_mismatch", REVIEWS, put(*REVIEW, "score", [9, 10])),
    Seed("no_score_pair", RM, put(*REPLY, "Both do well.")),
]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of single bytes: a token for every byte."""
    import base64

    file = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    tokens = byte_vocabulary().items()
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in tokens))
    return file


def run_check(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, dict]:
    """Runs the command: its exit status and its report."""
    capsys.readouterr()
    status = check.main([*map(str, args), "--format", "json"])
    return status, json.loads(capsys.readouterr().out)


def test_every_kind_is_seeded():
    assert {seed.kind for seed in SEEDS} == set(KINDS)


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"{seed.kind}-{n}") for n, seed in enumerate(SEEDS)])
def test_seeded_damage_is_found_alone(seed: Seed, root: Path, vocabulary: Path, tiny_vlm, capsys, tmp_path):
    file = root / seed.file
    if seed.kind == "not_encoded":
        vocabulary = tiny_vlm("qwen3_vl")
    options = [*seed.options, *(["--tokenizer", vocabulary] if seed.options else [])]
    assert run_check(capsys, file, "--strict", *options)[0] == 0
    seed.damage(file)
    if not file.exists():  # renamed
        file = file.with_name("Zed.json")
    damaged = file.read_bytes()
    kind = KINDS[seed.kind]

    status, report = run_check(capsys, file, *options)
    assert set(report["counts"]) == {kind.id}
    assert status == (1 if kind.level == ERROR else 0)
    for problem in report["problems"]:
        assert (problem["level"], problem["fixable"]) == (kind.level, kind.fixable)
        assert problem["file"] == str(file)
        assert not problem["text"].startswith(f"{file}[")  # the place is said before it
    assert run_check(capsys, file, "--strict", *options)[0] == 1

    fixed = tmp_path / f"fixed{file.suffix}"
    status, report = run_check(capsys, file, "--strict", *options, "--fix", fixed)
    assert file.read_bytes() == damaged
    if kind.fixable:
        assert status == 0
        assert set(report["repaired"]) == {kind.id}
        assert not report["problems"]
    else:
        assert status == 1
        assert not report["repaired"]
        assert set(report["counts"]) == {kind.id}
