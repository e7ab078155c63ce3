"""What a server has sent, read as a reply."""

import json
from contextlib import suppress

import pytest
from fixtures.servers import completion
from hypothesis import example, given
from hypothesis import strategies as st

from mmrole.backends.api.failures import ApiFailure
from mmrole.backends.api.replies import Completion, read_completion
from mmrole.data.requests import Usage


def read(obj: object, max_new_tokens: int = 512) -> Completion:
    return read_completion(json.dumps(obj).encode(), max_new_tokens)


def test_a_reply():
    assert read(completion(" Aye.\n")) == Completion("Aye.", "stop", "calm-1", Usage(100, 10))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"finish_reason": "length"}, ("Aye.", "length", None)),
        ({"finish_reason": None}, ("Aye.", "stop", None)),
        ({"finish_reason": {"odd": 1}}, ("Aye.", "stop", None)),
        ({"finish_reason": "content_filter"}, ("Aye.", "refused", "finish_reason is content_filter")),
        ({"refusal": "I cannot."}, ("Aye.", "refused", "I cannot.")),
        ({"refusal": None}, ("Aye.", "stop", None)),
        ({"refusal": ""}, ("Aye.", "stop", None)),
        ({"content": None}, ("", "stop", None)),
        ({"content": ""}, ("", "stop", None)),
        ({"reasoning_content": "Hm.", "reasoning": "Hm."}, ("Aye.", "stop", None)),
        ({"content": "<think>Hm.\n</think>\n\nAye."}, ("Aye.", "stop", None)),
        ({"content": "Hm.</think>Aye."}, ("Aye.", "stop", None)),
        ({"content": "<think>a</think><THINK>b</THINK>Aye."}, ("Aye.", "stop", None)),
        ({"content": "<think>Hm", "finish_reason": "length"}, ("", "length", None)),
        ({"content": [{"type": "thinking", "text": "Hm."}, {"type": "text", "text": "Aye."}]}, ("Aye.", "stop", None)),
        ({"content": "\x1b[31m<img>\x00</s><|im_end|>\ud800"}, ("\x1b[31m<img>\x00</s><|im_end|>\ud800", "stop", None)),
    ],
)
def test_texts_and_how_they_end(changes, expected):
    reply = read(completion("Aye.", **changes))
    assert (reply.text, reply.finish_reason, reply.error) == expected


def test_cut_at_the_limit_whatever_the_server_calls_it():
    assert read(completion("Aye."), 10).finish_reason == "length"
    assert read(completion("Aye."), 11).finish_reason == "stop"


@pytest.mark.parametrize(
    "usage", [None, [], {}, {"prompt_tokens": 1}, {"prompt_tokens": -1, "completion_tokens": 1}, "many"]
)
def test_usage_that_is_none(usage):
    assert read(completion("Aye.", usage=usage)).usage is None
    assert read(completion("Aye.", usage={"prompt_tokens": 1.5, "completion_tokens": True})).usage is None


@pytest.mark.parametrize("model", [None, 3, "", "x" * 10_000])
def test_models_that_are_none(model):
    assert read(completion("Aye.", model=model)).model == ("x" * 200 if model == "x" * 10_000 else "")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"<html>", b'{"choices": [', b"\xff", b"[]", b"null", b"[" * 100_000),
        *(b'{"choices": []}', b'{"choices": [{"message": 1}]}', b'{"choices": {"message": {}}}'),
        b'{"choices": [{"message": {"content": 3}}]}',
    ],
)
def test_what_is_no_reply(data):
    with pytest.raises(ApiFailure) as caught:
        read_completion(data, 512)
    assert caught.value.kind == "unreadable"
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "slow down"}, "busy"),
        ({"code": "502", "message": "no"}, "busy"),
        ({"code": 500, "message": "no"}, "broken"),
        ({"code": 401, "message": "no"}, "useless"),
        ({"code": "insufficient_quota", "message": "no"}, "useless"),
        ({"code": "content_filter"}, "refused"),
        ({"code": "9" * 9999}, "unreadable"),
        ("no", "unreadable"),
    ],
)
def test_an_error_with_the_status_of_a_success(error, kind):
    with pytest.raises(ApiFailure) as caught:
        read({"error": error})
    assert caught.value.kind == kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["content", "refusal", "finish_reason", "message", "choices", "model", "usage", "error"]), JSON)
@example("choices", [{"message": {"content": {}}}])
def test_anything_is_a_reply_or_a_failure(name, value):
    with suppress(ApiFailure):
        reply = read(completion("Aye.", **{name: value}))
        assert (reply.error is not None) == (reply.finish_reason == "refused")
