"""The names under which a server answers: its model's own, and one for each character."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmrole.base.errors import shown
from mmrole.base.json_values import JsonObject
from mmrole.chat.conversation import Conversation
from mmrole.chat.server.chat_messages import ClientChat
from mmrole.chat.server.options import ServerOptions
from mmrole.chat.server.refusals import Refusal, unusable
from mmrole.data.messages import Message, one_turn
from mmrole.data.profiles import Character, find_character, read_characters
from mmrole.data.prompts import HUMAN_SPEAKER, ROLE_PLAY_SYSTEM

PREFIX = "mmrole/"
"""Of the names of characters."""


@dataclass(frozen=True)
class ServedModels:
    """What a server answers as.

    Attributes:
        name: of the model.
        role: who answers under this name; None for the model as it is.
        characters: who answers under names of their own.
        takes_notes: whether what a client's system messages say is put into a character's frame, or refused.
        created: when the server started, in seconds since 1970.
    """

    name: str
    role: Character | None
    characters: Mapping[str, Character]
    takes_notes: bool
    created: int

    @classmethod
    def of_options(cls, name: str, options: ServerOptions) -> ServedModels:
        """The names of a server whose model has this one.

        Raises:
            UserError: there is no such character, or the files of characters are faulty.
        """
        has_characters = options.role is not None or options.data_root is not None
        characters = read_characters(options.data_root or Path()) if has_characters else {}
        role = None if options.role is None else find_character(options.role, characters)
        named = characters if options.data_root is not None else {}
        return cls(name, role, named, options.takes_notes, int(time.time()))

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.name, *(PREFIX + name for name in self.characters)]

    def described(self, name: str) -> JsonObject:
        """OpenAI's object of a model."""
        return {"id": name, "object": "model", "created": self.created, "owned_by": "mmrole"}

    def messages(self, name: str, chat: ClientChat) -> tuple[Message, ...]:
        """A chat as the model of this name is asked.

        Raises:
            Refusal: there is none of this name, or it does not take such a chat.
        """
        character = self.find(name)
        if character is None:
            return chat.messages
        if chat.has_notes and not self.takes_notes:
            raise unusable("messages", f"messages: {name} speaks in its own frame; leave system messages out")
        return in_character(chat, character)

    def find(self, name: str) -> Character | None:
        """Who answers under a name; None for the model as it is.

        Raises:
            Refusal: nobody does.
        """
        if name == self.name:
            return self.role
        character = self.characters.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if character is None:
            raise Refusal(
                404,
                f"the model {shown(name)} does not exist; /v1/models lists those that do",
                code="model_not_found",
                param="model",
            )
        return character


def in_character(chat: ClientChat, character: Character) -> tuple[Message, ...]:
    """A chat in MMRole's role-play frame, as the published prompts and `chat.py` have it: one turn that shows all
    pictures, then tells profile, history and last words. What the client's system says stands behind the frame's."""
    speakers = {"user": HUMAN_SPEAKER, "assistant": character.name}
    # The empty turn before an opening of the character's is none.
    *before, last = [turn for turn in chat.turns if turn.text or turn.images]
    history = [(speakers[turn.role], turn.text) for turn in before]
    prompt = Conversation(character, history=history).prompt(last.text)
    system = f"{ROLE_PLAY_SYSTEM}\n\n{chat.system}" if chat.system else ROLE_PLAY_SYSTEM
    return one_turn(system, *(image for turn in chat.turns for image in turn.images), prompt)
