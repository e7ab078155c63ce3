"""Metrics and gates of the demo in real language."""

import math

import pytest

from mmrole.demo.drawings import Scene
from mmrole.demo.real_findings import Fluency, catchphrase_said, colour_named, real_gates
from mmrole.demo.talks import RealWorld

WORLD = RealWorld(
    catchphrases={"Mira": "Salt and thunder!"},
    scenes={"a.png": Scene("red", "star", "left", 1), "b.png": Scene("blue", "star", "left", 1)},
)


def answered(answer, reference="Salt and thunder! It is red.", **fields):
    turns = [{"from": "user", "value": "?"}, {"from": "assistant", "value": reference, "answer": answer}]
    return {"role": "Mira", "image": "a.png", "conversations": turns, **fields}


@pytest.mark.parametrize(
    ("answer", "right"), [("It is red.", 1), ("It is blue.", 0), ("Red, not blue.", 1), ("Hm.", 0)]
)
def test_the_first_colour_of_an_answer_counts(answer, right):
    assert colour_named([answered(answer)], WORLD) == (right, 1)


def test_with_exchanged_pictures_the_sample_s_own_counts():
    exchanged = answered("It is red.", image="b.png", reference_image="a.png")
    assert colour_named([exchanged], WORLD).value == 1


def test_replies_about_something_else_do_not_count():
    share = colour_named([answered("It is red.", reference="I keep the lighthouse.")], WORLD)
    assert math.isnan(share.value)
    assert share.of == 0


def test_the_catchphrase_may_stand_anywhere():
    records = [answered("Red. Salt and thunder!"), answered("Salt and thunder! Red."), answered("Salt! Red.")]
    assert catchphrase_said(records, WORLD).value == pytest.approx(2 / 3)


def test_gates_hold_for_what_was_taught_and_not_for_silence():
    right = [answered("Salt and thunder! It is red.")] * 8
    exchanged = [answered("It is blue.", image="b.png", reference_image="a.png")] * 7 + [answered("It is red.")]
    held = real_gates(right, right, exchanged, Fluency(-2.0, -2.1), WORLD)
    assert [gate.name for gate in held if not gate.holds] == []
    silent = [answered("")] * 8
    failed = real_gates(silent, silent, silent, Fluency(math.nan, -2.1), WORLD)
    assert [gate.holds for gate in failed] == [False] * 5 or not failed[0].holds
