"""Texts that end a reply are found wherever its pieces are cut."""

from hypothesis import given
from hypothesis import strategies as st

from mmrole.chat.server.stop_strings import StopStrings

STOPS = st.lists(st.text("ab\n船", min_size=1, max_size=4), max_size=4)


def read(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """What is said of a reply, and whether a text ended it."""
    reader = StopStrings(stops)
    said = "".join([reader.read(piece) for piece in pieces])
    return said if reader.found else said + reader.end(), reader.found


def expected(stops: list[str], text: str) -> tuple[str, bool]:
    """The same, the slow way: the text up to the stop that is complete first."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@given(STOPS, st.lists(st.text("ab\n船", max_size=5), max_size=8))
def test_the_cuts_do_not_matter(stops, pieces):
    assert read(stops, pieces) == expected(stops, "".join(pieces))


def test_what_cannot_be_a_beginning_is_said_at_once():
    reader = StopStrings(["\nYou:"])
    assert [reader.read(piece) for piece in ("Aye.", "\n", "You", "th.", "\nYo", "u:", " and more")] == [
        *("Aye.", "", "", "\nYouth.", "", "", "")
    ]
    assert reader.found
