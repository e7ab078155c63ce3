"""Every setting of generation_config.json is obeyed, or cannot change a reply, or is refused by name."""

import json
import re
from pathlib import Path

import pytest
from transformers import GenerationConfig

from mmrole.base.errors import UserError
from mmrole.data.requests import GenerationSettings
from mmrole.models.checkpoints import Checkpoint
from mmrole.models.generation_config import (
    OBEYED,
    REFUSED_UNLESS_NEUTRAL,
    REFUSED_WHEN_SAMPLING,
    WITHOUT_EFFECT,
    check_stop_tokens,
    check_token_ids,
    generation_settings,
    sampling_settings,
)

GREEDY = {"do_sample": False, "temperature": 0.0, "top_p": 1.0, "top_k": 1}  # as ms-swift writes it


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path)


@pytest.fixture
def read(checkpoint):
    """Reads the settings of a file with this content."""

    def read(content, **flags):
        (checkpoint.base / "generation_config.json").write_text(json.dumps(content))
        return settings(checkpoint, **flags)

    return read


def settings(checkpoint, **flags):
    return generation_settings(checkpoint, **{"no_random": False, "seed": 1234, "max_new_tokens": None} | flags)


def test_every_setting_of_transformers_is_decided():
    decided = [OBEYED, REFUSED_UNLESS_NEUTRAL, REFUSED_WHEN_SAMPLING, WITHOUT_EFFECT]
    names = [name for group in decided for name in group]
    assert len(names) == len(set(names))
    assert set(GenerationConfig().to_dict()) - set(names) == set()


def test_the_documents_say_what_is_decided():
    text = (Path(__file__).parents[3] / "docs" / "generation.md").read_text(encoding="utf-8")
    section = text.split("## Generation settings")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    told = {name: what.strip() for names, what, *_ in rows for name in re.findall(r"`([^`]+)`", names)}
    expected = dict.fromkeys(OBEYED, "obeyed") | dict.fromkeys(REFUSED_UNLESS_NEUTRAL, "refused")
    expected |= dict.fromkeys(REFUSED_WHEN_SAMPLING, "refused when sampling") | dict.fromkeys(
        WITHOUT_EFFECT, "no effect"
    )
    assert told == expected


@pytest.mark.parametrize("name", REFUSED_UNLESS_NEUTRAL)
def test_what_is_not_done_is_refused_by_name(read, name):
    for flags in ({}, {"no_random": True}, {"max_new_tokens": 5}):
        with pytest.raises(UserError, match=rf"generation_config.json: {name} .* is not supported") as error:
            read({name: 7}, **flags)
        assert "\n" not in str(error.value)
    for neutral in (None, *REFUSED_UNLESS_NEUTRAL[name]):
        read({name: neutral})


@pytest.mark.parametrize("name", REFUSED_WHEN_SAMPLING)
def test_sampling_settings_do_not_matter_beside_greedy_decoding(read, name):
    with pytest.raises(UserError, match=f"{name} 0.5 is not supported"):
        read({"do_sample": True, name: 0.5})
    read({"do_sample": True, name: 0.5}, no_random=True)
    read({"do_sample": False, name: 0.5})
    for neutral in (None, *REFUSED_WHEN_SAMPLING[name]):
        read({"do_sample": True, name: neutral})


def test_greedy_decoding_needs_no_temperature(read, checkpoint):
    greedy = GenerationSettings(do_sample=False)
    assert read(GREEDY) == read({"do_sample": True, "temperature": 0.0}, no_random=True) == greedy
    assert read({"temperature": -1, "top_k": "x", "do_sample": False}) == greedy
    with pytest.raises(UserError, match="temperature must be above 0"):
        read(GREEDY | {"do_sample": True})
    (checkpoint.base / "generation_config.json").write_text(json.dumps(GREEDY))
    assert sampling_settings(checkpoint, seed=1234, max_new_tokens=None) == GenerationSettings()


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_what_cannot_matter_is_passed_over(read, name):
    for value in (0, True, "x", [1], {"a": 1}):
        assert read({name: value}) == GenerationSettings(do_sample=False)


def test_a_name_that_nobody_knows_is_refused(read):
    with pytest.raises(UserError, match="'tempreature' is no setting that is known here"):
        read({"tempreature": 0.5})
    read({"tempreature": None})


@pytest.mark.parametrize("odd", [-1, 0, True, "8", [], {}, 10**400], ids=str)
@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "do_sample"])
def test_odd_values_get_one_line(read, name, odd):
    if (name, odd) in (("top_k", 0), ("top_k", 10**400), ("max_new_tokens", 10**400), ("do_sample", True)):
        return
    with pytest.raises(UserError, match=f"generation_config.json: {name} must be") as error:
        read({"do_sample": True} | {name: odd})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_of_json_is_refused(read, number):
    with pytest.raises(UserError, match=r"generation_config.json cannot be read as JSON: \w+ is no number of JSON"):
        read({"do_sample": True, "temperature": number})


def test_a_total_length_is_refused_where_it_counts(read):
    with pytest.raises(UserError, match="max_length counts the prompt"):
        read({"max_length": 2048})
    assert read({"max_length": 2048, "max_new_tokens": 9}).max_new_tokens == 9
    assert read({"max_length": 2048}, max_new_tokens=8).max_new_tokens == 8


