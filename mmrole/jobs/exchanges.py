"""What is asked about one record and what is replied, round by round."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic

from mmrole.backends.backend import Backend, Note
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import LabelledImage, Message, Part
from mmrole.data.requests import ChatReply, ChatRequest
from mmrole.jobs.payloads import hash_of_images
from mmrole.jobs.programs import AnyJobRecord, Program


@dataclass(eq=False, slots=True)
class Exchange(Generic[AnyJobRecord]):
    """What was asked about a record so far, and the replies that stand.

    Attributes:
        program: what is done with the record.
        record: the record.
        images: the image files, by the path that records have for them.
        asked: the program's requests by id, in the order in which it made them; with files for the names of images once
            they are ready for the backend.
        replies: those to them that stand, by id; what failed is none.
    """

    program: Program[AnyJobRecord]
    record: AnyJobRecord
    images: Mapping[Path, ImageFile]
    asked: dict[str, ChatRequest] = field(default_factory=dict)
    replies: dict[str, ChatReply] = field(default_factory=dict)
    _cut: dict[str, ChatRequest] | None = None
    _n_fitted: int = 0

    def go_on(self) -> list[str]:
        """The ids of what the program asks now and has not asked before."""
        requests = self.program.ask(self.record, self.replies)
        new = {request.id: request for request in requests if request.id not in self.asked}
        self.asked |= new
        return list(new)

    def replay(self, replies: Mapping[str, ChatReply], failed: Container[str] = ()) -> None:
        """Asks everything that follows from earlier replies by id, but those that failed. Those to other records may be
        among them."""
        new = list(self.asked) or self.go_on()
        while known := {id_: replies[id_] for id_ in new if id_ in replies and id_ not in failed}:
            self.replies |= known
            new = self.go_on()

    def forget_refusals(self) -> None:
        """Has what was refused asked again."""
        self.replies = {id_: reply for id_, reply in self.replies.items() if reply.finish_reason != "refused"}

    @property
    def pending(self) -> list[str]:
        """The ids of what was asked and has no reply that stands."""
        return [id_ for id_ in self.asked if id_ not in self.replies]

    def fit(self, backend: Backend) -> list[Note]:
        """Makes all that was asked ready for the backend; says what there is to say about it.

        Raises:
            UserError: the backend cannot answer it.
        """
        new = [self._with_files(request) for request in list(self.asked.values())[self._n_fitted :]]
        if not new:
            return []
        self.asked |= {request.id: request for request in new}
        # A retry is cut as the request was in whose place it is asked; what is new is cut together with the rest.
        before = list(self.asked)[: self._n_fitted]
        known = {self.asked[id_].messages: self.fitted(id_).messages for id_ in before}
        if known and all(request.messages in known for request in new):
            new = [replace(request, messages=known[request.messages]) for request in new]
        else:
            new = list(self.asked.values())
        fitted, notes = backend.fit(new)
        for request in fitted:
            if request.messages == self.asked[request.id].messages:
                self.asked[request.id] = request
            else:
                self._cut = {**(self._cut or {}), request.id: request}
        self._n_fitted = len(self.asked)
        return notes

    def fitted(self, id_: str) -> ChatRequest:
        """A request as it goes to the backend, after `fit`."""
        return (self._cut or self.asked).get(id_, self.asked[id_])

    def hash_of_images(self, id_: str) -> str:
        """What `payloads.hash_of_images` says of a request's images, ready for the backend or not."""
        images = self.asked[id_].images
        return hash_of_images(self.images[image] if isinstance(image, Path) else image for image in images)

    def _with_files(self, request: ChatRequest) -> ChatRequest:
        """The request with files for the names of images."""
        messages = tuple(
            [Message(role, tuple([self._with_file(part) for part in content])) for role, content in request.messages]
        )
        return ChatRequest(request.id, messages, request.settings)

    def _with_file(self, part: Part) -> Part:
        if isinstance(part, LabelledImage):
            return part._replace(image=self.images[part.image]) if isinstance(part.image, Path) else part
        return self.images[part] if isinstance(part, Path) else part
