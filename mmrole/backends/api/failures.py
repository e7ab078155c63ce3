"""What it means that a server does not reply: ask again, ask otherwise, give the request up, or stop."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Literal

from mmrole.base.errors import in_one_line
from mmrole.base.json_values import Json, JsonObject

FailureKind = Literal[
    "busy", "broken", "cut off", "timeout", "unreachable", "unreadable", "setting", "refused", "failed", "useless"
]

_LONGEST_TEXT = 300
_NO_CREDIT = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_balance",
    "arrearage",
)
_NO_MODEL = ("model_not_found", "model_not_exist")
_DECLINED = ("content_filter", "content_policy_violation", "data_inspection_failed", "datainspectionfailed")
# Names max_tokens, too, but is about this request.
_TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|too (long|large|many)|exceed", re.IGNORECASE | re.DOTALL)
_REMEDIES = {
    401: "the key is wrong or missing: --api_key_env names the environment variable with it",
    402: "there is no credit: pay",
    403: "the key does not allow it: use another key or --api_model",
    404: "there is no such address or model: correct --api_base, which often ends with /v1, or --api_model",
}


class ApiFailure(Exception):
    """A try at a request that no reply came of.

    Attributes:
        kind: may be sent again: "busy" (429, 502 and above), "broken" (500), "cut off" (the connection broke),
            "timeout", "unreachable" (no connection), "unreadable" (a response that is no reply). "setting": the server
            refuses a field of the request. "refused": it declines to answer. "failed": it cannot answer this one.
            "useless": it will answer none.
        wait: seconds that the server asks to wait; None where it does not say.
        setting: the name of the field, where one is refused.
    """

    def __init__(self, kind: FailureKind, text: str, wait: float | None = None, setting: str = "") -> None:
        super().__init__(in_one_line(text[:_LONGEST_TEXT]))
        self.kind: FailureKind = kind
        self.wait = wait
        self.setting = setting


def failure_of_status(status: int, headers: Mapping[str, str], body: Json, settings: Collection[str]) -> ApiFailure:
    """What a response other than 200 means.

    Args:
        status: its number.
        headers: by name in lower case.
        body: as JSON; None where it is none.
        settings: names of the fields that could be left out of the request.
    """
    error = _error_of(body)
    said = f"{status} {_phrase(status)}" + (f": {_text_of(error)}" if _text_of(error) else "")
    wait = _wait(headers)
    if 300 <= status < 400:
        target = headers.get("location", "nowhere")
        return ApiFailure("useless", f"it redirects to {target[:100]}, which is not followed; correct --api_base")
    codes = _codes(error)
    if codes & {*_NO_CREDIT}:
        return ApiFailure("useless", f"{said}; {_REMEDIES[402]}")
    if codes & {*_NO_MODEL}:
        return ApiFailure("useless", f"{said}; {_REMEDIES[404]}")
    if codes & {*_DECLINED}:
        return ApiFailure("refused", said)
    if status in _REMEDIES:
        return ApiFailure("useless", f"{said}; {_REMEDIES[status]}")
    if status in (408, 409, 425, 429) or status >= HTTPStatus.BAD_GATEWAY:
        return ApiFailure("busy", said, wait)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ApiFailure("broken", said, wait)
    if status in (400, 422) and (setting := _refused_setting(error, settings)):
        return ApiFailure("setting", said, setting=setting)
    return ApiFailure("failed", said)


def failure_of_error(error: Json) -> ApiFailure:
    """What an error means that comes with the status of a success, as some servers have it."""
    code = str(error.get("code")) if isinstance(error, dict) else ""
    if re.fullmatch(r"[45][0-9]{2}", code):
        return failure_of_status(int(code), {}, {"error": error}, ())
    if isinstance(error, dict) and _codes(error) & {*_NO_CREDIT, *_NO_MODEL, *_DECLINED}:
        return failure_of_status(HTTPStatus.BAD_REQUEST, {}, {"error": error}, ())
    return ApiFailure("unreadable", f"an error in place of a reply: {_text_of(_error_of({'error': error})) or error}")


def _error_of(body: Json) -> JsonObject:
    """The error in a body, in any of the forms that servers have for it."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return {"message": body} if isinstance(body, str) else {}
    error = body.get("error", body)
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else body


def _text_of(error: JsonObject) -> str:
    """What it says, without what it may repeat of the request."""
    for name in ("message", "detail", "msg", "title"):
        value = error.get(name)
        if isinstance(value, list):  # as FastAPI has it
            faults = (fault for fault in value if isinstance(fault, dict))
            value = "; ".join(f"{fault.get('loc')} {fault.get('msg')}"[:_LONGEST_TEXT] for fault in faults)
        if value:
            return value if isinstance(value, str) else str(value)[: 2 * _LONGEST_TEXT]
    return ""


def _codes(error: JsonObject) -> set[str]:
    return {str(error.get(name)).lower() for name in ("code", "type")}


def _refused_setting(error: JsonObject, settings: Collection[str]) -> str:
    """The field of the request that an error is about: as it says itself, or the first one that its text names."""
    parameter = error.get("param")
    if isinstance(parameter, str) and parameter:
        return parameter if parameter in settings and not _TOO_LONG.search(_text_of(error)) else ""
    text = _text_of(error)
    if _TOO_LONG.search(text):
        return ""
    places = {name: re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in settings}
    found = {name: place.start() for name, place in places.items() if place is not None}
    return min(found, key=lambda name: found[name], default="")


def _wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` asks for, as a number or a date."""
    milliseconds, text = headers.get("retry-after-ms", ""), headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", milliseconds):
        return float(milliseconds) / 1000
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
