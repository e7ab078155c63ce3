"""Batch files: requests that a provider answers within a day at half the price, and what it has replied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmrole.backends.api.bodies import body_of, fields_of
from mmrole.backends.api.failures import ApiFailure, failure_of_status
from mmrole.backends.api.options import ApiOptions, BatchFiles
from mmrole.backends.api.replies import read_completion
from mmrole.base.errors import UserError, shown
from mmrole.base.files import parse_json, replacing
from mmrole.base.json_values import JsonObject
from mmrole.data.image_file import ImageFile
from mmrole.data.requests import NO_USAGE, ChatReply, ChatRequest, Origin

_PATH = "/v1/chat/completions"
_ID_LENGTH = 32


def custom_id(request: ChatRequest, fingerprint: JsonObject) -> str:
    """What stands for a request in batch files: ids hold blanks and Chinese.

    It is of all that is asked, too: reviews of two models' answers to a sample have the same ids, and a record
    can change between a batch and its results.
    """
    messages = [(message.role, message.text) for message in request.messages]
    images = [image.sha256 for image in request.images if isinstance(image, ImageFile)]
    text = json.dumps([request.id, fingerprint, messages, images], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


def write_batches(
    requests: Sequence[ChatRequest], batch: BatchFiles, options: ApiOptions, fingerprint: JsonObject
) -> str:
    """Writes requests into batch files; says in a line where they are.

    Raises:
        OSError, UserError: a file is there already or cannot be written, a picture cannot be used, or a request has
            more bytes than a file may.
    """
    if not requests:
        return "nothing is to be asked; no batch file is written"
    lines = _Lines(_encoded(request, options, fingerprint) for request in requests)
    paths: list[Path] = []
    while lines.next is not None:
        number = len(paths) + 1
        path = batch.path.with_name(f"{batch.path.stem}-{number}{batch.path.suffix}")
        for there in (path, batch.path):
            if there.exists():
                raise UserError(f"{there} is there already; remove it, or give another name")
        with replacing(path) as file:
            for line in lines.take(batch):
                file.write(line)
        paths.append(path)
    if len(paths) == 1:
        paths = [paths[0].replace(batch.path)]
    names = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
    return f"{len(requests):,} requests are written to {names}; read the results with --batch_read"


class _Lines:
    """Lines of which files take so many as they may hold."""

    def __init__(self, lines: Iterator[tuple[str, bytes]]) -> None:
        self._lines = lines
        self.next = next(lines, None)

    def take(self, batch: BatchFiles) -> Iterator[bytes]:
        count = size = 0
        while self.next is not None:
            id_, line = self.next
            if len(line) > batch.most_bytes:
                raise UserError(f"the request {shown(id_)} has {len(line):,} bytes, more than --batch_bytes; raise it")
            if count == batch.most_requests or size + len(line) > batch.most_bytes:
                return
            count, size = count + 1, size + len(line)
            yield line
            self.next = next(self._lines, None)


def _encoded(request: ChatRequest, options: ApiOptions, fingerprint: JsonObject) -> tuple[str, bytes]:
    line = {
        "custom_id": custom_id(request, fingerprint),
        "method": "POST",
        "url": _PATH,
        "body": body_of(request, options),
    }
    return request.id, json.dumps(line, ensure_ascii=False).encode() + b"\n"


class BatchResults:
    """What a provider has replied to batch files.

    Args:
        paths: its files, of results and of errors, in any order.
        options: with which the requests were written.
        fingerprint: of the backend.

    Raises:
        UserError: a file cannot be read, or a line is no result.
    """

    def __init__(self, paths: Iterable[Path], options: ApiOptions, fingerprint: JsonObject) -> None:
        self._options, self._fingerprint = options, fingerprint
        self._results: dict[str, JsonObject] = {}
        for path in paths:
            for id_, result in _read(path):
                # What was replied counts, wherever the same request has failed in another file.
                if id_ not in self._results or _status(self._results[id_]) != 200:
                    self._results[id_] = result

    def reply(self, request: ChatRequest) -> ChatReply:
        """The reply to a request; one that has failed where there is none."""
        result = self._results.get(custom_id(request, self._fingerprint))
        if result is None:
            return ChatReply(request.id, "", "failed", error="it is not among the results, as it is asked now")
        try:
            return self._read_reply(request, result)
        except ApiFailure as failure:
            kind = "refused" if failure.kind == "refused" else "failed"
            return ChatReply(request.id, "", kind, error=str(failure))

    def _read_reply(self, request: ChatRequest, result: JsonObject) -> ChatReply:
        status = _status(result)
        response = result.get("response")
        body = response.get("body") if isinstance(response, dict) else None
        if status != 200:
            raise failure_of_status(status, {}, {"error": result.get("error")} if body is None else body, ())
        completion = read_completion(json.dumps(body).encode(), request.complete_settings().max_new_tokens)
        sent = sorted(fields_of(request, self._options))
        return ChatReply(
            request.id,
            completion.text,
            completion.finish_reason,
            completion.usage or NO_USAGE,
            error=completion.error,
            origin=Origin(self._options.base.rstrip("/"), completion.model, tuple(sent)),
        )


def _read(path: Path) -> Iterator[tuple[str, JsonObject]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse(line, f"{path}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; give the results as they were downloaded") from None


def _parse(line: str, where: str) -> tuple[str, JsonObject]:
    try:
        result = parse_json(line)
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict) or not isinstance(result.get("custom_id"), str) or "response" not in result:
        raise UserError(f"{where}: it is no result of a batch; give the results as they were downloaded")
    return result["custom_id"], result


def _status(result: JsonObject) -> int:
    """The status of a response; 400 where there is none, or it is none."""
    response = result.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    return status if type(status) is int and 100 <= status < 600 else 400
