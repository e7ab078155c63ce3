"""The law of sampling: the tokens of transformers' processors and of a draw one at a time, ties and all."""

import numpy as np
import pytest
import torch
from fixtures.engine import candidates, draw, warp
from hypothesis import given
from hypothesis import strategies as st

from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.engine.sampling import NOT_A_NUMBER, Choice, Draws, Sampling, choose_tokens

VOCABULARY = 50
CPU = torch.device("cpu")


def stream(number: int) -> np.random.Generator:
    return ChatRequest(str(number), one_turn("Play.", "Hello")).random_stream()


choices = st.builds(
    GenerationSettings,
    do_sample=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 1, 5, 40, 50, 99]),
    top_p=st.sampled_from([1.0, 0.9, 0.3, 1e-4]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
# Few different scores are many ties.
logits = st.lists(st.sampled_from([-np.inf, -4.0, -0.5, 0.0, 0.25, 3.0, 3.1]), min_size=VOCABULARY, max_size=VOCABULARY)
rows = st.tuples(choices, logits.filter(lambda scores: max(scores) > -np.inf), st.sets(st.integers(0, VOCABULARY - 1)))


@given(st.lists(rows, min_size=1, max_size=4))
def test_tokens_are_those_of_transformers_row_by_row(given_rows):
    settings, scores, seen = zip(*given_rows, strict=True)
    draws = [Draws(stream(row)) for row in range(len(settings))]
    asked = [Choice(*each, 0, sorted(ids)) for *each, ids in zip(settings, draws, seen, strict=True)]
    sampling = Sampling.of(asked, VOCABULARY, 3, CPU)
    tokens = list(zip(*(choose_and_go_on(torch.tensor(scores), sampling) for _ in range(3)), strict=True))
    for row, each in enumerate(settings):
        numbers, before = stream(row), sorted(seen[row])
        for token in tokens[row]:
            warped = warp(torch.tensor([scores[row]]), each, torch.tensor([before], dtype=torch.int64))[0]
            expected = draw(candidates(warped), numbers.random()) if each.do_sample else int(warped.argmax())
            assert token == expected
            before.append(token)


def choose_and_go_on(scores: torch.Tensor, sampling: Sampling) -> list[int]:
    tokens = choose_tokens(scores, sampling)
    sampling.take(tokens)
    return tokens.tolist()


@given(st.lists(st.integers(1, 5), max_size=6))
def test_numbers_drawn_ahead_are_those_drawn_one_by_one(counts):
    draws, one_by_one, place = Draws(stream(0)), stream(0), 0
    for count in counts:
        # The next ones are asked for before it is known how many of these are used.
        numbers = draws.numbers(place, count + 3)[:count]
        assert numbers.tolist() == [one_by_one.random() for _ in range(count)]
        place += count


@pytest.mark.parametrize("settings", [GenerationSettings(do_sample=False), GenerationSettings(top_k=3)])
def test_a_row_with_nan_is_told_and_no_other(settings):
    scores = torch.zeros(3, VOCABULARY)
    scores[1, 7] = torch.nan
    tokens = choose_tokens(scores, Sampling.of([Choice(settings, Draws(stream(0)), 0, [])] * 3, VOCABULARY, 1, CPU))
    assert [token == NOT_A_NUMBER for token in tokens.tolist()] == [False, True, False]
