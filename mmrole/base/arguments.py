"""Types of command-line arguments that several commands take, and flags of which it is known that they were given."""

import argparse
from collections.abc import Callable
from typing import Any, ClassVar


class NotedFlag(argparse.Action):
    """Stores the value of a flag, and notes in `given_flags` that it was given."""

    note: ClassVar[str] = "given_flags"
    """Name of the tuple of such flags, in the namespace."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse where the flag is given."""
        setattr(namespace, self.dest, True if self.nargs == 0 else values)
        setattr(namespace, self.note, (*getattr(namespace, self.note, ()), self.option_strings[0]))


def at_least(least: float, kind: type = int, most: float = float("inf")) -> Callable[[str], float]:
    """The `type` of an argument that is a number of a kind, finite, not below `least` and not above `most`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most or value == float("inf"):
            limits = f"from {least} on" if most == float("inf") else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not a number {limits}")
        return value

    number.__name__ = "number"  # as argparse names it in its message
    return number


def fraction(text: str) -> float:
    """The `type` of an argument that is a share: at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return value
