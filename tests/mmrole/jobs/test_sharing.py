"""Requests are shared among processes without loss, evenly, and with what has a common prefix in one place."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatRequest
from mmrole.jobs.sharing import share

images = st.sampled_from([None, Path("a.jpg"), Path("b.jpg")])
texts = st.sampled_from(["short", "s", "x" * 300, "x" * 300 + "y", "x" * 5000])
prompts = st.lists(st.tuples(images, texts), max_size=30)


@given(prompts, st.integers(1, 8))
def test_each_request_is_in_one_place(prompts, processes):
    requests = [ChatRequest(str(number), one_turn("", image, text)) for number, (image, text) in enumerate(prompts)]
    shares = [share(requests, rank, processes) for rank in range(processes)]
    assert sorted(request.id for mine in shares for request in mine) == sorted(request.id for request in requests)
    places = {}
    for rank, mine in enumerate(shares):
        for request in mine:
            assert places.setdefault((request.images, request.text[:256]), rank) == rank


def test_shares_are_even():
    requests = [ChatRequest(str(number), one_turn("", str(number) * 100)) for number in range(100, 172)]
    assert [len(share(requests, rank, 8)) for rank in range(8)] == [9] * 8
