"""What only replies tell, the model and the settings that it takes, is the same in the whole of a job."""

from collections.abc import Callable

import pytest
from fixtures.desk import sample
from fixtures.office import AYE, IDS, always
from fixtures.servers import Ask, Say, calm, completion, error, serving

from mmrole.base.errors import UserError
from mmrole.data.requests import GenerationSettings
from mmrole.jobs import job
from mmrole.scoring.review_program import review_program


def test_another_models_id_stops_the_job(office):
    other = completion("I am another.", model="other\x1b[31m")
    office.server.behaviour = lambda ask: other if ask.place >= 6 else calm(ask)
    with pytest.raises(UserError) as caught:
        office.run()
    assert "now answers as 'other\\x1b[31m', the replies so far are of 'calm-1'; what is finished is kept" in str(
        caught.value
    )
    kept = office.journaled()
    assert len(kept) == 6
    with pytest.raises(UserError, match="the replies so far are of 'calm-1'"):
        office.run()
    assert office.journaled() == kept
    office.server.behaviour = calm
    assert office.run() == 0
    assert office.answers() == AYE
    assert not {*kept} & {*office.server.asked()[-6:]}


def test_the_id_that_the_first_reply_reports_is_noted(office, capsys):
    office.server.behaviour = lambda ask: completion("Aye.", model="calm-1@main")
    assert office.run() == 0
    assert capsys.readouterr().out.count("calm-1 replies as 'calm-1@main'\n") == 1
    assert office.settings()["noted"]["reported_model"] == "calm-1@main"
    assert office.settings()["model"] == "calm-1"


def test_the_same_model_elsewhere_goes_on(office):
    office.server.behaviour = always(error(400), *IDS[6:])
    assert office.run() == job.FAILED
    with serving() as other:
        assert office.run(base=other.url) == 0
        assert sorted(other.asked()) == sorted(IDS[6:])
        assert office.settings()["noted"]["urls"] == sorted([other.url, office.server.url])


def strict(*refused: str) -> Callable[[Ask], Say | dict]:
    """A server that refuses fields by name."""

    def behaviour(ask: Ask) -> Say | dict:
        found = [name for name in ask.settings if name in refused]
        return error(400, f"Unsupported parameter: '{found[0]}'", param=found[0]) if found else calm(ask)

    return behaviour


def test_without_what_a_server_refuses(office, capsys):
    office.server.behaviour = strict("max_tokens", "temperature")
    assert office.run() == 0
    assert office.answers() == AYE
    assert len(office.server.log) == 14
    assert office.server.log[-1].settings == {"max_completion_tokens": 512, "top_p": 0.3, "seed": 1234}
    out = capsys.readouterr().out
    assert out.count("calm-1 does not take max_tokens, and is asked without it; max_completion_tokens is sent in") == 1
    assert out.count("calm-1 does not take temperature, and is asked without it (400 Bad Request: Unsupp") == 1
    assert office.settings()["noted"]["left_out"] == ["max_tokens", "temperature"]


def test_what_is_refused_is_of_the_fingerprint(office):
    office.server.behaviour = lambda ask: error(400) if ask.id in IDS[6:] else strict("temperature")(ask)
    assert office.run() == job.FAILED
    office.server.behaviour = calm
    with pytest.raises(UserError, match="now takes temperature, the replies so far were made without; what is"):
        office.run()
    office.server.behaviour = strict("temperature")
    assert office.run() == 0
    assert office.answers() == AYE


def test_what_was_taken_before_is_not_left_out_later(office):
    """A refusal of it is about the one request."""
    office.server.behaviour = always(error(400, param="temperature"), IDS[5])
    assert office.run() == job.FAILED
    assert list(office.errors()) == [IDS[5]]
    assert office.settings()["noted"]["left_out"] == []


def test_reviews_are_made_again_sampled(office):
    """The retries have a setting that the server refuses, and the first requests do not have."""
    office.desk.write(*(sample(id_, answer={"answer": "Aye."}) for id_ in IDS[:2]))

    def behaviour(ask: Ask) -> Say | dict:
        if "top_p" in ask.settings:
            return strict("top_p")(ask)
        is_first = ask.settings["temperature"] == 0
        return completion("Hm." if is_first and "/Tone" in ask.id else "Good. [Scores]: (7, 8)")

    office.server.behaviour = behaviour
    program = review_program(1, False)
    assert office.run(program, resampling=True, settings=GenerationSettings(do_sample=False)) == 0
    scores = [review["score"] for record in office.desk.read() for review in record["rm_review"].values()]
    assert scores == [[7.0, 8.0]] * 16
    retries = [ask for ask in office.server.log if "retry" in ask.id]
    assert {ask.id for ask in retries} == {f"{id_}/Tone Consistency/retry-1" for id_ in IDS[:2]}
    assert retries[-1].settings == {"max_tokens": 512, "temperature": 1.0, "seed": 1235}
    assert office.settings()["noted"]["left_out"] == ["top_p"]
