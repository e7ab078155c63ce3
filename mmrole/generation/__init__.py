"""Turns chat requests into replies: prompt trees, batches of trees, greedy and sampled decoding."""

from mmrole.generation.engine import Engine
from mmrole.generation.requests import ChatReply, ChatRequest, GenerationSettings

__all__ = ["ChatReply", "ChatRequest", "Engine", "GenerationSettings"]