def test_stop_tokens(read, checkpoint):
    stops = frozenset((2000, 2001, 2002))
    for sound in (None, 2000, [2001, 2002], []):
        read({"eos_token_id": sound})
        check_stop_tokens(checkpoint, stops)
    for other in (5, [2000, 5], "x", [True], [[]]):
        read({"eos_token_id": other})
        with pytest.raises(UserError, match="eos_token_id names"):
            check_stop_tokens(checkpoint, stops)


def test_settings_of_the_published_checkpoint(checkpoint, golden):
    (checkpoint.base / "generation_config.json").write_bytes((golden / "ckpt_full/generation_config.json").read_bytes())
    assert settings(checkpoint) == GenerationSettings(max_new_tokens=512, top_p=0.3, top_k=0, seed=1234)
    assert settings(checkpoint, seed=5, max_new_tokens=7) == GenerationSettings(max_new_tokens=7, seed=5)
    greedy = GenerationSettings(do_sample=False)
    assert settings(checkpoint, no_random=True) == settings(checkpoint, no_random=True, seed=5) == greedy


FROM_CONFIG = {"_from_model_config": True, "transformers_version": "4.50.0"}
TODAYS = {
    "Qwen2-VL": (
        {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643]}
        | {"temperature": 0.000001, "top_k": 1, "top_p": 0.001, "transformers_version": "4.45.0.dev0"},
        GenerationSettings(temperature=1e-6, top_k=1, top_p=0.001),
    ),
    "Qwen2.5-VL": (
        {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643]}
        | {
            "repetition_penalty": 1.05,
            "temperature": 0.1,
            "top_p": 0.001,
            "top_k": 1,
            "transformers_version": "4.37.0",
        },
        GenerationSettings(temperature=0.1, top_k=1, top_p=0.001, repetition_penalty=1.05),
    ),
    "Qwen2.5-VL-32B": (
        FROM_CONFIG | {"eos_token_id": 151645, "pad_token_id": 151643},
        GenerationSettings(do_sample=False),
    ),
    "Qwen3-VL": (
        {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643]}
        | {"top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0, "transformers_version": "4.56.0"},
        GenerationSettings(temperature=0.7, top_k=20, top_p=0.8),
    ),
    "Gemma 3": (
        {"bos_token_id": 2, "cache_implementation": "hybrid", "do_sample": True, "eos_token_id": [1, 106]}
        | {"pad_token_id": 0, "top_k": 64, "top_p": 0.95, "transformers_version": "4.50.0.dev0"},
        GenerationSettings(temperature=1.0, top_k=64, top_p=0.95),
    ),
    "InternVL3": (FROM_CONFIG | {"eos_token_id": 151645}, GenerationSettings(do_sample=False)),
    "LLaVA 1.5": (
        FROM_CONFIG | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001},
        GenerationSettings(do_sample=False),
    ),
    "LLaVA-OneVision": (
        FROM_CONFIG | {"bos_token_id": 151643, "eos_token_id": 151645},
        GenerationSettings(do_sample=False),
    ),
    "Granite Docling": (
        FROM_CONFIG | {"bos_token_id": 100264, "eos_token_id": 100257, "pad_token_id": 100257, "use_cache": False},
        GenerationSettings(do_sample=False),
    ),
    "Mistral 3": (FROM_CONFIG | {"bos_token_id": 1, "eos_token_id": 2}, GenerationSettings(do_sample=False)),
    "SmolVLM": (
        FROM_CONFIG | {"bos_token_id": 0, "eos_token_id": 49279, "pad_token_id": 2},
        GenerationSettings(do_sample=False),
    ),
    "GLM-4V": (
        FROM_CONFIG
        | {"do_sample": True, "eos_token_id": [151329, 151336, 151338, 151348], "pad_token_id": 151329}
        | {"temperature": 1.0, "top_k": 1, "top_p": 0.6},
        GenerationSettings(temperature=1.0, top_k=1, top_p=0.6),
    ),
}
"""As they are published with today's models; not made sure of: InternVL3, Mistral 3, SmolVLM, GLM-4V."""


@pytest.mark.parametrize("name", TODAYS)
def test_settings_of_todays_models_are_obeyed(read, checkpoint, name):
    content, expected = TODAYS[name]
    assert read(content) == expected
    check_token_ids(checkpoint.base / "generation_config.json", content["eos_token_id"])


def test_settings_without_the_file_are_those_of_mmrole(checkpoint):
    assert settings(checkpoint) == GenerationSettings()
    assert sampling_settings(checkpoint, seed=1234, max_new_tokens=None) == GenerationSettings()


def test_what_the_file_leaves_out_is_what_generate_takes(checkpoint):
    (checkpoint.base / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 2}))
    assumed = GenerationConfig()._get_default_generation_params()
    found = settings(checkpoint)
    assert (found.temperature, found.max_new_tokens) == (2, 512)
    assert all(getattr(found, name) == assumed[name] for name in ("top_k", "top_p", "repetition_penalty"))
    (checkpoint.base / "generation_config.json").write_text('{"top_p": 0.7}')
    assert settings(checkpoint).do_sample is assumed["do_sample"] is False
    sampled = sampling_settings(checkpoint, seed=3, max_new_tokens=9)
    assert sampled == GenerationSettings(max_new_tokens=9, top_k=assumed["top_k"], top_p=0.7, seed=3)
