"""Turns chat requests into replies: prompt trees, batches of trees, greedy and sampled decoding."""

from typing import TYPE_CHECKING

from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings

if TYPE_CHECKING:
    from mmrole.engine.engine import Engine

__all__ = ["ChatReply", "ChatRequest", "Engine", "GenerationSettings"]


def __getattr__(name: str) -> object:
    # The engine needs torch, which takes seconds to import: what comes before a model should not wait for it.
    if name == "Engine":
        from mmrole.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
