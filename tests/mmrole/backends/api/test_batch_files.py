"""Batch files: written, answered elsewhere in any order, and read."""

import json
import random
from pathlib import Path

import pytest
from fixtures.desk import NAME, Desk, sample
from fixtures.servers import completion
from PIL import Image

from mmrole.backends.api.api_backend import find_api
from mmrole.backends.api.options import ApiOptions, BatchFiles
from mmrole.base.errors import UserError
from mmrole.jobs import job
from mmrole.jobs.answers import ANSWERS
from mmrole.jobs.options import JobOptions

IDS = [f"r {number} 船" for number in range(7)]
AYE = {id_: f"Aye, {id_}." for id_ in IDS}
URL = "http://127.0.0.1:1/v1"  # nothing is sent


@pytest.fixture
def run(desk: Desk):
    """Runs a job that sends nothing; changes are of the options of the server."""
    desk.write(*map(sample, IDS))
    folder = desk.folder

    def call(**changes: object) -> int:
        options = ApiOptions(**{"base": URL, "model": "m", "sends": False, **changes})
        work = JobOptions(
            *(folder / "test", folder / "answers", folder / "images", Path(NAME)),
            rehearses=options.batch_write is not None,
        )
        return job.run(ANSWERS, work, lambda place: find_api(options, place=place))

    return call


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def result(line: dict, said: object | None = None, status: int = 200) -> dict:
    """What a provider makes of a line."""
    question = line["body"]["messages"][1]["content"][1]["text"]
    body = said or completion(f"Aye, {question.removeprefix('What do you see, ').removesuffix('?')}.")
    response = {"status_code": status, "request_id": "x", "body": body}
    return {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}


def write(path: Path, results: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, results)) + "\n")
    return path


def answers(desk: Desk) -> dict[str, str]:
    return {record["id"]: record["conversations"][1]["answer"] for record in desk.read()}


