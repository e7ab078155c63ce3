"""What is said about the replies of a finished output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrole.base.errors import in_one_line, shown
from mmrole.data.requests import ChatReply

_LISTED = 10


def count_replies(replies: Mapping[str, ChatReply], max_new_tokens: int | None) -> str:
    """How many replies there are, and how many of them are no whole answer."""
    reasons = [reply.finish_reason for reply in replies.values()]
    limit = "" if max_new_tokens is None else f" at {max_new_tokens} new tokens"
    empty = sum(not reply.text for reply in replies.values() if reply.error is None)
    parts = [f"of {len(replies)} replies {reasons.count('length')} are cut{limit}", f"{empty} are empty"]
    parts += [f"{reasons.count('refused')} are refusals"] if "refused" in reasons else []
    parts += [f"{reasons.count('failed')} have failed"] if "failed" in reasons else []
    return ", ".join(parts)


def name_errors(output: Path, replies: Sequence[ChatReply], without: str) -> list[str]:
    """Lines that name what was refused and what has failed, with the reasons of the first ones.

    Args:
        output: what was written.
        replies: those that were refused or have failed.
        without: the flags that the same command must leave out to ask them again, as `JobOptions.without` has it.
    """
    lines = []
    remedies = {
        "refused": f"were refused; --retry_refused{without} asks them again",
        "failed": f"have failed; the same command{without} asks them again",
    }
    for kind, remedy in remedies.items():
        errors = [
            f"{shown(reply.id)} ({in_one_line(reply.error or '')})" for reply in replies if reply.finish_reason == kind
        ]
        if errors:
            lines.append(f"{output}: {len(errors)} requests {remedy}: {_listed(errors)}")
    return lines


def _listed(errors: Sequence[str]) -> str:
    more = f" … and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
    return ", ".join(errors[:_LISTED]) + more
