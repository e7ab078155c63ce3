"""What is asked of a backend and what it replies."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from mmrole.data.messages import ImageSource, Message


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen; names and meaning are those of transformers' GenerationConfig.

    The defaults are those of MMRole's inference with Qwen-VL-Chat's generation_config.json: sampling with top-p 0.3.

    Attributes:
        max_new_tokens: most tokens to generate, the stop token included.
        do_sample: sample; otherwise take the most probable token.
        temperature: divides the logits, above 0 (sampling only).
        top_k: keep so many of the most probable tokens, 0 for all (sampling only).
        top_p: keep the most probable tokens that together reach this probability, in (0, 1] (sampling only).
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before; 1 is off.
        seed: the draws of a request follow from this number and the request's id alone.

    Raises:
        ValueError: if a number is out of range.
    """

    max_new_tokens: int = 512
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.3
    repetition_penalty: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0, not {self.repetition_penalty}.")


@dataclass(frozen=True)
class AskedSettings:
    """What a request says about how its reply is generated; what is None is for the backend to fill in.

    Attributes:
        seed_offset: added to the seed, so that a request that is sampled again is drawn anew.
        others: as in `GenerationSettings`.
    """

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    seed_offset: int = 0

    def filled(self, usual: GenerationSettings, sampling: GenerationSettings | None = None) -> GenerationSettings:
        """These settings, with those that are open taken from elsewhere.

        Args:
            usual: what is open.
            sampling: what is open where sampling is asked for; like `usual` by default.

        Raises:
            ValueError: a number is out of range.
        """
        return _filled(self, sampling if self.do_sample and sampling is not None else usual)


@lru_cache(maxsize=64)  # most requests of a job ask alike
def _filled(asked: AskedSettings, base: GenerationSettings) -> GenerationSettings:
    given = {key: value for key, value in asdict(asked).items() if key != "seed_offset" and value is not None}
    settings = replace(base, **given)
    return replace(settings, seed=settings.seed + asked.seed_offset)


@dataclass(frozen=True, eq=False, slots=True)
class ChatRequest:
    """A chat whose last turn is to be answered.

    Attributes:
        id: names the request in replies and messages, and seeds its draws.
        messages: a system message or none, then turns of user and assistant, the user's last.
        settings: how tokens are chosen; complete where a backend has filled in what was open.
        draws: seeds its draws in place of the id; None for the id.

    Raises:
        ValueError: the messages are in another order.
    """

    id: str
    messages: tuple[Message, ...]
    settings: AskedSettings | GenerationSettings = AskedSettings()
    draws: str | None = None

    def __post_init__(self) -> None:
        roles = [message.role for message in self.messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise ValueError(f"a chat is of turns of user and assistant, the user's last, not of {', '.join(roles)}")

    @property
    def system(self) -> str | None:
        """The system message, if there is one."""
        return self.messages[0].text if self.messages[0].role == "system" else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system's."""
        return self.messages[1:] if self.messages[0].role == "system" else self.messages

    @property
    def text(self) -> str:
        """What was said in all turns, without the images."""
        return "".join([message.text for message in self.turns])

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The images of all messages, in order."""
        return tuple([image for message in self.messages for image in message.images])

    def complete_settings(self) -> GenerationSettings:
        """The settings; what is open is MMRole's, where no backend has filled it in."""
        settings = self.settings
        return settings if isinstance(settings, GenerationSettings) else settings.filled(GenerationSettings())

    def random_stream(self) -> np.random.Generator:
        """The uniform draws of this request, one for each token, the same wherever and whenever it runs."""
        seed = self.complete_settings().seed
        name = self.id if self.draws is None else self.draws
        key = hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogatepass")).digest()[:16]
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


class Usage(NamedTuple):
    """What a reply has cost, as far as its backend counts it."""

    prompt_tokens: int = 0
    """Positions of the prompt, those of its images included."""
    new_tokens: int = 0
    """Generated tokens, the stop token included."""


NO_USAGE = Usage()


class Origin(NamedTuple):
    """What a server lets be known about how it made a reply, beyond what it was asked for."""

    url: str
    """Its address; the same model may be had at several."""
    model: str
    """The model's id as the reply reports it; empty where it reports none."""
    sent: tuple[str, ...] = ()
    """Names of the settings that it was sent and took."""
    left_out: tuple[str, ...] = ()
    """Names of the settings that it refuses and was asked without."""
    not_honoured: tuple[str, ...] = ()
    """What probes found that it takes and does not do, in words."""


class Piece(NamedTuple):
    """A piece of the text of a reply that is still to be finished; `id` is that of the request."""

    id: str
    text: str
    usage: Usage = NO_USAGE
    """What the reply has cost so far."""


FinishReason = Literal["stop", "length", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What has come of a request.

    Attributes:
        id: that of the request.
        text: decoded, white space stripped at both ends; empty where nothing was said. A refusal can have words, too.
        finish_reason: "stop" at a stop token, "length" after max_new_tokens, "refused" where the model or its server
            declines to answer, "failed" where no reply came.
        usage: what it has cost.
        token_ids: generated tokens without the stop token; empty where the backend does not tell.
        error: why it was refused or has failed, in a line; None of all others.
        origin: how a server made it; None of other backends, and where no reply came.

    Raises:
        ValueError: a refused or failed reply without its reason, or another one with one.
    """

    id: str
    text: str
    finish_reason: FinishReason = "stop"
    usage: Usage = NO_USAGE
    token_ids: tuple[int, ...] = ()
    error: str | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.finish_reason in ("refused", "failed")):
            raise ValueError(f"reply {self.id!r}: {self.finish_reason} with error {self.error!r}")

    @property
    def answer(self) -> str:
        """The text as records have it: what is said in refusing, or before a reply fails, is no answer."""
        return self.text if self.error is None else ""

    @property
    def answer_error(self) -> str | None:
        """Why there is no answer, as records have it: `refused: …` or `failed: …`; None if there is one."""
        return None if self.error is None else f"{self.finish_reason}: {self.error}"
