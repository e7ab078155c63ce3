"""Types of command-line arguments that several commands take."""

import argparse
from collections.abc import Callable


def at_least(least: float, kind: type = int) -> Callable[[str], float]:
    """The `type` of an argument that is a number of a kind, finite and not below `least`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} on")
        return value

    number.__name__ = "number"  # as argparse names it in its message
    return number


def fraction(text: str) -> float:
    """The `type` of an argument that is a share: at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return value
