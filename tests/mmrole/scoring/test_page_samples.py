"""How the page shows samples: dialogues read back from their prompts."""

import json

from hypothesis import given
from hypothesis import strategies as st

from mmrole.data.prompts import HUMAN_PARTNER, HUMAN_SPEAKER, role_play_prompt
from mmrole.data.records import Sample
from mmrole.scoring.page_samples import read_dialogue

LINES = st.text("abc [:]。\n.", min_size=1).filter(lambda text: text.strip() and "\n[" not in text and text[0] != "[")


def sample_of(prompt: str, partner: str = HUMAN_PARTNER) -> Sample:
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": "A ship."}]
    names = {"role": "Captain", "script": "Ships", "other_role": partner}
    return Sample.from_json(
        {"id": "Captain_comment_1", "system": "", "image": "Ships/1.png", "conversations": turns} | names
    )


@given(st.lists(LINES, max_size=4), st.one_of(st.none(), LINES), st.sampled_from([HUMAN_PARTNER, "The Mate (2nd)"]))
def test_a_dialogue_is_read_back_from_its_prompt(utterances, last, partner):
    partner_speaks = HUMAN_SPEAKER if partner == HUMAN_PARTNER else partner
    history = [(("Captain", partner_speaks)[index % 2], text) for index, text in enumerate(utterances)]
    profiles = {"Captain": "A captain.\n\n\nOf a ship.", partner: "A mate."}
    arguments = {"role": "Captain", "series": "Ships", "other_role": partner, "profiles": profiles}
    prompt = role_play_prompt(**arguments, history=history if last else [], last_utterance=last)
    assert read_dialogue(sample_of(prompt, partner)) == ((history if last else []), last)


def test_a_prompt_of_another_form_is_shown_whole():
    assert read_dialogue(sample_of("What is that?\n\n\nSay it.")) == ([], "What is that?\n\n\nSay it.")


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
            found = read_dialogue(Sample.from_json(obj))
            assert [text for _, text in found.history] == before[:-1]
            assert found.last == (before[-1] if before else None)
            checked += 1
    assert checked > 100
