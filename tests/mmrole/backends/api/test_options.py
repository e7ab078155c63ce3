"""From flags to a server's model."""

import argparse
from pathlib import Path

import pytest

from mmrole.backends.api.costs import Prices
from mmrole.backends.api.options import ApiOptions, BatchFiles
from mmrole.backends.options import BackendOptions
from mmrole.base.errors import UserError
from mmrole.data.requests import GenerationSettings
from mmrole.jobs.options import JobOptions, add_arguments

SERVER = ("--api_base", "http://localhost:1/v1", "--api_model", "m")


def flags(*given: str) -> dict:
    parser = argparse.ArgumentParser()
    add_arguments(parser, model_path="weights", input_dir="in", output_dir="out")
    return vars(parser.parse_args(given))


def test_no_server_without_its_flags():
    assert ApiOptions.of_flags(flags()) is None
    assert BackendOptions.of_flags(flags("--no_random")).api is None


def test_defaults_are_those_of_a_local_model():
    assert ApiOptions.of_flags(flags(*SERVER)) == ApiOptions("http://localhost:1/v1", "m")


def test_all_flags():
    given = flags(
        *SERVER,
        *("--api_key_env", "KEY", "--temperature", "0.7", "--top_p", "0.9", "--seed", "3", "--max_new_tokens", "9"),
        *("--api_extra", '{"top_k": 20}', "--api_header", "X-A: 1", "--api_header", "X-B:  2 "),
        *("--api_image_pixels", "99", "--api_concurrency", "4", "--api_timeout", "5", "--no_api_probe"),
        *("--price_in", "1", "--price_out", "2", "--max_cost", "3", "--output_dir", "there"),
    )
    assert ApiOptions.of_flags(given) == ApiOptions(
        "http://localhost:1/v1",
        "m",
        "KEY",
        (("X-A", "1"), ("X-B", "2")),
        {"top_k": 20},
        GenerationSettings(max_new_tokens=9, temperature=0.7, top_p=0.9, seed=3),
        99,
        4,
        5.0,
        False,
        Prices(1.0, 2.0),
        3.0,
    )
    assert not JobOptions.of_flags(given).rehearses
    assert not ApiOptions.of_flags(flags(*SERVER, "--no_random")).settings.do_sample


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--api_base", "u"), "--api_base: of a server's model only; give --api_model as well, or leave that out"),
        (("--api_model", "u"), "--api_model: of a server's model only; give --api_base as well"),
        (("--temperature", "1"), "--temperature: of a server's model only; give --api_base and --api_model as well"),
        (("--dry_run",), "--dry_run: of a server's model only"),
        ((*SERVER[:3], "a\nb"), "--api_model 'a\\nb' holds control characters; name a model of the server"),
        ((*SERVER, "--no_random", "--temperature", "1"), "--no_random takes the most probable token; leave out --temp"),
        ((*SERVER, "--no_random", "--top_p", "1"), "leave out --top_p, or --no_random"),
        ((*SERVER, "--temperature", "0"), "--temperature 0 is --no_random"),
        ((*SERVER, "--top_p", "0"), "--top_p must be above 0"),
        ((*SERVER, "--price_in", "1"), "--price_in and --price_out are needed together"),
        ((*SERVER, "--max_cost", "1"), "--max_cost needs --price_in and --price_out"),
        ((*SERVER, "--dry_run", "--batch_write", "f"), "--dry_run and --batch_write do not go together; give one"),
        ((*SERVER, "--batch_bytes", "9"), "--batch_bytes is of --batch_write; leave it out, or give that"),
        ((*SERVER, "--batch_read", "f", "--api_concurrency", "3"), "--batch_read sends nothing; leave out --api_con"),
        ((*SERVER, "--model_path", "m"), "--api_base has a server's model answer; leave out --model_path"),
        ((*SERVER, "--use_lora"), "leave out --use_lora"),
        ((*SERVER, "--dtype", "float32", "--device", "cpu"), "leave out --dtype and --device"),
        ((*SERVER, "--max_batch_tokens", "5"), "leave out --max_batch_tokens"),
        ((*SERVER, "--replies", "r"), "--replies answers in place of a model; leave out --api_base and --api_model"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(given, said):
    with pytest.raises(UserError) as caught:
        BackendOptions.of_flags(flags(*given))
    assert said in str(caught.value)
    assert len(caught.value.lines) == 1


def test_what_sends_nothing():
    for given in (("--dry_run",), ("--batch_write", "f"), ("--batch_read", "f", "g")):
        made = flags(*SERVER, *given, "--output_dir", "there")
        assert not ApiOptions.of_flags(made).sends
        assert JobOptions.of_flags(made).rehearses == (given[0] != "--batch_read")
    assert ApiOptions.of_flags(made).batch_read == (Path("f"), Path("g"))
    assert JobOptions.of_flags(made).without == " without --batch_read"
    made = flags(*SERVER, "--batch_write", "f", "--batch_requests", "3", "--batch_bytes", "9")
    assert ApiOptions.of_flags(made).batch_write == BatchFiles(Path("f"), 3, 9)


def test_an_output_folder_is_needed():
    """That of the published model is not for another one's answers."""
    with pytest.raises(UserError, match=r"^out is not for the answers of m; say where they go with --output_dir$"):
        JobOptions.of_flags(flags(*SERVER))
    assert JobOptions.of_flags(flags(*SERVER, "--output_dir", "out")).output_dir.name == "out"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--api_extra", "[1]"), "is no JSON object, such as"),
        (("--api_extra", '{"a": NaN}'), "is no JSON object"),
        (("--api_extra", '{"max_tokens": 3}'), "max_tokens is said by --max_new_tokens"),
        (("--api_extra", '{"model": null}'), "model is said by --api_model"),
        (
            ("--api_extra", '{"api_key": "sk-1"}'),
            "api_key is for keys, which others could read here; use --api_key_env",
        ),
        (("--api_extra", '{"temperature": 3}'), "temperature is said by --temperature and --no_random"),
        (("--api_extra", '{"stream": true}'), "stream is not for this flag"),
        (("--api_header", "X-Colour"), "it is not of the form 'NAME: VALUE', in ASCII"),
        (("--api_header", "X-A: 1\nX-B: 2"), "it is not of the form"),
        (("--api_header", "authorization: Bearer secret-of-mine"), "authorization is for keys"),
        (("--api_header", "Api-Key: secret-of-mine"), "use --api_key_env"),
        (("--api_header", "X-My-Token: secret-of-mine"), "X-My-Token is for keys"),
        (("--api_header", "X-Client-Request-Id: 1"), "X-Client-Request-Id is set by the client"),
        (("--temperature", "-1"), "-1 is not a number from 0 on"),
        (("--top_p", "1.1"), "1.1 is not a number from 0 to 1"),
        (("--price_in", "inf"), "inf is not a number"),
        (("--api_timeout", "0"), "0 is not a number"),
    ],
)
def test_faulty_values(given, said, capsys):
    with pytest.raises(SystemExit) as caught:
        flags(*SERVER, *given)
    assert caught.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert said in message
    assert "secret-of-mine" not in message
