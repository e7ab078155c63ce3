"""One try at a request, with OpenAI's own client: what is sent, to whom, and how much may come back.

The client is a careful one for a person's program. For a long job its own retries and redirects are off, and nothing is
sent that its environment variables say (`OPENAI_BASE_URL`, `OPENAI_CUSTOM_HEADERS` and others may be meant for another
server): the headers are those that are listed here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx2
import openai

from mmrole.backends.api.access import Access
from mmrole.backends.api.failures import ApiFailure, failure_of_status
from mmrole.backends.api.options import ApiOptions
from mmrole.base.errors import UserError
from mmrole.base.files import parse_json
from mmrole.base.json_values import Json, JsonObject

REQUEST_ID = "X-Client-Request-Id"
_LONGEST_ID = 512

_SENT = ("host", "content-type", "content-length", "transfer-encoding", "connection", "user-agent", "accept")
_OF_OPENAI = ("openai-organization", "openai-project")
_NO_KEY = "none"

# Of a response, in bytes: what an answer of so many tokens can have, escaped, and room for all the rest.
_BYTES_A_TOKEN = 256
_ROOM = 1 << 20


def encoded_id(id_: str) -> str:
    """An id as a header can hold it: percent-encoded, and cut where it is too long."""
    return quote(id_.encode("utf-8", "surrogatepass"), safe=" /:")[:_LONGEST_ID].strip()


class ApiClient:
    """Sends requests to a server, each once. Used in one event loop.

    Raises:
        UserError: the environment names a proxy or certificates that cannot be used.
    """

    def __init__(self, options: ApiOptions, access: Access) -> None:
        self._access = access
        self._timeout = options.timeout
        self._own_headers = {name.lower() for name, _ in options.headers}
        self._most_bytes = _ROOM + _BYTES_A_TOKEN * options.settings.max_new_tokens
        unlimited = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        hooks = {"request": [self._send_nothing_else], "response": [self._limit]}
        try:
            self._http = httpx2.AsyncClient(
                follow_redirects=False,
                timeout=None,  # the whole try has one
                limits=unlimited,
                event_hooks=hooks,
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            why = "a SOCKS proxy needs the package socksio" if isinstance(error, ImportError) else error
            raise UserError(
                f"the environment names a proxy or certificates that cannot be used ({why}); correct HTTPS_PROXY, "
                "HTTP_PROXY and ALL_PROXY, which can be http://…, or SSL_CERT_FILE and SSL_CERT_DIR"
            ) from None
        # Each of these is given so that no environment variable is read in its place.
        self._client = openai.AsyncOpenAI(
            api_key=_NO_KEY,
            admin_api_key=_NO_KEY,
            webhook_secret=_NO_KEY,
            base_url=access.url,
            organization=None if access.is_openai else "",
            project=None if access.is_openai else "",
            max_retries=0,
            timeout=None,
            default_headers=dict(options.headers),
            http_client=self._http,
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def send(self, id_: str, body: JsonObject) -> bytes:
        """The body of the response to a request.

        Args:
            id_: of the request.
            body: of the request.

        Raises:
            ApiFailure: it failed.
        """
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    body=body,
                    options={"headers": {REQUEST_ID: encoded_id(id_)}},
                )
            return self._without_key(response.content)
        except TimeoutError:
            raise ApiFailure("timeout", f"no reply within {self._timeout:g} s") from None
        except openai.APIStatusError as error:
            headers = {name.lower(): self._access.without_key(text) for name, text in error.response.headers.items()}
            settings = [name for name in body if name not in ("model", "messages")]
            said = _json(self._without_key(error.response.content))
            raise failure_of_status(error.status_code, headers, said, settings) from None
        except openai.APIConnectionError as error:
            raise _failure_of_connection(error.__cause__ or error) from None
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, _TooLong) as error:
            raise _failure_of_connection(error) from None

    def _without_key(self, data: bytes) -> bytes:
        return self._access.without_key(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    async def _send_nothing_else(self, request: httpx2.Request) -> None:
        """Removes every header that is not listed, and adds the key: the last thing that is done to a request."""
        allowed = {*_SENT, *self._own_headers, REQUEST_ID.lower(), *(_OF_OPENAI if self._access.is_openai else ())}
        for name in list(request.headers):
            if name.lower() not in allowed:
                del request.headers[name]
        request.headers["Accept-Encoding"] = "identity"
        if self._access.key is not None:
            request.headers["Authorization"] = f"Bearer {self._access.key}"

    async def _limit(self, response: httpx2.Response) -> None:
        """Has a response end with an error where it is too long, and never unpacks it."""
        for name in ("content-encoding", "set-cookie"):
            response.headers.pop(name, None)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Limited(response.stream, self._most_bytes)


class _TooLong(Exception):
    """A response is longer than it may be."""


class _Limited(httpx2.AsyncByteStream):
    """A stream of bytes that ends with an error where there are too many."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream, self._most = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for data in self._stream:
            length += len(data)
            if length > self._most:
                raise _TooLong(f"the response is longer than {self._most:,} bytes")
            yield data

    async def aclose(self) -> None:
        """Ends it."""
        await self._stream.aclose()


def _failure_of_connection(error: BaseException) -> ApiFailure:
    text = str(error) or type(error).__name__
    if isinstance(error, _TooLong):
        return ApiFailure("unreadable", text)
    if isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.ProxyError):
        return ApiFailure("unreachable", f"no connection: {text}")
    return ApiFailure("cut off", f"the connection broke: {text}")


def _json(data: bytes) -> Json:
    try:
        return parse_json(data.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError):
        return data[:300].decode("utf-8", "replace")
