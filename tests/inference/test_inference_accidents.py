"""What somebody does beside a running inference.py: exchanges pictures, deletes or blocks what it writes."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from mmrole.backends.engine import EngineBackend, find_engine
from mmrole.backends.scripted import ScriptedBackend, ScriptedGenerator
from mmrole.base.errors import UserError
from mmrole.data.requests import ChatReply, ChatRequest
from mmrole.engine.engine import Engine
from mmrole.jobs import job as jobs
from mmrole.jobs.answers import ANSWERS
from mmrole.jobs.options import TEST_FILES
from mmrole.models.loading import ModelOptions

RECORDS = 4


@dataclass(frozen=True)
class Disturbed(ScriptedBackend):
    """Something happens before each reply, and after the last one."""

    happens: Callable[[int], None] = lambda number: None
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[ScriptedGenerator]:
        def reply(request: ChatRequest) -> ChatReply:
            self.happens(len(self.asked))
            self.asked.append(request.id)
            return self.reply(request)

        yield ScriptedGenerator(reply)
        self.happens(len(self.asked))


@pytest.fixture
def answer(job):
    """Runs the job about three files with scripted replies; returns how many were asked for."""
    for place, name in enumerate(TEST_FILES):
        job.write([job.sample(RECORDS * place + number) for number in range(RECORDS)], name)

    def run(happens: Callable[[int], None] = lambda number: None, one_file: bool = False) -> int:
        backend = Disturbed(lambda request: ChatReply(request.id, f"Aye, {request.id}."), happens=happens)
        assert jobs.run(ANSWERS, job.options(one_file=one_file), lambda place: backend) == 0
        return len(backend.asked)

    return run


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def expected(job, answer) -> dict[str, bytes]:
    """What a run that nothing disturbs makes."""
    assert answer() == 3 * RECORDS
    made = outputs(job.output_dir)
    shutil.rmtree(job.output_dir)
    return made


@pytest.mark.parametrize("deleted", [".", f"{TEST_FILES[0]}.journal"])
def test_what_it_writes_is_deleted(job, answer, expected, deleted):
    for moment in (0, 2, 7):
        asked = []

        def happens(number: int, moment: int = moment, asked: list[int] = asked) -> None:
            asked.append(number)
            if number == moment:
                shutil.rmtree(job.output_dir / deleted)

        with pytest.raises(UserError, match="finished records are written there again: run the same command") as error:
            answer(happens)
        assert "\n" not in str(error.value)
        assert len(asked) + answer() == 3 * RECORDS
        assert outputs(job.output_dir) == expected
        shutil.rmtree(job.output_dir)


@pytest.mark.parametrize("deleted", [".", f"{TEST_FILES[0]}.journal"])
def test_what_is_deleted_in_the_very_end_is_in_memory(job, answer, expected, deleted):
    def happens(number: int) -> None:
        if number == 3 * RECORDS:
            shutil.rmtree(job.output_dir / deleted)

    answer(happens)
    assert outputs(job.output_dir) == expected


@pytest.mark.parametrize("blocked", [TEST_FILES[0], f"{TEST_FILES[1]}.settings"])
def test_one_output_that_cannot_be_written_costs_the_others_nothing(job, answer, expected, blocked):
    def happens(number: int) -> None:
        if number == 3 * RECORDS:
            (job.output_dir / blocked).mkdir()

    with pytest.raises(UserError, match=f"cannot write .*{blocked}") as error:
        answer(happens)
    assert "\n" not in str(error.value)
    assert len([name for name, made in expected.items() if (job.output_dir / name).is_file()]) >= 4
    (job.output_dir / blocked).rmdir()
    assert answer() == 0
    assert outputs(job.output_dir) == expected


def test_the_folder_becomes_a_file(job, answer, expected):
    def happens(number: int) -> None:
        if number == 2:
            shutil.rmtree(job.output_dir)
            job.output_dir.touch()

    with pytest.raises(UserError, match="cannot") as error:
        answer(happens)
    assert "\n" not in str(error.value)
    job.output_dir.unlink()
    answer()
    assert outputs(job.output_dir) == expected


def test_a_folder_whose_name_is_not_utf8(job, answer):
    job.folder = job.folder / "\udcff"
    job.folder.mkdir()
    job.write([job.sample(0)])
    assert answer(one_file=True) == 1
    assert answer(one_file=True) == 0


def test_exchanged_pictures_are_noticed_where_they_are_read(job, tmp_path):
    """The reply about the new picture is not kept; the others are."""
    job.image_dir = shutil.copytree(job.image_dir, tmp_path / "pictures")
    records = job.write([job.sample(number) for number in range(3)])
    picture = job.image_dir / records[2]["image"]
    first = picture.read_bytes()

    class Exchanging(EngineBackend):
        @contextmanager
        def open(self) -> Iterator[Engine]:
            Image.new("RGB", (90, 90), "red").save(picture)
            with super().open() as engine:
                yield engine

    model = ModelOptions(job.model_path, no_random=True, max_new_tokens=job.max_new_tokens)
    with pytest.raises(UserError, match="is another picture than when this job began") as error:
        jobs.run(ANSWERS, job.options(), lambda place: Exchanging(**vars(find_engine(model, 1, place=place))))
    assert "\n" not in str(error.value)
    assert records[2]["id"].encode() not in b"".join(file.read_bytes() for file in job.journal.iterdir())
    picture.write_bytes(first)
    assert job.run("--no_random") == 0
