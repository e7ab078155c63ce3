"""Jobs with replies that are given: failures, refusals, records without images, several rounds."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from fixtures.desk import NAME, sample
from PIL import Image

from mmrole.backends.scripted import replies_of_file
from mmrole.base.errors import UserError
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import LabelledImage, one_turn
from mmrole.data.records import Sample
from mmrole.data.requests import ChatReply, ChatRequest
from mmrole.jobs import job
from mmrole.jobs.answers import ANSWERS
from mmrole.jobs.job import FAILED
from mmrole.jobs.options import JobOptions
from mmrole.jobs.processes import Processes
from mmrole.jobs.programs import Program


def aye(request: ChatRequest) -> ChatReply:
    return ChatReply(request.id, f"Aye, {request.id}.")


def but(**errors: str):
    """`aye`, but for some ids, which fail or are refused."""

    def reply(request: ChatRequest) -> ChatReply:
        reason = errors.get(request.id)
        return aye(request) if reason is None else ChatReply(request.id, "", reason, error="no, not now")

    return reply


def answers(desk) -> list[dict]:
    return [record["conversations"][1] for record in desk.read()]


def test_records_need_no_image(desk):
    desk.write(sample("a"), sample("b", image=None))
    images = {}

    def reply(request: ChatRequest) -> ChatReply:
        images[request.id] = len(request.images)
        return aye(request)

    assert desk.run(ANSWERS, reply) == 0
    assert images == {"a": 1, "b": 0}
    assert [record["conversations"][1]["answer"] for record in desk.read()] == ["Aye, a.", "Aye, b."]
    assert "image" not in desk.read()[1]
    assert desk.run(ANSWERS, reply) == 0
    assert desk.asked == ["a", "b"]


def test_images_with_labels_are_files_as_well(desk):
    desk.write(sample("a"))

    def ask(record: Sample, replies: Mapping[str, ChatReply]) -> list[ChatRequest]:
        image = LabelledImage(Path("a.png"), "Here: ")
        return [] if replies else [ChatRequest(record.id, one_turn("", image, "What is it?"))]

    shown = []
    looking = lambda request: shown.extend(request.images) or aye(request)  # noqa: E731
    assert desk.run(Program("look.py", Sample, ask, lambda record, replies: {"id": record.id}), looking) == 0
    assert [type(image) for image in shown] == [ImageFile]


def test_an_image_folder_is_needed_for_images_only(desk):
    desk.write(sample("a", image=None))
    assert desk.run(ANSWERS, aye, image_dir=desk.folder / "nowhere") == 0
    desk.write(sample("a", image=None), sample("b"))
    with pytest.raises(UserError, match=r"^the image folder .*nowhere does not exist; correct the input"):
        desk.run(ANSWERS, aye, image_dir=desk.folder / "nowhere", overwrite=True)


def test_what_failed_is_named_and_asked_again_by_the_same_command(desk, capsys):
    desk.write(sample("a"), sample("b"), sample("c"))
    assert desk.run(ANSWERS, but(b="failed")) == FAILED == 3
    said = capsys.readouterr().out
    assert "of 3 replies 0 are cut at 512 new tokens, 0 are empty, 1 have failed" in said
    assert "1 requests have failed; the same command asks them again: 'b' (no, not now)" in said
    assert [answer["answer"] for answer in answers(desk)] == ["Aye, a.", "", "Aye, c."]
    assert [answer.get("answer_error") for answer in answers(desk)] == [None, "failed: no, not now", None]
    assert desk.journal.is_dir()
    assert desk.run(ANSWERS, aye) == 0
    assert desk.asked == ["a", "b", "c", "b"]
    assert "3 records, 2 of them done before" in capsys.readouterr().out
    assert [answer["answer"] for answer in answers(desk)] == ["Aye, a.", "Aye, b.", "Aye, c."]
    assert not any("answer_error" in answer for answer in answers(desk))
    assert not desk.journal.exists()


def test_what_failed_is_asked_again_even_if_its_journal_is_gone(desk, capsys):
    desk.write(sample("a"), sample("b"))
    assert desk.run(ANSWERS, but(b="failed")) == FAILED
    before = desk.output.read_bytes()
    shutil.rmtree(desk.journal)
    with pytest.raises(
        UserError, match="holds other records than the 1 of this run"
    ):  # what is there is never taken for something else
        desk.run(ANSWERS, aye, limit=1)
    assert desk.run(ANSWERS, but(a="failed", b="failed")) == FAILED
    said = capsys.readouterr().out
    assert f"{desk.output}: 1 requests had failed, and its journal is gone: all are asked again" in said
    assert desk.output.read_bytes() != before
    assert desk.run(ANSWERS, aye) == 0
    assert desk.asked == ["a", "b"] * 3
    assert "failed" not in json.loads(desk.output.with_name(f"{desk.output.name}.settings").read_text())
    assert desk.run(ANSWERS, aye) == 0
    assert len(desk.asked) == 6


def test_errors_are_named_in_the_order_of_the_records(desk, capsys):
    long = sample("b")
    long["conversations"][0]["value"] *= 99
    desk.write(sample("a"), long)
    assert desk.run(ANSWERS, but(a="failed", b="failed")) == FAILED
    assert desk.asked == ["b", "a"]
    assert "asks them again: 'a' (no, not now), 'b' (no, not now)" in capsys.readouterr().out


def test_all_that_has_no_reply_is_counted_at_once(desk):
    desk.write(*map(sample, "abc"))
    file = desk.folder / "replies.jsonl"
    file.write_text('{"id": "b", "text": "Aye."}\n')
    work = JobOptions(desk.folder / "test", desk.folder / "answers", desk.folder / "images", Path(NAME))
    with pytest.raises(UserError, match="there are no replies to 2 requests that are asked: 'a', 'c'; add a line for"):
        job.run(ANSWERS, work, lambda place: replies_of_file(file))


def test_only_the_first_process_ends_with_a_status(desk, monkeypatch):
    desk.write(sample("a"))
    monkeypatch.setattr(Processes, "from_environment", lambda: Processes(1, 2))
    monkeypatch.setattr(job, "share", lambda requests, rank, world_size: list(requests))
    assert desk.run(ANSWERS, but(a="failed")) == 0
    assert desk.asked == ["a"]
    assert not desk.output.exists()


def test_reasons_are_said_in_a_line_and_what_was_started_anew_is_not_so_again(desk, capsys):
    desk.write(sample("a"), sample("b"))
    kinds = {"a": "refused", "b": "failed"}
    reply = lambda request: ChatReply(request.id, "", kinds[request.id], error="no\n\x1b[31m")  # noqa: E731
    assert desk.run(ANSWERS, reply, overwrite=True) == FAILED
    refused, failed = capsys.readouterr().out.splitlines()[-2:]
    assert refused.endswith("were refused; --retry_refused without --overwrite asks them again: 'a' (no\\n\\x1b[31m)")
    assert failed.endswith("have failed; the same command without --overwrite asks them again: 'b' (no\\n\\x1b[31m)")
    assert desk.run(ANSWERS, reply, overwrite=True, reads_batches=True) == FAILED
    assert "the same command without --overwrite and --batch_read asks them again: 'b'" in capsys.readouterr().out


def test_a_refusal_stands_until_it_is_asked_again(desk, capsys):
    desk.write(sample("a"), sample("b"))
    refusing = but(b="refused")
    assert desk.run(ANSWERS, refusing) == 0
    assert "1 requests were refused; --retry_refused asks them again: 'b' (no, not now)" in capsys.readouterr().out
    assert answers(desk)[1]["answer_error"] == "refused: no, not now"
    before = desk.output.read_bytes()
    assert desk.run(ANSWERS, aye) == 0
    assert (desk.asked, desk.output.read_bytes()) == (["a", "b"], before)
    assert desk.run(ANSWERS, refusing, retry_refused=True) == 0
    assert (desk.asked, desk.output.read_bytes()) == (["a", "b", "b"], before)
    assert desk.run(ANSWERS, but(b="failed"), retry_refused=True) == FAILED
    capsys.readouterr()
    assert desk.run(ANSWERS, aye, retry_refused=True) == 0
    assert "\n1 replies, 0 new tokens in " in capsys.readouterr().out
    assert answers(desk)[1]["answer"] == "Aye, b."
    assert desk.asked == ["a", "b", "b", "b", "b"]
    assert not desk.journal.exists()


def test_what_is_said_in_refusing_or_before_a_failure_is_no_answer(desk):
    desk.write(sample("a"), sample("b"))

    def reply(request: ChatRequest) -> ChatReply:
        return ChatReply(request.id, "I", "refused" if request.id == "a" else "failed", error="no")

    assert desk.run(ANSWERS, reply) == FAILED
    assert [answer["answer"] for answer in answers(desk)] == ["", ""]
    assert [answer["answer_error"] for answer in answers(desk)] == ["refused: no", "failed: no"]


def test_an_answer_takes_the_place_of_an_earlier_error(desk):
    desk.write(sample("a", answer={"answer": "", "answer_error": "failed: then"}))
    assert desk.run(ANSWERS, aye) == 0
    assert answers(desk)[0]["answer"] == "Aye, a."
    assert "answer_error" not in answers(desk)[0]


def talk(rounds: int) -> Program[Sample]:
    """A program that goes on asking, each time with the reply before it."""

    def ask(record: Sample, replies: Mapping[str, ChatReply]) -> list[ChatRequest]:
        names = [f"{record.id} round {number}" for number in range(rounds)]
        for before, name in zip(["", *names], names, strict=False):
            if name not in replies:
                return [ChatRequest(name, one_turn("", (before and replies[before].text) or record.question))]
        return []

    def result(record: Sample, replies: Mapping[str, ChatReply]) -> dict:
        return {"id": record.id, "said": [reply.text for reply in replies.values()]}

    return Program("talk.py", Sample, ask, result)


def test_several_rounds_follow_from_the_replies_before(desk):
    desk.write(sample("a", image=None), sample("b", image=None))
    shout = lambda request: ChatReply(request.id, request.text[:9] + "!")  # noqa: E731
    assert desk.run(talk(3), shout) == 0
    assert desk.asked == [f"{id_} round {number}" for number in range(3) for id_ in "ab"]
    assert desk.read()[0] == {"id": "a", "said": ["What do y!"] * 3}


@pytest.mark.parametrize("moment", range(6))
def test_several_rounds_go_on_where_they_were(desk, moment):
    desk.write(sample("a", image=None), sample("b", image=None))

    def interrupted(request: ChatRequest) -> ChatReply:
        if len(desk.asked) > moment:
            raise UserError("the power is gone")
        return aye(request)

    with pytest.raises(UserError, match="power"):
        desk.run(talk(3), interrupted)
    asked = desk.asked[:moment]
    desk.asked.clear()
    assert desk.run(talk(3), aye) == 0
    assert sorted(asked + desk.asked) == sorted(f"{id_} round {number}" for number in range(3) for id_ in "ab")
    assert [len(record["said"]) for record in desk.read()] == [3, 3]


def test_journaled_replies_of_another_form_are_refused_in_a_line(desk):
    desk.write(sample("a"), sample("b"))
    desk.run(ANSWERS, but(b="failed"))
    (file,) = desk.journal.glob("*.jsonl")
    header, line = file.read_text().splitlines()
    entry = json.loads(line)
    entry["payload"]["mood"] = "good"
    file.write_text(f"{header}\n{json.dumps(entry)}\n")
    with pytest.raises(
        UserError, match=r"its journal has a reply of another form, 'a' \(the field 'mood' is not known"
    ):
        desk.run(ANSWERS, aye)


def test_journaled_replies_are_about_the_same_input_and_images(desk):
    desk.write(sample("a"), sample("b"))
    desk.run(ANSWERS, but(b="failed"))
    desk.write(sample("b"), sample("a"))
    with pytest.raises(UserError, match="was made with other settings: input was"):
        desk.run(ANSWERS, aye)
    desk.write(sample("a"), sample("b"))
    Image.new("RGB", (6, 4), "red").save(desk.folder / "images/a.png")
    with pytest.raises(UserError, match="1 journaled replies were about other images than those there now"):
        desk.run(ANSWERS, aye)
