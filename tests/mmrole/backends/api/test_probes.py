"""Probes find what servers take and do not do."""

import asyncio

import pytest

from mmrole.backends.api import probes
from mmrole.backends.api.probes import probe
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings, Usage

SAMPLED, GREEDY = GenerationSettings(), GenerationSettings(do_sample=False)


class Played:
    """A model that draws as it is told, and sees pictures, but for what it ignores."""

    def __init__(self, *ignores: str, says: str | None = None, error: str | None = None) -> None:
        self.ignores, self.says, self.error, self.asked = ignores, says, error, []

    async def ask(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        settings = request.complete_settings()
        if self.error is not None:
            return ChatReply(request.id, "", "failed", error=self.error)
        if request.images and "images" not in self.ignores:
            return ChatReply(request.id, str(request.images[0].getpixel((0, 0))))
        drawn = settings.seed if settings.do_sample and "sampling" not in self.ignores else 0
        if {"seed", "greedy"} & {*self.ignores}:
            drawn = len(self.asked)
        tokens = 99 if "length" in self.ignores else settings.max_new_tokens
        return ChatReply(request.id, f"{drawn}" if self.says is None else self.says, usage=Usage(9, tokens))

    def find(self, settings: GenerationSettings, with_images: bool = True) -> list[str]:
        return asyncio.run(probe(self.ask, settings, with_images))


@pytest.mark.parametrize("settings", [SAMPLED, GREEDY])
def test_nothing_is_found_where_all_is_honoured(settings):
    played = Played()
    assert played.find(settings) == []
    assert len(played.asked) == (5 if settings.do_sample else 4)
    assert max(request.complete_settings().max_new_tokens for request in played.asked) == 24


@pytest.mark.parametrize(
    ("ignored", "settings", "found"),
    [
        ("greedy", GREEDY, probes.GREEDY),
        ("seed", SAMPLED, probes.SEED),
        ("sampling", SAMPLED, probes.SAMPLING),
        ("images", GREEDY, probes.IMAGES),
        ("length", GREEDY, probes.LENGTH),
    ],
)
def test_what_is_ignored_is_found(ignored, settings, found):
    assert Played(ignored).find(settings) == [found]


def test_images_are_asked_about_only_where_there_will_be_some():
    played = Played("images")
    assert played.find(GREEDY, with_images=False) == []
    assert not any(request.images for request in played.asked)


def test_nothing_is_said_where_nothing_is_replied():
    assert Played("images", error="no").find(SAMPLED) == []
    assert Played("images", says="").find(SAMPLED) == []
