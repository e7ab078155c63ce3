"""What a response means that is no reply."""

import email.utils
import time

import pytest

from mmrole.backends.api.failures import ApiFailure, failure_of_status

SETTINGS = ("max_tokens", "temperature", "top_p", "seed", "top_k")


def failure(status: int, error: object = None, headers: dict[str, str] | None = None) -> ApiFailure:
    return failure_of_status(status, headers or {}, None if error is None else {"error": error}, SETTINGS)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, None, "busy"),
        (429, {"code": "insufficient_quota", "message": "pay"}, "useless"),
        (500, None, "broken"),
        (501, None, "broken"),
        (502, None, "busy"),
        (503, None, "busy"),
        (599, None, "busy"),
        (408, None, "busy"),
        (401, None, "useless"),
        (402, None, "useless"),
        (403, None, "useless"),
        (403, {"code": "content_filter"}, "refused"),
        (404, None, "useless"),
        (400, {"code": "model_not_found", "message": "no"}, "useless"),
        (301, None, "useless"),
        (400, {"code": "content_policy_violation", "message": "no"}, "refused"),
        (400, {"code": "DataInspectionFailed"}, "refused"),
        (400, None, "failed"),
        (400, {"code": "context_length_exceeded", "param": "messages", "message": "too long"}, "failed"),
        (400, "'max_tokens' is too large: 512. The maximum context length is 300 tokens", "failed"),
        (413, None, "failed"),
        (400, {"message": [1, {"a": 2}]}, "failed"),
    ],
)
def test_kinds(status, error, kind):
    assert failure(status, error).kind == kind


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        ({"param": "max_tokens", "message": "use 'max_completion_tokens' instead"}, "max_tokens"),
        ({"message": "Unsupported value: 'temperature' does not support 0 with this model."}, "temperature"),
        ({"message": "`temperature` and `top_p` cannot both be specified"}, "temperature"),
        ("Unexpected fields: {'top_k'}", "top_k"),
        ({"param": "messages", "message": "the temperature of the debate"}, ""),
        ({"message": "the temperatures"}, ""),
        ({"message": "no"}, ""),
    ],
)
def test_settings_that_are_refused(error, setting):
    said = failure(400, error)
    assert (said.kind, said.setting) == ("setting" if setting else "failed", setting)


def test_settings_that_fastapi_refuses():
    """It repeats what it was sent; that is not searched."""
    body = {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs", "input": {"temperature": 1}}]}
    assert failure_of_status(422, {}, body, SETTINGS).setting == "seed"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "9" * 400}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers, seconds):
    assert failure(429, headers=headers).wait == seconds
    assert failure(503, headers=headers).wait == seconds


def test_until_when_to_wait():
    wait = failure(429, headers={"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}).wait
    assert 55 < wait < 62
    assert failure(429, headers={"retry-after": email.utils.formatdate(0, usegmt=True)}).wait == 0


def test_what_is_said_is_a_line():
    said = failure(400, {"message": "no\n\x1b[31m" + "x" * 9999})
    assert str(said).startswith("400 Bad Request: no\\n\\x1b[31mxxx")
    assert len(str(said)) < 350
    assert "redirects to http://evil/, which is not followed" in str(failure(307, headers={"location": "http://evil/"}))
