"""Requests and replies: the order of messages, settings that are left open, reasons of what is no answer."""

from pathlib import Path

import pytest

from mmrole.data.messages import Message, Quotation, one_turn
from mmrole.data.requests import AskedSettings, ChatReply, ChatRequest, GenerationSettings

GREEDY = GenerationSettings(max_new_tokens=20, do_sample=False, seed=7)
SAMPLED = GenerationSettings(max_new_tokens=20, temperature=0.9, top_p=0.4, seed=7)


def said(*roles: str) -> tuple[Message, ...]:
    return tuple(Message(role, (role,)) for role in roles)


@pytest.mark.parametrize("roles", ["user", "system user", "user assistant user", "system user assistant user"])
def test_turns_alternate_and_end_with_the_users(roles):
    request = ChatRequest("a", said(*roles.split()))
    assert request.system == ("system" if roles.startswith("system") else None)
    assert request.text == roles.removeprefix("system").replace(" ", "")


@pytest.mark.parametrize("roles", ["", "system", "assistant", "user assistant", "user user", "user system user"])
def test_other_orders_are_refused(roles):
    with pytest.raises(ValueError, match="turns of user and assistant"):
        ChatRequest("a", said(*roles.split()))


def test_texts_and_images_are_told_apart():
    image = Path("a.png")
    request = ChatRequest("a", one_turn("Play.", image, "He said: ", Quotation("Aye."), None, image))
    assert (request.text, request.images) == ("He said: Aye.", (image, image))


def test_what_is_open_is_filled_in():
    assert AskedSettings().filled(GREEDY, SAMPLED) == GREEDY
    assert AskedSettings(do_sample=True).filled(GREEDY, SAMPLED) == SAMPLED
    again = AskedSettings(do_sample=True, seed_offset=2, max_new_tokens=5).filled(GREEDY, SAMPLED)
    assert again == GenerationSettings(max_new_tokens=5, temperature=0.9, top_p=0.4, seed=9)
    with pytest.raises(ValueError, match="top_p"):
        AskedSettings(top_p=2.0).filled(GREEDY)
    assert ChatRequest("a", one_turn("", "")).complete_settings() == GenerationSettings()


def test_draws_follow_from_seed_and_id():
    """The numbers are those of every version so far: journals go on with the same draws."""
    first = ChatRequest("Iron Man_1", one_turn("", "a"), GenerationSettings()).random_stream().random(2)
    assert first.tolist() == ChatRequest("Iron Man_1", one_turn("", "b")).random_stream().random(2).tolist()
    assert first.tolist() != ChatRequest("Iron Man_2", one_turn("", "a")).random_stream().random(2).tolist()
    assert first.tolist() == [0.8560668492250797, 0.43097073462624547]


def test_what_is_no_answer_says_why():
    assert ChatReply("a", "", "failed", error="no connection").error == "no connection"
    for wrong in (("", "refused"), ("", "failed"), ("Aye.", "stop", (1, 2), (), "why?")):
        with pytest.raises(ValueError, match="with error"):
            ChatReply("a", *wrong)
