"""The prompts against published samples, the recorded calls of the published review script, and the written format."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.data import prompts

TYPES = ("comment", "human-role", "inter-role")


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def published_samples(shared: Path) -> list[dict]:
    folder = shared / "mmrole/eval/in-test_answers/mmrole-agent"
    return [sample for kind in TYPES for sample in load(folder / f"{kind}_test.json")]


def test_every_published_user_turn_is_rebuilt_from_its_dialogue(shared: Path):
    profiles = load(shared / "mmrole/profiles/in-distribution/profiles.json")
    dialogues = {
        dialogue["id"]: dialogue
        for path in sorted((shared / "mmrole/dialogues/in-distribution").glob("*/*.json"))
        for dialogue in load(path)
    }
    rebuilt = 0
    for sample in published_samples(shared):
        assert sample["system"] == prompts.ROLE_PLAY_SYSTEM
        dialogue_id, _, target = sample["id"].rpartition("_")
        if dialogue_id not in dialogues:
            continue
        dialogue = dialogues[dialogue_id]
        turns = [(turn.get("role") or turn["from"], turn["value"]) for turn in dialogue["conversations"]]
        k = int(target)
        assert turns[k] == (sample["role"], sample["conversations"][1]["value"])
        assert sample["conversations"][0]["value"] == prompts.role_play_prompt(
            role=sample["role"],
            series=sample["script"],
            other_role=sample["other_role"],
            profiles=profiles,
            history=turns[: max(k - 1, 0)],
            last_utterance=turns[k - 1][1] if k else None,
            **{key: dialogue.get(key, "") for key in ("role_info", "place_info", "scene_info")},
        )
        rebuilt += 1
    assert rebuilt == 191


def test_review_prompts_are_those_of_the_published_script(shared: Path):
    golden = load(shared / "golden/mmrole/review_prompts.json")
    samples = {sample["id"]: sample for sample in published_samples(shared)}
    assert len(golden["review"]) == 16
    for number, call in enumerate(golden["review"]):
        sample = samples[golden["samples"][number // 8]]
        question, answer = sample["conversations"]
        prompt = prompts.review_prompt(
            question=question["value"],
            evaluated_answer=answer["answer"],
            reference=answer["value"],
            role=sample["role"],
            series=sample["script"],
            other_role=sample["other_role"],
            metric=prompts.METRICS[number % 8],
        )
        assert (prompt.first, prompt.second) == (answer["answer"], answer["value"])
        assert call["system"] == prompts.REVIEW_SYSTEM
        assert call["query"] == prompts.picture_markup([f"images/{sample['image']}"]) + prompt.text


def test_inference_prompts_are_those_of_the_published_script(shared: Path):
    golden = load(shared / "golden/mmrole/review_prompts.json")
    samples = {sample["id"]: sample for sample in published_samples(shared)}
    for name, call in zip(golden["samples"], golden["inference"], strict=True):
        assert call["system"] == prompts.ROLE_PLAY_SYSTEM
        assert prompts.split_pictures(call["query"]) == (
            [f"images/{samples[name]['image']}"],
            samples[name]["conversations"][0]["value"],
        )


@pytest.mark.parametrize("metric", prompts.METRICS)
@pytest.mark.parametrize("series", ["The Avengers", prompts.HYPOTHETICAL_SERIES])
@pytest.mark.parametrize("other_role", [prompts.HUMAN_PARTNER, "Priya"])
def test_review_prompts_follow_the_written_format(shared: Path, metric: str, series: str, other_role: str):
    written = load(shared / "formats/review_prompt.json")
    assert written["system"] == prompts.REVIEW_SYSTEM
    assert tuple(written["metrics_in_order"]) == prompts.METRICS
    assert {name: tuple(metrics) for name, metrics in written["dimensions"].items()} == prompts.DIMENSIONS

    def introduced(name: str) -> str:
        keys = {True: f"script == '{prompts.HYPOTHETICAL_SERIES}'", False: "otherwise"}
        if name == prompts.HUMAN_PARTNER:
            return written["other_role_script"]["other_role == 'a curious human'"]
        pattern = written["role_script"][keys[series == prompts.HYPOTHETICAL_SERIES]]
        return pattern.replace("{role}", name).replace("{script}", series)

    the_other = "the curious human" if other_role == prompts.HUMAN_PARTNER else other_role
    task = written["task"].replace("{role_script}", introduced("Ana {x}"))
    task = task.replace("{other_role_script}", introduced(other_role)).replace("{role}", "Ana {x}")
    aspect = written["metrics_in_order"][metric].replace("{role}", "Ana {x}").replace("{the_other_role}", the_other)
    expected = written["user_template"]
    for name, text in {"task": task, "aspect": aspect, "question": "Q", "ground_truth_answer": "R"}.items():
        expected = expected.replace(f"{{{name}}}", text)
    before, after = expected.split("{evaluated_answer}")
    prompt = prompts.review_prompt(
        question="Q",
        evaluated_answer="{question}",
        reference="R",
        role="Ana {x}",
        series=series,
        other_role=other_role,
        metric=metric,
    )
    assert (prompt.before, prompt.first, "".join(prompt[2:])) == (before, "{question}", after)


def role_play(**changes) -> str:
    arguments = {
        "role": "Ana",
        "series": prompts.HYPOTHETICAL_SERIES,
        "other_role": "Ben",
        "profiles": {"Ana": "\nA painter.\n", "Ben": " A baker. "},
        "last_utterance": "Hello.",
    }
    return prompts.role_play_prompt(**(arguments | changes))


def test_role_play_prompt_follows_the_written_format(shared: Path):
    written = load(shared / "formats/role_play_prompt.json")
    assert written["system"] == prompts.ROLE_PLAY_SYSTEM
    blocks = {block["name"]: block for block in written["blocks_in_order"]}
    key = "series is 'Hypothetical Characters'"
    opening = blocks["opening"]["text"].replace("{ROLE}", blocks["opening"]["ROLE"][key])
    opening = opening.replace("{OTHER}", blocks["opening"]["OTHER"][key])
    request = next(text for name, text in blocks["request"].items() if name.startswith("when the character speaks"))
    expected = [opening, blocks["own description"]["text"], blocks["partner description"]["text"], request]
    text = "\n\n\n".join(expected).replace("{role}", "Ana").replace("{other_role}", "Ben")
    text = text.replace("{LANGUAGE}", "English")
    text = text.replace("{profile of role, stripped}", "A painter.")
    text = text.replace("{profile of other_role, stripped}", "A baker.")
    assert role_play(last_utterance=None) == text


def test_auxiliary_lines_are_left_out_one_by_one():
    def auxiliary(**infos: str) -> str:
        return role_play(**infos).split("\n\n\n")[3]

    assert auxiliary().startswith("Please respond")
    assert auxiliary(place_info=" ").startswith("Please respond")
    assert auxiliary(place_info="Rome. ") == (
        "The auxiliary information of the image is as follows:\n - Place information: Rome.."
    )
    assert auxiliary(role_info="Ana is left.", scene_info=" A fire.\n").splitlines()[1:] == [
        " - Character information: Ana is left.",
        " - Scene information: A fire.",
    ]


def test_the_language_is_that_of_the_series():
    assert " in Chinese using " in role_play(series="西游记")
    assert " in English using " in role_play(series="The Avengers")


def test_only_a_leading_run_of_pictures_is_markup():
    images = ["images/a b.jpg", "images/成龙历险记/01.jpg"]
    text = "Picture: <img>x</img>\nLook.\nPicture 3: <img>/etc/passwd</img>\n"
    assert prompts.split_pictures(prompts.picture_markup(images) + text) == (images, text)
    assert prompts.split_pictures(text) == ([], text)


LINES = st.text("abc [:]。\n.", min_size=1).filter(lambda text: text.strip() and "\n[" not in text and text[0] != "[")


@given(
    st.lists(LINES, max_size=4), st.one_of(st.none(), LINES), st.sampled_from([prompts.HUMAN_PARTNER, "The Mate (2nd)"])
)
def test_a_dialogue_is_read_back_from_its_prompt(utterances, last, partner):
    partner_speaks = prompts.HUMAN_SPEAKER if partner == prompts.HUMAN_PARTNER else partner
    history = [(("Captain", partner_speaks)[index % 2], text) for index, text in enumerate(utterances)]
    profiles = {"Captain": "A captain.\n\n\nOf a ship.", partner: "A mate."}
    arguments = {"role": "Captain", "series": "Ships", "other_role": partner, "profiles": profiles}
    prompt = prompts.role_play_prompt(**arguments, history=history if last else [], last_utterance=last)
    assert prompts.read_role_play_prompt(prompt, "Captain", partner) == ((history if last else []), last)


def test_a_prompt_of_another_form_is_taken_whole():
    prompt = "What is that?\n\n\nSay it."
    assert prompts.read_role_play_prompt(prompt, "Captain", prompts.HUMAN_PARTNER) == ([], prompt)


def test_the_published_dialogues_are_read(shared):
    """Against the dialogue files: the utterances before the target, the last one apart."""
    dialogues = {}
    for path in (shared / "mmrole/dialogues/in-distribution").rglob("*.json"):
        for dialogue in json.loads(path.read_text("utf-8")):
            dialogues[dialogue["id"]] = [turn["value"] for turn in dialogue["conversations"]]
    checked = 0
    for path in (shared / "mmrole/eval/in-test_answers/mmrole-agent").glob("*.json"):
        for obj in json.loads(path.read_text("utf-8")):
            dialogue, _, index = obj["id"].rpartition("_")
            if dialogue not in dialogues:
                continue
            before = dialogues[dialogue][: int(index)]
            found = prompts.read_role_play_prompt(obj["conversations"][0]["value"], obj["role"], obj["other_role"])
            assert [text for _, text in found.history] == before[:-1]
            assert found.last == (before[-1] if before else None)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("metric", prompts.METRICS)
def test_the_instruction_of_a_review_prompt_is_found_whatever_is_quoted(metric):
    asked = {"role": "Mira", "series": "Harbour", "other_role": prompts.HUMAN_PARTNER, "metric": "Fluency"}
    quoted = prompts.review_prompt(question="Q", evaluated_answer="A", reference="B", **asked).text
    prompt = prompts.review_prompt(
        question="Q", evaluated_answer=quoted, reference=quoted, **asked | {"metric": metric}
    )
    shown, found = prompts.split_instruction(prompt.text)
    assert found == metric
    assert shown.endswith("## **[Model B's Response End]**\n\n")
    assert quoted in shown


def test_a_turn_without_a_metric_has_no_instruction():
    assert prompts.split_instruction("Hello\n## **[Instruction]**\nPlease evaluate.") is None
    assert prompts.split_instruction("") is None
