"""inference.py refuses what cannot be done, in one line, before a model is loaded; and it never overwrites silently."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmrole.base.errors import UserError
from mmrole.base.files import sha256
from mmrole.base.journal import Journal
from mmrole.base.journal_files import JournalState, state
from mmrole.jobs.options import TEST_FILES
from mmrole.models.loading import load


@pytest.fixture
def refused(job, monkeypatch):
    """Runs the job, which must be refused without loading a model or touching the output; returns the message."""

    def run(*flags: object, one_file: bool = True) -> str:
        before = contents(job.output_dir)
        monkeypatch.setattr("mmrole.backends.engine.load", lambda *_, **__: pytest.fail("a model was loaded"))
        with pytest.raises(UserError) as error:
            job.run(*flags, one_file=one_file)
        assert contents(job.output_dir) == before
        monkeypatch.undo()
        return str(error.value)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def version(file: Path) -> tuple[int, int]:
    return file.stat().st_ino, file.stat().st_mtime_ns


def one_line(message: str) -> str:
    assert "\n" not in message
    return message


# --- input -----------------------------------------------------------------------------------------------------------


def test_input_folder(job, refused):
    assert "bash scripts/download.sh data fetches" in one_line(refused())
    job.write([job.sample(0)])
    assert "is the input folder" in one_line(refused("--output_dir", job.input_dir / "."))


def test_image_folder(job, refused):
    job.write([job.sample(0)])
    assert "image folder nowhere does not exist" in one_line(refused("--image_dir", "nowhere"))


def test_a_prompt_of_many_contexts(job, refused):
    sample = job.sample(0)
    sample["conversations"][0]["value"] += "\u0301" * 300_000
    job.write([sample])
    assert "positions more than fit; shorten the question" in one_line(refused())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "No such file"),
        ("[", "is not JSON"),
        ("{}", "must hold a list"),
        ("[]", "holds no records"),
        ('[{"id": "a"}]', "test.json[0] (id 'a'): "),
    ],
)
def test_input_file(job, refused, text, fault):
    job.write([])
    file = job.input_dir / TEST_FILES[0]
    file.unlink()
    if text is not None:
        file.write_text(text)
    message = one_line(refused())
    assert str(file) in message
    assert fault in message


def test_a_folder_without_any_of_the_files(job, refused):
    job.write([job.sample(0)], "mine.json")
    message = one_line(refused(one_file=False))
    assert f"{job.input_dir} has no comment_test.json or human-role_test.json or inter-role_test.json" in message
    assert "--input_file" in message


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file(job, refused, make):
    job.input_dir.mkdir()
    make(job.input_dir / TEST_FILES[0])
    assert f"cannot read {job.input_dir / TEST_FILES[0]}: " in one_line(refused())
    (job.input_dir / TEST_FILES[0]).rename(job.folder / "aside")
    job.write([job.sample(0)])
    job.output_dir.mkdir()
    make(job.output_dir / f"{TEST_FILES[0]}.settings")
    assert f"{TEST_FILES[0]}.settings is not a regular file" in one_line(refused("--overwrite"))
    make(job.output)
    assert f"{job.output} is not a regular file" in one_line(refused("--overwrite"))
    assert "is not known to be this program's work" in one_line(refused())


def test_a_file_in_place_of_the_output_folder(job, refused):
    job.write([job.sample(0)])
    job.output_dir.touch()
    assert f"cannot write {job.output}" in one_line(refused())


def test_variables_of_the_launcher(job, refused, monkeypatch):
    job.write([job.sample(0)])
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "WORLD_SIZE='two'" in one_line(refused())


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd", "https://example.org/x.png", "Ships"])
def test_an_image_outside_the_folder_is_never_skipped(job, refused, image):
    job.write([job.sample(0), job.sample(1, image=image)])
    for flags in ([], ["--skip_missing_images"]):
        message = one_line(refused(*flags))
        assert f"{TEST_FILES[0]}[1] (id 'Captain_comment_1'): image '{image}'" in message


def test_all_problems_of_all_files_at_once_and_before_those_of_the_model(job, refused, tmp_path):
    job.write([job.sample(number, image=f"Ships/missing {number}.png") for number in range(8)])
    job.write([job.sample(8, role="")], TEST_FILES[1])
    job.write([job.sample(number, image=f"Ships/missing {number}.png") for number in range(9, 14)], TEST_FILES[2])
    headline, *listed, rest, remedy = refused("--model_path", tmp_path / "broken", one_file=False).split("\n")
    assert "14 problems" in headline
    assert len(listed) == 10
    assert "4 more" in rest
    assert '"role" must be a non-empty text' in listed[8]
    assert "13 records" in remedy
    assert "--skip_missing_images" in remedy


def test_ids_that_two_files_share(job, refused):
    for name in TEST_FILES:
        job.write([job.sample(0)], name)
    message = refused(one_file=False)
    assert "(2 problems)" in message
    assert f"{job.input_dir / TEST_FILES[1]}[0] (id 'Captain_comment_0'): this id is in" in message


def test_records_without_image_are_left_out_and_listed(job, refused, capsys):
    records = [job.sample(number) for number in range(3)] + [job.sample(9, image="COCO/missing.jpg")]
    job.write(records)
    assert "--skip_missing_images" in refused()
    assert job.run("--no_random", "--skip_missing_images") == 0
    assert job.output.read_bytes() == job.with_answers(records[:3], job.answers())
    said = capsys.readouterr().out
    assert "1 of 4 records have no image file and are left out; they will not be in" in said
    assert records[3]["id"] in said
    job.write(records[3:])
    assert "none of its records has its image file" in one_line(refused("--skip_missing_images", "--overwrite"))


# --- model -----------------------------------------------------------------------------------------------------------


def test_model_directory(job, refused, tmp_path):
    job.write([job.sample(0)])
    missing = tmp_path / "MMRole-Agent"
    assert f"{missing}: no such directory; bash scripts/download.sh agent fetches" in one_line(
        refused("--model_path", missing)
    )
    assert "bash scripts/download.sh base fetches" in one_line(refused("--model_path", "Qwen/Qwen-VL-Chat"))
    assert "from the model hub: hf download NAME" in one_line(refused("--model_path", "me/agent"))
    assert "config.json is missing" in one_line(refused("--model_path", tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("qwen.tiktoken", None, "qwen.tiktoken is missing"),
        ("qwen.tiktoken", "AAAA 0\n", "qwen.tiktoken"),
        ("model.safetensors", None, "has no weights"),
        ("model.safetensors", "truncated", "truncated or corrupt"),
        ("config.json", '{"model_type": "llama"}', "not 'qwen'"),
        ("generation_config.json", '{"do_sample": true, "top_p": "much"}', "top_p must be a float, not 'much'"),
        ("generation_config.json", '{"do_sample": true, "top_k": -1}', "top_k must be at least 0, not -1"),
    ],
)
def test_damaged_model(job, copy_of_tiny, refused, name, text, fault):
    job.model_path = copy_of_tiny
    job.write([job.sample(0)])
    (copy_of_tiny / name).unlink()
    if text is not None:
        (copy_of_tiny / name).write_text(text)
    assert fault in one_line(refused())
    assert state(job.output) is JournalState.NEW


def test_adapters(job, refused, tmp_path):
    job.write([job.sample(0)])
    assert "not a LoRA adapter; leave out --use_lora" in one_line(refused("--use_lora"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen-VL-Chat"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert "add --use_lora" in one_line(refused("--model_path", adapter))
    lora = ("--model_path", adapter, "--use_lora")
    assert "no weights" in one_line(refused(*lora))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    assert "base_model_name_or_path, Qwen/Qwen-VL-Chat, is no directory here" in one_line(refused(*lora))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "PREFIX_TUNING"}))
    assert "'PREFIX_TUNING'" in one_line(refused(*lora))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(job.model_path)}))
    assert "truncated or corrupt" in one_line(refused(*lora))


@pytest.mark.parametrize("name", ["model.safetensors", "qwen.tiktoken"])
def test_files_that_are_replaced_before_they_are_loaded(job, copy_of_tiny, monkeypatch, name):
    job.model_path = copy_of_tiny
    job.write([job.sample(0)])

    def replace_and_load(*arguments: object, **named: object) -> object:
        (copy_of_tiny / name).rename(copy_of_tiny / "aside")
        shutil.copy(copy_of_tiny / "aside", copy_of_tiny / name)
        with open(copy_of_tiny / name, "r+b") as file:
            file.seek(-2, 2)
            file.write(b"7")
        return load(*arguments, **named)

    monkeypatch.setattr("mmrole.backends.engine.load", replace_and_load)
    with pytest.raises(UserError):
        job.run()
    assert state(job.output) is JournalState.UNFINISHED
    assert not any('"payload"' in file.read_text() for file in job.journal.iterdir())


def test_device(job, refused):
    job.write([job.sample(0)])
    assert "give auto, cpu, cuda or cuda:N" in one_line(refused("--device", "gpu"))
    assert "give auto, cpu, cuda or cuda:N" in one_line(refused("--device", "meta"))
    assert "torch finds" in one_line(refused("--device", "cuda:99"))


@pytest.mark.parametrize("flag", [("--limit", "0"), ("--max_new_tokens", "-1"), ("--dtype", "int8")])
def test_bad_flags(job, flag, capsys):
    with pytest.raises(SystemExit) as status:
        job.run(*flag)
    assert status.value.code == 2
    assert f"argument {flag[0]}: " in capsys.readouterr().err


# --- what is there already -------------------------------------------------------------------------------------------


def test_a_finished_file_is_done(job):
    job.write([job.sample(0)])
    assert job.run("--no_random") == 0
    before = version(job.output)
    code = "import sys, inference; print(inference.main(sys.argv[1:])); assert 'transformers' not in sys.modules"
    again = [sys.executable, "-c", code, *job.flags("--no_random", "--max_batch_tokens", 1)]
    done = subprocess.run(again, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n0\n")
    assert f"{job.output}: finished before, 1 records; --overwrite starts anew" in done.stdout
    assert version(job.output) == before


def test_one_finished_file_of_three(job):
    for number, name in enumerate(TEST_FILES):
        job.write([job.sample(number)], name)
    assert job.run("--no_random") == 0
    before = version(job.output)
    assert job.run("--no_random", one_file=False) == 0
    assert version(job.output) == before
    assert all(state(job.output_dir / name) is JournalState.FINISHED for name in TEST_FILES)


def test_a_finished_file_of_another_run_is_refused(job, copy_of_tiny, refused):
    job.write([job.sample(0), job.sample(1)])
    assert job.run("--seed", 3) == 0
    message = one_line(refused("--no_random"))
    assert "was made with other settings: do_sample was True, is False" in message
    assert "--overwrite" in message
    assert "seed was 3, is 1234" in one_line(refused())
    assert "dtype was 'float32', is 'float64'" in one_line(refused("--seed", 3, "--dtype", "float64"))
    assert "holds other records than the 1 of this run" in one_line(refused("--seed", 3, "--limit", 1))
    weights = copy_of_tiny / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "model was '" in one_line(refused("--seed", 3, "--model_path", copy_of_tiny))
    job.write([job.sample(0), job.sample(2, id=job.sample(1)["id"])])
    assert "input was" in one_line(refused("--seed", 3))
    assert job.run("--seed", 4, "--overwrite") == 0
    assert json.loads(Path(f"{job.output}.settings").read_text())["seed"] == 4


def test_what_an_earlier_version_made_is_not_mixed_with_the_pixels_of_this_one(job, refused):
    job.write([job.sample(0)])
    assert job.run("--no_random") == 0
    settings = Path(f"{job.output}.settings")
    earlier = json.loads(settings.read_text())
    now = earlier.pop("pixels")
    settings.write_text(json.dumps(earlier))
    message = f"was made with other settings: pixels was not noted, is {now!r}; "
    assert message + "give another --output_dir, or start anew with --overwrite" in one_line(refused("--no_random"))
    del earlier["images"]
    job.output.unlink()
    with Journal.open(job.output, earlier) as journal:
        journal.append(json.loads(job.input_dir.joinpath(job.output.name).read_text())[0]["id"], [])
    assert message in one_line(refused("--no_random"))


def test_a_file_from_elsewhere_is_not_taken_for_this_models_answers(job, refused):
    records = job.write([job.sample(0), job.sample(1)])
    job.output_dir.mkdir()
    job.output.write_bytes(job.with_answers(records, ["Aye.", ""]))
    before = version(job.output)
    message = one_line(refused())
    assert "is not known to be this program's work (there is no comment_test.json.settings)" in message
    assert "--overwrite" in message
    assert version(job.output) == before


def test_the_input_is_never_overwritten(job, refused):
    job.write([job.sample(0)])
    job.output_dir.mkdir()
    job.output.hardlink_to(job.input_dir / job.output.name)
    before = version(job.output)
    assert "is the input; give another --output_dir" in one_line(refused("--overwrite"))
    assert version(job.output) == before


def test_other_pictures_under_the_same_names_are_another_input(job, refused, tmp_path):
    job.write([job.sample(0)])
    assert job.run("--no_random") == 0
    other = shutil.copytree(job.image_dir, tmp_path / "other")
    picture = other / job.sample(0)["image"]
    picture.write_bytes(picture.read_bytes() + b" ")
    assert "was made with other settings: images was" in one_line(refused("--no_random", "--image_dir", other))


def test_a_file_without_work_does_not_stop_the_others(job, capsys):
    for number, name in enumerate(TEST_FILES):
        job.write([job.sample(number)] if number else [], name)
    assert job.run("--no_random", one_file=False) == 0
    assert "nothing to do, it holds no records; no output is written" in capsys.readouterr().out
    assert [name for name in TEST_FILES if (job.output_dir / name).exists()] == list(TEST_FILES[1:])


def test_left_out_records_with_odd_ids_are_listed(job, capsys):
    job.write([job.sample(0), job.sample(1, id="miss\ud801\n\x1b[31m", image="nope.png")])
    assert job.run("--no_random", "--skip_missing_images") == 0
    assert r"'miss\ud801\n\x1b[31m'" in capsys.readouterr().out


def test_limit(job, refused):
    records = job.write([job.sample(number) for number in range(5)])
    assert job.run("--no_random", "--limit", 2) == 0
    first = job.answers()
    assert job.output.read_bytes() == job.with_answers(records[:2], first)
    assert "holds other records than the 5 of this run" in one_line(refused("--no_random"))
    assert job.run("--no_random", "--overwrite") == 0
    assert len(job.answers()) == 5


def test_an_interrupted_run_goes_on_with_more_records_but_not_with_fewer(job, refused, capsys):
    """A journal with two of five records, as a kill leaves it."""
    records = job.write([job.sample(number) for number in range(5)])
    assert job.run("--no_random") == 0
    expected = job.answers()
    fingerprint = json.loads(Path(f"{job.output}.settings").read_text())
    del fingerprint["images"]
    job.output.unlink()
    kept = {"text": "kept", "token_ids": [1], "finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 2}
    with Journal.open(job.output, fingerprint) as journal:
        for record in records[1:3]:
            journal.append(record["id"], {**kept, "image": sha256(job.image_dir / record["image"])})
    message = one_line(refused("--no_random", "--limit", 2))
    assert "has 1 replies to records that this run leaves out (first 'Captain_comment_2')" in message
    assert "max_new_tokens was 6, is 7" in one_line(refused("--no_random", "--max_new_tokens", 7))
    capsys.readouterr()
    assert job.run("--no_random") == 0
    said = capsys.readouterr().out
    assert "5 records, 2 of them done before" in said
    assert "\n3 replies, " in said
    assert job.answers() == [expected[0], "kept", "kept", *expected[3:]]


def test_a_reply_of_another_form_in_the_journal(job, refused):
    job.write([job.sample(0)])
    assert job.run("--no_random") == 0
    fingerprint = json.loads(Path(f"{job.output}.settings").read_text())
    del fingerprint["images"]
    job.output.unlink()
    reply = {"text": "kept", "token_ids": [1], "finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 2}
    reply["image"] = sha256(job.image_dir / job.sample(0)["image"])
    for payload, fault in (
        (reply | {"later": 1}, "the field 'later' is not known"),
        (reply | {"text": None}, "text is None"),
        (reply | {"token_ids": [True]}, "token_ids is [True]"),
        (reply | {"new_tokens": float("inf")}, "new_tokens is inf"),
        (reply | {"finish_reason": ["stop"]}, "finish_reason is ['stop']"),
        (reply | {"image": 5}, "image is 5"),
        ({}, "text is missing"),
        ("kept", "'kept' is no reply"),
    ):
        with Journal.open(job.output, fingerprint, overwrite=True) as journal:
            journal.append("Captain_comment_0", payload)
        message = one_line(refused("--no_random"))
        assert f"its journal has a reply of another form, 'Captain_comment_0' ({fault})" in message
    with Journal.open(job.output, fingerprint, overwrite=True) as journal:
        journal.append("Captain_comment_0", reply | {"text": "half \ud83d"})
    assert job.run("--no_random") == 0
    assert job.answers() == ["half \ud83d"]


def test_overwriting_replaces_a_journal_and_says_how_to_go_on(job, capsys):
    job.write([job.sample(0)])
    with Journal.open(job.output, {"program": "another"}) as journal:
        journal.append("another record", {})
    with pytest.raises(UserError, match="--overwrite"):
        job.run()
    assert job.run("--overwrite") == 0
    assert f"{job.output}: started anew; after an interruption go on without --overwrite" in capsys.readouterr().out
    assert not job.journal.exists()


def test_two_runs_at_once(job, refused):
    job.write([job.sample(0)])
    holder = "import sys, mmrole.base.journal as j; held = j.Journal.open(sys.argv[1], {}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, job.output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        assert f"another process is working on {job.output}" in one_line(refused())
        assert "another process" in one_line(refused("--overwrite"))
        other.communicate("\n")