def test_written_answered_and_read(desk, run, tmp_path, capsys):
    batch = tmp_path / "batch.jsonl"
    assert run(batch_write=BatchFiles(batch)) == 0
    assert f"7 requests are written to {batch}; read the results with --batch_read\n" in capsys.readouterr().out
    assert not desk.output.parent.exists()
    written = lines(batch)
    assert {(line["method"], line["url"]) for line in written} == {("POST", "/v1/chat/completions")}
    assert all(line["custom_id"].isalnum() and len(line["custom_id"]) == 32 for line in written)
    assert written[0]["body"].keys() == {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
    results = [result(line) for line in written]
    random.Random(0).shuffle(results)
    paths = write(tmp_path / "a.jsonl", results[:3]), write(tmp_path / "b.jsonl", results[3:])
    assert run(batch_read=paths) == 0
    assert answers(desk) == AYE
    assert not desk.journal.exists()
    desk.output.unlink()
    with pytest.raises(UserError, match=r"batch.jsonl is there already; remove it, or give another name"):
        run(batch_write=BatchFiles(batch))


def test_what_failed_or_is_missing_is_named_and_only_that_is_written_again(desk, run, tmp_path, capsys):
    batch = tmp_path / "batch.jsonl"
    run(batch_write=BatchFiles(batch))
    written = lines(batch)
    other = {**result(written[0]), "custom_id": "another"}
    no_reply = {"custom_id": written[1]["custom_id"], "response": None, "error": {"message": "expired\x1b[31m"}}
    results = [
        *(other, no_reply),
        result(written[2], {"error": {"message": "no such field", "param": "seed"}}, 400),
        result(written[3], completion("", refusal="I cannot.")),
        *map(result, written[4:]),
    ]
    capsys.readouterr()
    assert run(batch_read=(write(tmp_path / "a.jsonl", results),)) == job.FAILED
    said = capsys.readouterr().out
    assert "of 7 replies 0 are cut at 512 new tokens, 0 are empty, 1 are refusals, 3 have failed" in said
    assert "(it is not among the results, as it is asked now)" in said
    assert "(400 Bad Request: expired\\x1b[31m)" in said
    assert "(400 Bad Request: no such field)" in said
    again = tmp_path / "again.jsonl"
    assert run(batch_write=BatchFiles(again)) == 0
    assert [line["custom_id"] for line in lines(again)] == [line["custom_id"] for line in written[:3]]
    assert run(batch_read=(write(tmp_path / "b.jsonl", [*results, *map(result, lines(again))]),)) == 0
    assert [answer for answer in answers(desk).values() if not answer] == [""]
    assert len({*answers(desk).items()} & {*AYE.items()}) == 6


def test_files_hold_so_much(run, tmp_path, capsys):
    run(batch_write=BatchFiles(tmp_path / "whole.jsonl"))
    whole = (tmp_path / "whole.jsonl").read_bytes()
    size = 3 * max(map(len, whole.splitlines(keepends=True)))
    for files in (BatchFiles(tmp_path / "n.jsonl", most_requests=3), BatchFiles(tmp_path / "b.jsonl", most_bytes=size)):
        capsys.readouterr()
        run(batch_write=files)
        paths = [files.path.with_name(f"{files.path.stem}-{number}.jsonl") for number in (1, 2, 3)]
        assert f"are written to {paths[0]} to {paths[2].name};" in capsys.readouterr().out
        assert b"".join(path.read_bytes() for path in paths) == whole
        assert not files.path.exists()
    with pytest.raises(UserError, match=r"the request 'r \d+ 船' has [\d,]+ bytes, more than --batch_bytes; raise it"):
        run(batch_write=BatchFiles(tmp_path / "small.jsonl", most_bytes=100))
    assert not list(tmp_path.glob("*small*"))


def test_results_of_other_settings_are_none(run, tmp_path, capsys):
    run(batch_write=BatchFiles(tmp_path / "batch.jsonl"), extra={"top_k": 5})
    results = write(tmp_path / "a.jsonl", list(map(result, lines(tmp_path / "batch.jsonl"))))
    assert run(batch_read=(results,)) == job.FAILED
    assert "7 have failed" in capsys.readouterr().out


def test_results_of_the_same_ids_about_something_else_are_none(desk, run, tmp_path, capsys):
    """As reviews of two models' answers are, and records that have changed between the batch and its results."""
    run(batch_write=BatchFiles(tmp_path / "batch.jsonl"))
    results = write(tmp_path / "a.jsonl", list(map(result, lines(tmp_path / "batch.jsonl"))))
    changed = sample(IDS[1])
    changed["conversations"][0]["value"] += " Look again."
    Image.new("RGB", (6, 4), "orange").save(desk.folder / "images/b.png")
    desk.write(sample(IDS[0]), changed, sample(IDS[2], "b.png"))
    capsys.readouterr()
    assert run(batch_read=(results,)) == job.FAILED
    assert "of 3 replies 0 are cut at 512 new tokens, 0 are empty, 2 have failed" in capsys.readouterr().out
    assert list(answers(desk).values()) == [AYE[IDS[0]], "", ""]


def test_fields_can_be_left_out(run, tmp_path):
    run(batch_write=BatchFiles(tmp_path / "batch.jsonl"), extra={"max_tokens": None, "temperature": None, "top_k": 5})
    body = lines(tmp_path / "batch.jsonl")[0]["body"]
    del body["messages"]
    assert body == {"model": "m", "max_completion_tokens": 512, "top_p": 0.3, "seed": 1234, "top_k": 5}


@pytest.mark.parametrize("text", ["{", "[]", '{"custom_id": 3, "response": {}}', '{"custom_id": "a"}', "\xff"])
def test_what_is_no_result(run, tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.jsonl.*; give the results as they were downloaded$"):
        run(batch_read=(path,))
    with pytest.raises(UserError, match="No such file"):
        run(batch_read=(tmp_path / "none.jsonl",))
