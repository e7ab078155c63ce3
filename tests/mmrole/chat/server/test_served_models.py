"""The names of a server's models, and a character's frame around a client's chat."""

import pytest
from PIL import Image

from mmrole.chat.conversation import Conversation
from mmrole.chat.server.chat_messages import ClientChat
from mmrole.chat.server.refusals import Refusal
from mmrole.chat.server.served_models import ServedModels, in_character
from mmrole.data.messages import Message, one_turn
from mmrole.data.profiles import Character
from mmrole.data.prompts import ROLE_PLAY_SYSTEM

MIRA = Character("Mira", "Lantern Bay", "in-distribution", "Keeps the lamp.")
ODO = Character("Old Odo", "Lantern Bay", "in-distribution", "A guard.")
HELLO = ClientChat("", (Message("user", ("Hello.",)),), False)


def models(role: Character | None = None, *, takes_notes: bool = True) -> ServedModels:
    return ServedModels("agent", role, {"Mira": MIRA, "Old Odo": ODO}, takes_notes, 0)


def test_every_character_has_a_name():
    served = models()
    assert served.names == ["agent", "mmrole/Mira", "mmrole/Old Odo"]
    assert served.find("agent") is None
    assert served.find("mmrole/Old Odo") is ODO
    assert models(MIRA).find("agent") is MIRA


@pytest.mark.parametrize("name", ["Mira", "mmrole/", "mmrole/Ana", "agent2", "mmrole/agent", ""])
def test_nobody_else_answers(name):
    with pytest.raises(Refusal) as refused:
        models().find(name)
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_without_a_character_messages_go_through():
    assert models().messages("agent", HELLO) == HELLO.messages
    noted = ClientChat("Play.", HELLO.turns, True)
    assert models(takes_notes=False).messages("agent", noted) == noted.messages


def test_the_frame_is_that_of_chat_py():
    picture = Image.new("RGB", (2, 2))
    chat = ClientChat(
        "",
        (
            Message("user", ("What is ", picture, "this?")),
            Message("assistant", ("A ship.",)),
            Message("user", ("And ", "now?")),
        ),
        False,
    )
    prompt = Conversation(MIRA, history=[("human", "What is this?"), ("Mira", "A ship.")]).prompt("And now?")
    assert in_character(chat, MIRA) == one_turn(ROLE_PLAY_SYSTEM, picture, prompt)
    assert models(MIRA).messages("agent", chat) == models().messages("mmrole/Mira", chat) == in_character(chat, MIRA)


def test_a_greeting_is_history():
    chat = ClientChat(
        "", (Message("user", ("",)), Message("assistant", ("Ahoy!",)), Message("user", ("Hello.",))), False
    )
    assert in_character(chat, MIRA)[1].text == Conversation(MIRA, history=[("Mira", "Ahoy!")]).prompt("Hello.")


def test_a_clients_system_messages_stand_behind_the_frames_or_are_refused():
    noted = ClientChat("Answer in one line.", HELLO.turns, True)
    system, turn = models().messages("mmrole/Mira", noted)
    assert system.text == f"{ROLE_PLAY_SYSTEM}\n\nAnswer in one line."
    assert turn.text == Conversation(MIRA).prompt("Hello.")
    for chat in (noted, noted._replace(system="")):
        with pytest.raises(Refusal, match="mmrole/Mira speaks in its own frame; leave system messages out"):
            models(takes_notes=False).messages("mmrole/Mira", chat)
