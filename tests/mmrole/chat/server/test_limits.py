"""Places are counted, and given back whatever happens."""

from contextlib import suppress

import pytest

from mmrole.chat.server.limits import Places
from mmrole.chat.server.refusals import Refusal


def test_all_places_are_taken_and_given_back():
    places = Places(3, 100)
    with places.place() as place:
        place.take(1)
        place.hold(90)
        place.hold(60)
        with places.place() as other:
            with pytest.raises(Refusal, match="3 requests are answered or wait") as refused:
                other.take(1)
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "2"})
            with pytest.raises(Refusal, match="hold so many bytes"):
                other.hold_pixels(14)
            other.hold_pixels(13)
            assert (places.taken, places.held) == (3, 99)
            with pytest.raises(Refusal), places.place():
                pass
        assert (places.taken, places.held) == (2, 60)
    assert (places.taken, places.held) == (0, 0)
    with suppress(ZeroDivisionError), places.place() as place:
        place.hold(5)
        raise ZeroDivisionError
    assert (places.taken, places.held) == (0, 0)
