"""The fields of a request besides its messages: what is obeyed, what passes because it asks for nothing, the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmrole.base.errors import shown
from mmrole.base.json_values import Json, JsonObject
from mmrole.chat.server.limits import Limits
from mmrole.chat.server.refusals import unusable
from mmrole.data.requests import AskedSettings

OBEYED = (
    *("model", "messages", "stream", "stream_options", "n", "stop", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "repetition_penalty", "seed"),
)
"""Fields that are understood."""

IGNORED = (
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "store"),
)
"""Notes for the provider, which change no reply."""

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({}, []),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "min_p": (0,),
    "top_a": (0,),
    "typical_p": (1,),
    "tfs": (1,),
}
"""Fields that are not supported, with the values that ask for nothing."""

_SEEDS = 2**63
_MOST_TOKENS = 2**31 - 1


class Fields(NamedTuple):
    """What a request asks for besides an answer to its messages.

    Attributes:
        model: the name that it asks for.
        settings: how tokens are chosen; what it does not say is open.
        stream: whether replies are sent piece by piece.
        include_usage: whether a stream ends with what it has cost.
        choices: how many replies.
        stops: texts that end a reply.
    """

    model: str
    settings: AskedSettings
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    stops: tuple[str, ...] = ()


def read_fields(body: JsonObject, limits: Limits) -> Fields:
    """What a body asks for. A field that is null is not there.

    Raises:
        Refusal: a field is of another form, or not supported.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        _check_supported(name, value)
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise unusable("model", "model must be the name of a model; /v1/models lists them")
    stream = _flag(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise unusable("stream_options", "stream_options must be an object with include_usage")
    return Fields(
        model,
        _settings(given),
        stream,
        stream and _flag(options, "include_usage"),
        _number(given, "n", 1, limits.choices) or 1,
        _stops(given.get("stop"), limits),
    )


def _check_supported(name: str, value: Json) -> None:
    if name in OBEYED or name in IGNORED:
        return
    if name not in _NEUTRAL:
        raise unusable(shown(name)[1:-1], f"{shown(name)} is not known; leave it out", code="unknown_parameter")
    if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name]):
        raise unusable(name, f"{name} is not supported; leave it out", code="unsupported_parameter")


def _settings(given: JsonObject) -> AskedSettings:
    """How tokens are chosen. A temperature or a top_p asks for sampling, 0 of either for the most probable token."""
    temperature = _number(given, "temperature", 0.01, 100.0, also=0.0)
    top_p = _number(given, "top_p", 1e-6, 1.0, also=0.0)
    top_k = _number(given, "top_k", 0, _MOST_TOKENS, also=-1)
    penalty = _number(given, "repetition_penalty", 0.01, 100.0)
    greedy = temperature == 0 or top_p == 0
    asks = temperature is not None or top_p is not None
    return AskedSettings(
        max_new_tokens=_most_tokens(given),
        do_sample=(not greedy) if asks else None,
        temperature=None if greedy else temperature,
        top_p=None if greedy else top_p,
        top_k=0 if top_k == -1 else top_k,
        repetition_penalty=penalty,
        seed=_number(given, "seed", -_SEEDS, _SEEDS - 1),
    )


def _most_tokens(given: JsonObject) -> int | None:
    most = [
        number
        for name in ("max_completion_tokens", "max_tokens")
        if (number := _number(given, name, 1, _MOST_TOKENS)) is not None
    ]
    return min(most, default=None)


def _number(given: JsonObject, name: str, least: Any, most: Any, also: Any = None) -> Any:
    """A number within limits, of the kind of these; None where it is not given."""
    value = given.get(name)
    if value is None:
        return None
    kinds = (int, float) if isinstance(least, float) else int
    if type(value) is float and value.is_integer() and kinds is int and abs(value) < _SEEDS:
        value = int(value)  # as some clients write whole numbers
    usable = isinstance(value, kinds) and not isinstance(value, bool)
    usable = usable and (isinstance(value, int) or math.isfinite(value))
    if not usable or (not least <= value <= most and value != also):
        other = "" if also is None else f"{also:g}, or "
        kind = "a number" if isinstance(least, float) else "a whole number"
        raise unusable(name, f"{name} must be {other}{kind} from {_plain(least)} to {_plain(most)}, not {shown(value)}")
    return float(value) if isinstance(least, float) else value


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else f"{number:,}"


def _flag(given: JsonObject, name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise unusable(name, f"{name} must be true or false, not {shown(value)}")
    return bool(value)


def _stops(value: Json, limits: Limits) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise unusable("stop", f"stop must be a text or a list of texts, not {shown(value)}")
    if len(stops) > limits.stops or any(len(stop) > limits.stop_characters for stop in stops):
        raise unusable(
            "stop", f"stop: at most {limits.stops} texts of at most {limits.stop_characters:,} characters each"
        )
    return tuple(dict.fromkeys(stop for stop in stops if stop))
