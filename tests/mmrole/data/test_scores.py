"""Score pairs: the published parser's where it yields a usable one, and nothing that is guessed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.data.scores import MARKER, find_scores, parse_review

NUMBERS = st.one_of(st.integers(0, 10), st.sampled_from([0.5, 7.25, 9.9]))


@pytest.fixture(scope="session")
def published_reviews(shared) -> list[dict]:
    """Every published review: 6,904 of 863 answers."""
    files = sorted((shared / "mmrole/eval/in-test_reviews").glob("*/*.json"))
    records = [record for file in files for record in json.loads(file.read_text(encoding="utf-8"))]
    return [review for record in records for review in record.get("rm_review", {}).values()]


def test_golden_cases(shared):
    """Figures of the published parser on odd reviews; {} is where it gives up."""
    for case in json.loads((shared / "golden/mmrole/review_score_cases.json").read_text()):
        expected = [float(number) for number in case["score"]]
        usable = len(expected) == 2 and all(0 <= number <= 10 for number in expected)
        found = parse_review(case["review"])
        added = case["review"] in ("[Scores]: (7/10, 8/10)", "[Scores]: (7，8)")
        assert found.text == case["review"]
        assert found.score == ((7, 8) if added else tuple(expected) if usable else None), case
        assert bool(found.reason) == (found.score is None)


def test_no_published_review_is_null(published_reviews):
    assert len(published_reviews) == 6904
    for review in published_reviews:
        assert list(parse_review(review["review"]).score) == review["score"]


@pytest.mark.parametrize(
    "pair",
    [
        "（7，8）",
        "(7、8)",
        "（A：7，B：8）",
        "(模型A：７，模型B：８)",
        "(Model B: 8, Model A: 7)",
        "(B: 8/10, A: 7/10)",
        "(7/10, 8 / 10)",
        "（7／10，8／10）",
        "Model A: 7; Model B: 8",
        "Model B: 8\nModel A: 7",
        "Model A's score: 7/10. Model B's score: 8/10.",
        "(Model B: 8), (Model A: 7)",
        "A = 7, B = 8",
        "(7, 8)\nBoth, on the whole, are fine.",
    ],
)
def test_added_forms(pair):
    assert parse_review(f"Well. {MARKER} {pair}").score == (7, 8)


@pytest.mark.parametrize("marker", ["【Scores】：", "[Scores]：", "［Scores］："])
def test_full_width_markers(marker):
    assert parse_review(f"好。{marker}（7，8）").score == (7, 8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(7, 8)", "no [Scores]: marker"),
        ("[scores]: (7, 8)", "no [Scores]: marker"),
        ("[Scores]: (7, 8) [Scores]: (7, 8)", "several [Scores]: markers"),
        ("[Scores]： (7, 8) [Scores]：(7, 8)", "several [Scores]: markers"),
        ("[Scores]: (-1, 8)", "score [-1.0, 8.0] is not between 0 and 10"),
        ("[Scores]: (11, 8)", "score [11.0, 8.0] is not between 0 and 10"),
        ("[Scores]: (nan, 8)", "score [nan, 8.0] is not between 0 and 10"),
        ("[Scores]: (inf, 8)", "score [inf, 8.0] is not between 0 and 10"),
        ("[Scores]: (8, 0)", "the reference's score is 0"),
        *(
            (f"[Scores]: {pair}", "no pair of scores after [Scores]:")
            for pair in ("", "(7)", "7 8", "(7, 8, 9)", "(7 or 8, 9)", "(7/9, 8/9)", "(7/100, 8/100)", "seven, 8")
        ),
        ("[Scores]: A: 7; A: 8", "no pair of scores after [Scores]:"),
        ("[Scores]: A: 7 of 10 points; B: 8", "no pair of scores after [Scores]:"),
    ],
)
def test_nothing_is_guessed(text, reason):
    assert parse_review(text) == (text, None, reason)


@given(NUMBERS, NUMBERS)
def test_swapped_pairs_are_stored_with_the_evaluated_answer_first(first, second):
    review = parse_review(f"{MARKER} ({first}, {second})", swapped=True)
    assert review.score == ((second, first) if first else None)
    assert (review.reason == "the reference's score is 0") == (first == 0)


@given(st.text(alphabet=st.characters() | st.sampled_from("[Scores]: (AB,/10)：，"), max_size=60), st.booleans())
def test_any_text_gives_a_pair_or_a_reason(text, swapped):
    for candidate in (text, f"{MARKER}{text}", f"{MARKER} (7, 8){text}"):
        review = parse_review(candidate, swapped)
        assert (review.score is None) == bool(review.reason)
        if review.score is not None:
            evaluated, reference = review.score
            assert 0 <= evaluated <= 10
            assert 0 < reference <= 10
            assert sorted(find_scores(candidate)[0]) == sorted(review.score)


def test_long_texts_take_no_long_time():
    for text in ("A: 1 " * 400_000, "(" * 2_000_000, "7" * 5000 + ", 8", "1" * 2_000_000, "A" * 2_000_000 + ":"):
        assert parse_review(MARKER + text).score is None


@pytest.mark.parametrize(
    "text", ["[Scores]: [8, 9]", "[Scores]: [8/10, 9/10]", "【Scores】：【8，9】", "[Scores]: [A: 8, B: 9]"]
)
def test_square_brackets_are_brackets(text: str) -> None:
    assert find_scores(text) == ((8.0, 9.0), "")


@pytest.mark.parametrize("reference", ["5e-324", "1e-300", "0.001", "0"])
def test_a_reference_by_which_nothing_can_be_divided_gives_no_pair(reference: str) -> None:
    review = parse_review(f"[Scores]: (8, {reference})")
    assert review.score is None
    assert review.reason.startswith("the reference's score is ")
