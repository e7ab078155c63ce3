"""The routes of the server."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from mmrole.base.json_values import JsonObject
from mmrole.chat.server.access_log import AccessLine
from mmrole.chat.server.answering import ChatAnswer, Desk
from mmrole.chat.server.completions import encoded, send_json
from mmrole.chat.server.refusals import Refusal


class _Json(Response):
    """A response of JSON."""

    def __init__(self, data: JsonObject, status: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self._data, self._status, self._headers = data, status, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, self._status, encoded(self._data), self._headers)


def make_app(desk: Desk) -> FastAPI:
    """The application, which answers what a `Door` lets in."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.get("/health")
    async def health() -> Response:
        alive = desk.engine.is_alive
        state = {"status": "ok" if alive else "the engine has ended", "requests": desk.engine.at_work}
        return _Json(state, 200 if alive else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        return _Json({"object": "list", "data": [desk.models.described(name) for name in desk.models.names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        desk.models.find(name)
        return _Json(desk.models.described(name))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return ChatAnswer(desk, request)

    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _bug)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    access: AccessLine = request.scope["access"]
    access.note(f"({error.code or error.param or 'refused'})")
    return _Json(error.body, error.status, error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    served = "GET /health, GET /v1/models and POST /v1/chat/completions"
    refusal = Refusal(error.status_code, f"there is no such address; {served} are answered", code="unknown_url")
    return _Json(refusal.body, refusal.status, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    return _Json(Refusal(500, f"this is a bug of the server: {type(error).__name__}").body, 500)
