"""Answers a stream of chat requests: prompts merged into trees, trees decoded together in batches."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch

from mmrole.data.requests import ChatReply, ChatRequest, Usage
from mmrole.engine.batch import Batch, Leaf
from mmrole.engine.images import ImageFeatures
from mmrole.engine.memory import free_positions
from mmrole.engine.planning import PlannedTree, Prompt, images_of, plan_trees
from mmrole.models.encoding import encode_chat
from mmrole.prompt_tree import TokenSequence
from mmrole.prompt_tree.sequences import TEXT
from mmrole.qwen_vl import QWenLMHeadModel, QWenTokenizer
from mmrole.qwen_vl.chat_format import decode_answer
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE

READ_AHEAD = 4  # trees whose images are read while another is computed


class Engine:
    """Generates replies with a Qwen-VL model.

    Requests with a long common prefix and equal NTK factors form a prompt tree. A tree is prefilled in one pass; all
    its leaves, and those of other trees, are then decoded together. As leaves finish, waiting trees take their place.
    A reply is what `generate()` gives for the request alone (up to rounding), whatever else runs beside it.

    Args:
        model: its attention implementation must take a mask for each query (eager, SDPA, FlexAttention).
        tokenizer: that of the model.
        max_batch_tokens: positions whose keys and values may be in memory at once; chosen from the free memory by
            default. A single tree may exceed it.
        window: requests that are looked at together to find common prefixes and like lengths. So many are taken from
            the stream before the first reply, and again whenever all of them are at work.
    """

    def __init__(
        self,
        model: QWenLMHeadModel,
        tokenizer: QWenTokenizer,
        max_batch_tokens: int | None = None,
        window: int = 1024,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_batch_tokens = free_positions(model) if max_batch_tokens is None else max_batch_tokens
        self.window = window
        self.stop_ids = frozenset((tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id))

    @torch.inference_mode()
    def generate(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """Yields a reply to each request, in the order in which they are finished.

        Raises:
            OSError: if an image cannot be read.
            torch.OutOfMemoryError: if not even one tree fits into the GPU's memory.
        """
        requests = iter(requests)
        images = ImageFeatures(self.model)
        batch = Batch(self.model, images, self.stop_ids)
        waiting: deque[PlannedTree] = deque()
        try:
            while True:
                if not waiting:
                    waiting.extend(self._plan(islice(requests, self.window), images))
                if not waiting and not batch.rows:
                    return
                failure, error = self._advance(batch, waiting, images)
                yield from map(self._reply, batch.finished)
                batch.finished.clear()
                if error is not None:
                    raise error
                if failure is not None:
                    self._shrink(batch, waiting, images, failure)
        finally:
            images.close()

    def _plan(self, requests: Iterable[ChatRequest], images: ImageFeatures) -> list[PlannedTree]:
        return plan_trees([self._encode(request, images) for request in requests], self.model.config.seq_length)

    def _encode(self, request: ChatRequest, images: ImageFeatures) -> Prompt:
        chat = encode_chat(self.tokenizer, request.messages)
        numbers = [images.acquire(image) for image in request.images]
        keys = None
        if numbers:
            keys = np.full(len(chat.input_ids), TEXT, dtype=np.int64)
            for span, number in zip(chat.images, numbers, strict=True):
                keys[span.start : span.start + FEATURES_PER_IMAGE] = images.keys(number)
        return Prompt(request, request.complete_settings(), TokenSequence(np.array(chat.input_ids), keys), numbers)

    def _advance(
        self, batch: Batch, waiting: deque[PlannedTree], images: ImageFeatures
    ) -> tuple[str | None, BaseException | None]:
        """Lets trees in and takes a step; returns the message if memory ran out, or what else went wrong."""
        try:
            if batch.needs_rebuild:
                self._admit(batch, waiting, images)
            if batch.rows:
                batch.step()
        except torch.OutOfMemoryError as error:
            # The exception holds the frames that hold the tensors: only its text leaves the handler.
            return str(error), None
        except BaseException as error:  # an unreadable image, Ctrl-C: after the replies that are finished
            return None, error
        return None, None

    def _admit(self, batch: Batch, waiting: deque[PlannedTree], images: ImageFeatures) -> None:
        """Fills the room that finished leaves have left with waiting trees."""
        entering = batch.rebuild(waiting, self.max_batch_tokens)
        for place, planned in enumerate(entering):
            images.read_ahead(images_of(entering[place : place + READ_AHEAD]))
            batch.prefill(planned)
            _release(planned.prompts, images)

    def _shrink(self, batch: Batch, waiting: deque[PlannedTree], images: ImageFeatures, failure: str) -> None:
        """After running out of memory: the open requests start again, with half the budget, or as smaller trees."""
        trees = batch.clear()
        if len(trees) == 1:
            (alone,) = trees
            if len(alone) == 1:
                raise torch.OutOfMemoryError(
                    f"request {alone[0].request.id!r} alone does not fit into memory: {failure}"
                )
            trees = [alone[: len(alone) // 2], alone[len(alone) // 2 :]]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.max_batch_tokens = max(1, self.max_batch_tokens // 2)
        reason = failure.splitlines()[0][:120]
        warnings.warn(
            f"out of memory ({reason}); going on with batches of {self.max_batch_tokens:,} tokens", stacklevel=3
        )
        for prompts in reversed(trees):
            _release(prompts, images)
            again = [self._encode(prompt.request, images) for prompt in prompts]
            waiting.extendleft(plan_trees(again, self.model.config.seq_length))

    def _reply(self, leaf: Leaf) -> ChatReply:
        return ChatReply(
            id=leaf.prompt.request.id,
            text=self._text(leaf.tokens),
            token_ids=tuple(leaf.tokens),
            finish_reason="stop" if leaf.stopped else "length",
            usage=Usage(len(leaf.prompt.sequence), len(leaf.tokens) + leaf.stopped),
        )

    def _text(self, tokens: list[int]) -> str:
        try:
            return decode_answer(self.tokenizer, tokens)
        except (KeyError, ValueError):
            # A model may generate `<img>` or an id without a token; that must not cost the other replies.
            return decode_answer(self.tokenizer, [token for token in tokens if token < self.tokenizer.eod_id])


def _release(prompts: list[Prompt], images: ImageFeatures) -> None:
    """Lets go of images: keys and values are all that decoding needs."""
    for prompt in prompts:
        for number in prompt.images:
            images.release(number)
        prompt.images.clear()
