"""Items are made one ahead, in their order, and errors come where their item would."""

import threading

import pytest
import torch

from mmrole.training.ahead import one_ahead

CPU = torch.device("cpu")


def test_the_next_item_is_made_while_this_one_is_used():
    made = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    ahead = one_ahead(items(), CPU)
    for number in range(3):
        assert next(ahead) == number
        assert made[number + 1].wait(10)
        assert not any(event.is_set() for event in made[number + 2 :])
    assert list(ahead) == [3]
    assert list(one_ahead(iter(()), CPU)) == []


def test_an_error_comes_in_its_place():
    def items():
        yield 1
        yield 2
        raise OSError("gone")

    ahead = one_ahead(items(), CPU)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(ahead)
