"""What a script does with each record of its input: what it asks, and what it makes of the replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from mmrole.base.errors import Where
from mmrole.base.files import Record
from mmrole.base.json_values import JsonObject
from mmrole.data.requests import ChatReply, ChatRequest


class JobRecord(Record, Protocol):
    """What a job needs of a record."""

    @property
    def id(self) -> str:
        """Unlike that of any other record of the job."""
        ...

    @property
    def image(self) -> str | None:
        """Path of its image relative to the image folder, if it has one."""
        ...

    @property
    def where(self) -> Where:
        """Its place in the input, for messages."""
        ...


AnyJobRecord = TypeVar("AnyJobRecord", bound=JobRecord)


@dataclass(frozen=True)
class Program(Generic[AnyJobRecord]):
    """What a script does with a record.

    Attributes:
        name: of the script, as journals and messages name it.
        record_type: what its input files hold.
        ask: what is to be asked about a record next, from the replies so far by request id (none at first); nothing
            when it is done. May repeat what has been asked and has no reply yet. Ids are unique, and the same requests
            follow from the same replies whenever it is called. Images in it are paths as the record has them.
        result: the record's place in the output, from all replies by request id.
        settings: flags of the script that change what it makes.
        report: lines about a finished output: its path and what was written, record by record.
        how_to_get: what makes or fetches its input, for a message.
    """

    name: str
    record_type: type[AnyJobRecord]
    ask: Callable[[AnyJobRecord, Mapping[str, ChatReply]], Sequence[ChatRequest]]
    result: Callable[[AnyJobRecord, Mapping[str, ChatReply]], JsonObject]
    settings: JsonObject = field(default_factory=dict)
    report: Callable[[Path, Iterator[JsonObject]], list[str]] = lambda output, results: []
    how_to_get: str = "bash scripts/download.sh data fetches the published data"
