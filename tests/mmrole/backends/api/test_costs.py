"""What requests cost."""

import pytest
from PIL import Image

from mmrole.backends.api.costs import Budget, Prices, describe_estimate, estimate_usage
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings, Usage

PRICES = Prices(1.0, 10.0)
SETTINGS = GenerationSettings(max_new_tokens=100)


def request(id_: str = "a", *content) -> ChatRequest:
    return ChatRequest(id_, one_turn("x" * 40, *content, "y" * 360), SETTINGS)


def test_an_estimate_counts_text_and_pixels(tmp_path):
    assert estimate_usage(request(), 10_000) == Usage(100 + 16, 100)
    path = tmp_path / "a.png"
    Image.new("RGB", (75, 100)).save(path)
    assert estimate_usage(request("a", ImageFile.of(path)), 10_000) == Usage(116 + 10, 100)
    assert estimate_usage(request("a", path), 750) == Usage(116 + 1, 100)
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert estimate_usage(request("a", tmp_path / "b.png"), 750) == Usage(116, 100)


def test_what_is_said_of_it():
    requests = [request("a"), request("b", Image.new("RGB", (75, 100)))]
    said = "2 requests with 1 images: about 242 tokens of prompts, at most 200 of replies; "
    assert describe_estimate(requests, None, 9999) == f"{said}with --price_in and --price_out it is said what they cost"
    assert (
        describe_estimate(requests, PRICES, 9999)
        == f"{said}about 0.0002 for the prompts, and at most 0.0020 for the replies"
    )


def test_what_is_under_way_counts_at_its_longest():
    longest = PRICES.cost(Usage(116, 100))
    budget = Budget(PRICES, 2.5 * longest, 9999)
    assert budget.reserve(request("a"))
    assert budget.reserve(request("b"))
    assert not budget.reserve(request("c"))
    budget.settle("a", Usage(116, 10))
    assert budget.spent == PRICES.cost(Usage(116, 10))
    assert budget.reserve(request("c"))
    budget.settle("b", None)
    assert budget.spent == pytest.approx(PRICES.cost(Usage(116, 10)) + longest)
    assert not budget.reserve(request("d"))


def test_without_prices_or_a_limit_all_may_be_asked():
    assert Budget(None, None, 9999).reserve(request())
    budget = Budget(PRICES, None, 9999)
    assert all(budget.reserve(request(str(number))) for number in range(100))
