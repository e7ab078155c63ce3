"""How many requests are under way: a server that is played."""

import heapq

import pytest

from mmrole.backends.api.window import Window


def play(window: Window, slots: int, replies: int) -> float:
    """How long a server takes for so many replies, a second each, that works on so many at once; the others wait."""
    now, under_way, sent = 0.0, [], 0
    free = [0.0] * slots
    for _ in range(replies):
        while len(under_way) < window.limit and sent < replies:
            end = max(now, heapq.heappop(free)) + 1.0
            heapq.heappush(free, end)
            heapq.heappush(under_way, (end, sent, window.round))
            sent += 1
        now, _, round_ = heapq.heappop(under_way)
        window.well(round_, now)
    return now


def test_the_first_request_goes_alone():
    window = Window()
    assert window.limit == 1
    window.well(window.round, 1.0)
    assert window.limit == 8


def test_it_rises_while_more_requests_bring_more_replies():
    window = Window()
    play(window, 999, 600)
    assert window.limit == 256


def test_it_stays_small_where_more_requests_only_wait():
    window = Window()
    play(window, 1, 2000)
    assert window.limit <= 32


@pytest.mark.parametrize("slots", [1, 4, 12, 30, 100])
def test_a_server_is_used_nearly_as_well_as_with_the_best_number(slots):
    """A server of so many places; more requests wait."""
    fixed = min(play(Window(number), slots, 2000) for number in (1, 4, 8, 16, 32, 64, 128, 256))
    assert play(Window(), slots, 2000) < 1.3 * fixed


def test_trouble_halves_it_once_for_what_was_sent_together():
    window = Window()
    play(window, 999, 300)
    before, round_ = window.limit, window.round
    window.trouble(round_, 0.0)
    window.trouble(round_, 0.0)
    assert window.limit == before // 2
    window.trouble(window.round, 0.0)
    assert window.limit == before // 4
    play(window, 999, 40)
    assert before // 4 < window.limit < before


def test_it_never_ends():
    window = Window()
    for _ in range(20):
        window.trouble(window.round, 0.0)
    assert window.limit == 1


def test_a_number_that_is_given_is_the_most():
    window = Window(5)
    assert window.limit == 1
    play(window, 999, 100)
    assert window.limit == 5
    window.trouble(window.round, 0.0)
    assert window.limit == 2
    play(window, 999, 100)
    assert window.limit == 5
