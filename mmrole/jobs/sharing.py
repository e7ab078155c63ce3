"""Which of a job's processes generates what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mmrole.data.requests import ChatRequest

# In characters: requests with the same image and opening stay together; a reply, with its image, costs about as much as
# a prompt of this length.
_OPENING = 256
_REPLY_LOAD = 2000


def share(requests: Iterable[ChatRequest], rank: int, world_size: int) -> list[ChatRequest]:
    """The requests of one process: about equal loads, and what shares a prefix together."""
    groups: dict[tuple, list[ChatRequest]] = defaultdict(list)
    for request in requests:
        groups[request.images, request.text[:_OPENING]].append(request)
    loads = [0] * world_size
    mine: list[ChatRequest] = []
    sized = [(_load(group), group) for group in groups.values()]
    for load, group in sorted(sized, key=lambda each: each[0], reverse=True):
        lightest = loads.index(min(loads))
        loads[lightest] += load
        if lightest == rank:
            mine += group
    return mine


def _load(group: Sequence[ChatRequest]) -> int:
    return sum(len(request.text) + _REPLY_LOAD for request in group)
