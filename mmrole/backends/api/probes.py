"""Two cheap probes before a job: servers silently ignore what they are asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from mmrole.data.messages import ImageSource, Message
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings

# The id of a probe begins so; no record's does, for ids of records hold no line ends.
PREFIX = "probe/"

_WORDS = Message("user", ("Write one random number of twelve digits, and then the name of any town. Nothing else.",))
_COLOUR = "Which colour is this picture? Answer with one word."
_SIDE = 64
_MOST_TOKENS = 24

GREEDY = "greedy decoding: equal prompts got different replies"
SEED = "seed: equal prompts with equal seeds got different replies"
SAMPLING = "sampling: prompts with different seeds got equal replies"
LENGTH = "max_new_tokens: a reply was longer than asked for"
IMAGES = "images: a red and a blue picture got the same reply"

Ask = Callable[[ChatRequest], Awaitable[ChatReply]]


async def probe(ask: Ask, settings: GenerationSettings, with_images: bool) -> list[str]:
    """What a server takes and does not do, in words; nothing of it where it does not reply to a probe.

    Args:
        ask: gets the reply to a request.
        settings: of the job.
        with_images: whether the job will send images.
    """
    found = await _probe_words(ask, settings)
    return found + (await _probe_images(ask, settings) if with_images else [])


async def _probe_words(ask: Ask, settings: GenerationSettings) -> list[str]:
    short = replace(settings, max_new_tokens=min(settings.max_new_tokens, _MOST_TOKENS))
    if settings.do_sample:  # as free as it can be, so that equal replies are no chance
        short = replace(short, temperature=1.0, top_p=1.0)
    replies = [await ask(ChatRequest(f"{PREFIX}words {number}", (_WORDS,), short)) for number in (1, 2)]
    if not _all_said(replies):
        return []
    found = []
    if replies[0].text != replies[1].text:
        found.append(SEED if settings.do_sample else GREEDY)
    elif settings.do_sample:
        other = replace(short, seed=short.seed + 1)
        replies.append(await ask(ChatRequest(f"{PREFIX}words 3", (_WORDS,), other)))
        if _all_said(replies) and replies[2].text == replies[0].text:
            found.append(SAMPLING)
    if any(reply.usage.new_tokens > short.max_new_tokens + 1 for reply in replies):
        found.append(LENGTH)
    return found


async def _probe_images(ask: Ask, settings: GenerationSettings) -> list[str]:
    greedy = replace(settings, do_sample=False, max_new_tokens=min(settings.max_new_tokens, _MOST_TOKENS))
    replies = []
    for colour in ("red", "blue"):
        message = Message("user", (_picture(colour), _COLOUR))
        replies.append(await ask(ChatRequest(f"{PREFIX}image {colour}", (message,), greedy)))
    return [IMAGES] if _all_said(replies) and replies[0].text == replies[1].text else []


def _all_said(replies: Sequence[ChatReply]) -> bool:
    return all(reply.text and reply.error is None for reply in replies)


def _picture(colour: str) -> ImageSource:
    from mmrole.base.pillow import Image

    return Image.new("RGB", (_SIDE, _SIDE), colour)
