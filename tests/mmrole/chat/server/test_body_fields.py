"""Fields of a request: obeyed, passed because they ask for nothing, or refused by name."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.chat.server.body_fields import Fields, read_fields
from mmrole.chat.server.limits import Limits
from mmrole.chat.server.refusals import Refusal
from mmrole.data.requests import AskedSettings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [
        *("model", "stream", "stream_options", "n", "stop", "max_tokens", "max_completion_tokens", "temperature"),
        *("top_p", "top_k", "seed", "logit_bias", "presence_penalty", "tools", "repetition_penalty", "best_of"),
    ]
)


def read(**fields: object) -> Fields:
    return read_fields({"model": "m", "messages": [], **fields}, Limits())


def asked(**fields: object) -> AskedSettings:
    return read(**fields).settings


def test_nothing_is_asked_for():
    assert read() == Fields("m", AskedSettings())


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"temperature": 0}, AskedSettings(do_sample=False)),
        ({"temperature": 0, "top_p": 0.5}, AskedSettings(do_sample=False)),
        ({"temperature": 1, "top_p": 0}, AskedSettings(do_sample=False)),
        ({"temperature": 0.7}, AskedSettings(do_sample=True, temperature=0.7)),
        ({"temperature": 1, "top_p": 0.3}, AskedSettings(do_sample=True, temperature=1.0, top_p=0.3)),
        ({"top_p": 1}, AskedSettings(do_sample=True, top_p=1.0)),
        ({"max_tokens": 5}, AskedSettings(max_new_tokens=5)),
        ({"max_completion_tokens": 5, "max_tokens": 9}, AskedSettings(max_new_tokens=5)),
        ({"max_tokens": 300.0}, AskedSettings(max_new_tokens=300)),
        ({"seed": -1}, AskedSettings(seed=-1)),
        ({"top_k": -1}, AskedSettings(top_k=0)),
        ({"top_k": 20, "repetition_penalty": 1.1}, AskedSettings(top_k=20, repetition_penalty=1.1)),
    ],
)
def test_how_tokens_are_chosen(fields, settings):
    assert asked(**fields) == settings


def test_what_is_obeyed_besides():
    fields = read(stream=True, stream_options={"include_usage": True}, n=3, stop=["a", "", "b", "a"])
    assert fields == Fields("m", AskedSettings(), True, True, 3, ("a", "b"))
    assert read(stop="x").stops == ("x",)
    assert read(stream_options={"include_usage": True}).include_usage is False


@pytest.mark.parametrize(
    "neutral",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "someone"},
        {"logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"functions": [], "min_p": 0, "top_a": 0, "logprobs": None, "made_up": None, "stop": []},
    ],
)
def test_what_asks_for_nothing_passes(neutral):
    assert read(**neutral) == read()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("presence_penalty", 0.5), ("frequency_penalty", -1), ("logit_bias", {"5": 1}), ("presence_penalty", False)),
        *(("logprobs", True), ("top_logprobs", 2), ("tools", [{}]), ("tool_choice", "required"), ("min_p", 0.1)),
        *(("response_format", {"type": "json_object"}), ("modalities", ["audio"]), ("reasoning_effort", "high")),
        *(("best_of", 2), ("n", 0), ("n", 17), ("n", "2"), ("n", True), ("n", 1.5), ("stream", "yes"), ("stream", 1)),
        *(("temperature", -1), ("temperature", 0.001), ("temperature", "hot"), ("temperature", 10**400)),
        *(("top_p", 1.1), ("top_p", -0.1), ("top_k", -2), ("top_k", 0.5), ("repetition_penalty", 0)),
        *(("max_tokens", 0), ("max_tokens", -1), ("max_completion_tokens", 2**31), ("seed", 2**63), ("seed", "a")),
        *(("stop", 3), ("stop", [3]), ("stop", ["x"] * 65), ("stop", "x" * 1001), ("stream_options", {"x": 1})),
        *(("stream_options", []), ("model", 3), ("model", "")),
    ],
)
def test_what_is_refused(field, value):
    with pytest.raises(Refusal) as refused:
        read(**{field: value})
    assert (refused.value.status, refused.value.param) == (400, field)
    assert field in refused.value.message


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_body_is_read_or_refused(body):
    with suppress(Refusal):
        assert isinstance(read_fields(body, Limits()), Fields)
