"""What is said to a client in place of a reply: OpenAI's error object, with a status of HTTP."""

from __future__ import annotations

from mmrole.base.errors import in_one_line
from mmrole.base.json_values import JsonObject

_LONGEST = 500


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: why, in a line.
        code: the same for programs; None where OpenAI has none.
        param: the field of the request that it is about.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = in_one_line(message[:_LONGEST])
        self.code, self.param = code, param
        self.headers = headers or {}
        super().__init__(self.message)

    @property
    def body(self) -> JsonObject:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unusable(param: str, message: str, *, code: str | None = None) -> Refusal:
    """A field of the request cannot be used; `message` says why, and begins with the field."""
    return Refusal(400, message, code=code, param=param)
