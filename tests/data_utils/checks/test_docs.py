"""What the pages about the check and the answers format say is so."""

import json
import re
import shlex

import pytest

from data_utils import check
from data_utils.checks.problems import KINDS
from mmrole.base.files import read_json, write_json
from mmrole.data.prompts import HUMAN_PARTNER, role_play_prompt

SAMPLE = "human-role_test.json"


@pytest.fixture(scope="module")
def check_page(repository):
    return (repository / "docs/data_check.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def answers_page(repository):
    return (repository / "docs/answers_format.md").read_text(encoding="utf-8")


@pytest.fixture
def lighthouse(tmp_path):
    """The character of the page's example."""
    write_json(tmp_path / "profiles/in-distribution/roles.json", {"Harbour Tales": ["Mira"]})
    return tmp_path


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_table_names_every_kind(check_page):
    table = check_page.split("## Kinds of damage", 1)[1].split("##", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (\w+) \| (yes|) ?\|$", table, re.MULTILINE)
    assert rows == [(kind.id, kind.meaning, kind.level, "yes" if kind.fixable else "") for kind in KINDS.values()]
    assert len(rows) >= 15


def test_every_repair_is_described(check_page):
    table = check_page.split("## Repairs", 1)[1].split("## Kinds", 1)[0]
    described = {
        kind for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)
    }
    assert described == {kind.id for kind in KINDS.values() if kind.fixable}


def test_the_example_passes(answers_page, lighthouse):
    answers, _ = map(json.loads, blocks(answers_page, "json"))
    file = lighthouse / "eval/in-test_answers/my-model" / SAMPLE
    write_json(file, answers)
    assert check.main([str(file), "--strict", "--no_images"]) == 0
    assert check.main([str(file), "--strict", "--no_images", "--form", "answers"]) == 0
    write_json(lighthouse / "mine.json", answers)
    assert check.main([str(lighthouse / "mine.json"), "--strict", "--no_images", "--format", "json"]) == 0


def test_the_prompt_of_the_example_is_a_real_one(answers_page):
    (sample,), _ = map(json.loads, blocks(answers_page, "json"))
    question = sample["conversations"][0]["value"]
    profile = re.search(r"as follows:\n(### .*?)\n\n\n", question, re.DOTALL)[1]
    assert question == role_play_prompt(
        role=sample["role"],
        series=sample["script"],
        other_role=HUMAN_PARTNER,
        profiles={"Mira": profile},
        history=[("human", "Is that the storm leaving?"), ("Mira", "Leaving, or drawing breath. I logged it at four.")],
        last_utterance="Did anyone get hurt?",
        place_info="Grey Point",
        scene_info="The morning after the storm.",
    )


def test_the_reviewed_example_passes(answers_page, lighthouse):
    (answer,), review = map(json.loads, blocks(answers_page, "json"))
    file = lighthouse / "eval/in-test_reviews/my-model" / SAMPLE
    write_json(file, [answer | review])
    assert check.main([str(file), "--strict", "--no_images"]) == 0


def test_the_code_writes_answers_that_pass_the_command(answers_page, root, monkeypatch):
    monkeypatch.chdir(root)
    asked = []

    def my_model(system: str, image: str, text: str) -> str:
        asked.append((root / image).is_file() and system and text)
        return "嗯，有意思。" if "in Chinese" in text else "How odd."

    (code,) = blocks(answers_page, "python")
    exec(code, {"my_model": my_model})
    (command,) = blocks(answers_page, "bash")
    program, *arguments = shlex.split(command.removeprefix("python -m "))
    assert program == "data_utils.check"
    assert len(asked) == 6
    assert all(asked)
    assert check.main([*arguments, "--strict"]) == 0
    assert read_json(root / "eval/in-test_answers/my-model" / SAMPLE)[0]["conversations"][1]["answer"] == "How odd."
