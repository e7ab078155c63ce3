"""Answers chat requests that come and go: prompts merged into trees, trees decoded together in batches."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import cast

from torch import OutOfMemoryError

from mmrole.data.requests import ChatReply, ChatRequest, Piece, Usage
from mmrole.engine.batch import Batch, Leaf
from mmrole.engine.images import ImageTable, ImageView
from mmrole.engine.planning import PlannedTree, Prompt, ShownImage, images_of, in_passes, plan_trees
from mmrole.engine.reply_text import ReplyText
from mmrole.engine.runner import Runner
from mmrole.engine.sequence_runner import SequenceRunner
from mmrole.models.families import SequenceModel, TreeModel
from mmrole.prompt_tree import TokenSequence
from mmrole.prompt_tree.image_keys import ImagePlace, image_keys

READ_AHEAD = 4  # trees whose images are read while others are computed


class Engine:
    """A loop that requests join (`add`) and leave (`cancel`), and that goes on token by token (`step`).

    Requests with a long common prefix that may share keys and values form a prompt tree. A tree is prefilled in one
    pass; all its leaves, and those of other trees, are then decoded together. As leaves finish, waiting trees take
    their place. A reply is what the model gives for the request alone (up to rounding), whatever else runs beside it,
    joins or leaves. With a model that cannot read prompt trees each request is read alone, and decoded beside others
    in turn.

    Args:
        model: what replies.
        max_batch_tokens: positions whose keys and values may be in memory at once; chosen from the free memory by
            default. A single tree may exceed it.
        window: requests that are looked at together to find common prefixes and like lengths. So many are taken from
            what was added before the first reply, and again whenever all of them are at work.
        paged: whether keys and values lie in pages (`mmrole/engine/paged_kv_cache.py`); by default on a GPU.
    """

    def __init__(
        self, model: TreeModel, max_batch_tokens: int | None = None, window: int = 1024, paged: bool | None = None
    ) -> None:
        self.family = model.family
        if self.family.reads_trees:
            self.runner = Runner(model, max_batch_tokens, paged)
        else:
            self.runner = SequenceRunner(cast("SequenceModel", model), max_batch_tokens)
        self.max_batch_tokens = self.runner.positions
        self.window = window
        self.images = ImageTable()
        self._added: deque[ChatRequest] = deque()
        self._waiting: deque[PlannedTree] = deque()
        self._batch = Batch(self.runner, self.family.stop_ids)
        self._joined = self._left = False
        self._error: BaseException | None = None
        self._last: list[ChatReply] = []

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to step for."""
        at_work = self._added or self._waiting or any(row.open_leaves for row in self._batch.rows)
        return not at_work and self._error is None

    def generate(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """Yields a reply to each request, in the order in which they are finished. The engine has no others meanwhile.

        Raises:
            As `step`.
        """
        requests = iter(requests)
        try:
            while True:
                if not self._waiting and not self._added:
                    self._added.extend(islice(requests, self.window))
                if self.is_idle:
                    return
                yield from map(self._reply, self._advance())
        finally:
            self.close()

    def add(self, request: ChatRequest) -> None:
        """Lets a request join, at the next step or as soon as there is room for it."""
        self._added.append(request)

    def cancel(self, id_: str) -> None:
        """Lets the requests with this id leave: no reply to them comes, and their place is free at the next step."""
        self._added = deque(request for request in self._added if request.id != id_)
        waiting: deque[PlannedTree] = deque()
        for planned in self._waiting:
            leaving = [prompt for prompt in planned.prompts if prompt.request.id == id_]
            self._release(leaving)
            staying = [prompt for prompt in planned.prompts if prompt not in leaving]
            waiting.extend(plan_trees(staying, self.family) if leaving else [planned])
        self._waiting = waiting
        for leaf in (leaf for row in self._batch.rows for leaf in row.leaves):
            if leaf.prompt.request.id == id_ and not leaf.finished:
                leaf.cancelled = self._left = True

    def step(self) -> list[Piece | ChatReply]:
        """Lets requests in where there is room, and goes on by a token for each that is at work.

        When it raises, all requests have left; what was finished before has been returned.

        Returns:
            New pieces of the replies' texts, and behind them the replies that are finished. The pieces of a reply make
            up its text, but for special tokens that a model may have generated: they are in no piece.

        Raises:
            OSError: an image cannot be read.
            torch.OutOfMemoryError: a request alone does not fit into the GPU's memory.
            FloatingPointError: the model computes NaN.
        """
        self._last = []
        finished = self._advance()
        at_work = [leaf for row in self._batch.rows for leaf in row.leaves if not leaf.finished]
        leaves = finished + at_work
        texts = [leaf.prompt.text.grow(leaf.tokens, leaf.finished) for leaf in leaves]
        pieces = [
            Piece(leaf.prompt.request.id, text, self._usage(leaf))
            for leaf, text in zip(leaves, texts, strict=True)
            if text
        ]
        if self.is_idle:
            self._batch.clear()
        self._last = [self._reply(leaf) for leaf in finished]
        return [*pieces, *self._last]

    def arrived(self) -> list[ChatReply]:
        """The replies that the last step has finished."""
        return self._last

    def status(self) -> str:
        """Nothing: replies and their tokens say it all."""
        return ""

    def close(self) -> None:
        """Lets all requests leave, and frees what was kept for them."""
        self._added.clear()
        self._waiting.clear()
        self._batch.clear()
        self._batch.finished.clear()
        self._joined = self._left = False
        self._error = None
        self.runner.images.forget(self.images.clear())
        self.runner.images.close()

    def _advance(self) -> list[Leaf]:
        """Takes a step; returns the leaves that it finishes. What went wrong besides is raised by the next call."""
        failure = None
        if self._error is None:
            try:
                self._admit()
                if self._batch.rows:
                    self._batch.step()
            except OutOfMemoryError as error:
                # The exception holds the frames that hold the tensors: only its text leaves the handler.
                failure = str(error)
            except BaseException as error:  # an unreadable image, Ctrl-C
                self._error = error
        finished = list(self._batch.finished)
        self._batch.finished.clear()
        if failure is not None:
            self._error = self._shrink(failure)
        if self._error is not None and not finished:
            error = self._error
            self.close()
            raise error
        return finished

    def _admit(self) -> None:
        """Fills the room that others have left with requests that wait."""
        if self._added and not self._waiting:
            chosen = [self._added.popleft() for _ in range(min(self.window, len(self._added)))]
            self._waiting.extend(plan_trees([self._encode(request) for request in chosen], self.family))
            self._joined = True
        joins = self._joined and self._waiting and self._batch.has_room(self._waiting[0], self.max_batch_tokens)
        if not (joins or self._left or self._batch.needs_rebuild):
            return
        self._joined = self._left = False
        entering = self._batch.rebuild(self._waiting, self.max_batch_tokens)
        read = 0
        for together in in_passes(entering, self.runner.nodes_at_once):
            ahead = images_of(entering[read : read + len(together) + READ_AHEAD])
            self.runner.images.read_ahead({number: self.images.view(number) for number in ahead})
            read += len(together)
            # An image that cannot be read is an error that leaves the trees before it alone.
            sound = list(takewhile(lambda planned: self.runner.images.are_readable(images_of([planned])), together))
            for part in filter(None, (sound, together[len(sound) :])):
                self._batch.prefill(part)
                self._release(prompt for planned in part for prompt in planned.prompts)

    def _encode(self, request: ChatRequest) -> Prompt:
        sequence, images = self._token_ids(request)
        return Prompt(request, request.complete_settings(), ReplyText(self.family), sequence, images)

    def _token_ids(self, request: ChatRequest) -> tuple[TokenSequence, list[ShownImage]]:
        """Token ids of a request's prompt, and its images, of which there is a user more."""
        encoded = self.family.encode(request.messages)
        views = [ImageView(image.image, image.among_others) for image in encoded.images]
        numbers = [self.images.acquire(view) for view in views]
        shown = [ShownImage(number, image.grid) for number, image in zip(numbers, encoded.images, strict=True)]
        places = [ImagePlace(image.spans, own.number) for image, own in zip(encoded.images, shown, strict=True)]
        return TokenSequence(encoded.input_ids, image_keys(len(encoded.input_ids), places)), shown

    def _release(self, prompts: Iterable[Prompt]) -> None:
        """Lets go of images: keys and values are all that decoding needs."""
        for prompt in prompts:
            self.runner.images.forget([image.number for image in prompt.images if self.images.release(image.number)])
            prompt.images = []

    def _shrink(self, failure: str) -> OutOfMemoryError | None:
        """After running out of memory: the open requests start again, with half the budget, or as smaller trees."""
        trees = self._batch.clear()
        if len(trees) == 1:
            (alone,) = trees
            if len(alone) == 1 and not self.runner.has_spare_memory(alone[0]):
                return OutOfMemoryError(f"request {alone[0].request.id!r} alone does not fit into memory: {failure}")
            trees = [alone[: len(alone) // 2], alone[len(alone) // 2 :]]
        self.max_batch_tokens = max(1, self.max_batch_tokens // 2)
        self.runner.shrink(self.max_batch_tokens)
        reason = failure.splitlines()[0][:120]
        warnings.warn(
            f"out of memory ({reason}); going on with batches of {self.max_batch_tokens:,} tokens", stacklevel=4
        )
        for prompts in reversed(trees):
            self._release(prompts)
            for prompt in prompts:
                prompt.sequence, prompt.images = self._token_ids(prompt.request)
            self._waiting.extendleft(plan_trees(prompts, self.family))
        return None

    def _reply(self, leaf: Leaf) -> ChatReply:
        return ChatReply(
            id=leaf.prompt.request.id,
            text=self.family.decode(leaf.tokens),
            token_ids=tuple(leaf.tokens),
            finish_reason="stop" if leaf.stopped else "length",
            usage=self._usage(leaf),
        )

    @staticmethod
    def _usage(leaf: Leaf) -> Usage:
        return Usage(len(leaf.prompt.sequence), len(leaf.tokens) + leaf.stopped)
