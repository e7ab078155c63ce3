"""From flags to a backend."""

import argparse
from pathlib import Path

import pytest

from mmrole.backends.options import BackendOptions, add_generation_arguments, add_model_arguments, find_backend
from mmrole.base.errors import UserError
from mmrole.models.loading import ModelOptions


def flags(*given: str) -> dict:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, model_path="weights")
    add_generation_arguments(parser)
    return vars(parser.parse_args(given))


def test_flags_of_a_model():
    assert BackendOptions.of_flags(flags()) == BackendOptions(ModelOptions(Path("weights")))
    given = flags("--model_path", "m", "--use_lora", "--no_random", "--seed", "3", "--max_batch_tokens", "9")
    model = ModelOptions(Path("m"), use_lora=True, no_random=True, seed=3)
    assert BackendOptions.of_flags(given) == BackendOptions(model, max_batch_tokens=9)
    assert BackendOptions.of_flags(flags("--max_pixels", "4096")).model.max_pixels == 4096


@pytest.mark.parametrize(
    "given",
    [
        *(("--model_path", "m"), ("--use_lora",), ("--dtype", "float32"), ("--device", "cpu"), ("--no_random",)),
        *(("--seed", "1234"), ("--max_new_tokens", "5"), ("--max_batch_tokens", "5"), ("--max_pixels", "4096")),
    ],
)
def test_flags_that_replies_of_a_file_make_meaningless_are_refused(given):
    with pytest.raises(UserError, match=f"^--replies answers in place of a model; leave out {given[0]}$"):
        BackendOptions.of_flags(flags("--replies", "r.jsonl", *given))


def test_replies_of_a_file(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"id": "a", "text": "x"}\n')
    backend = find_backend(BackendOptions.of_flags(flags("--replies", str(file))))
    assert str(backend) == f"replies from {file}"
    assert backend.fingerprint() == {"model": "scripted replies", "replies": str(file)}
