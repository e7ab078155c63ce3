"""Every field of config.json with every odd value: the model works, or one line says what is wrong with the file."""

import json

import pytest
import torch
from transformers import PreTrainedConfig

from mmrole.qwen_vl import CheckpointError, QWenConfig, QWenLMHeadModel
from mmrole.qwen_vl.checkpoint_files import read_config
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import byte_vocabulary

NESTED: list = []
for _ in range(300):
    NESTED = [NESTED]
ODD = [-1, 0, 1.5, 2**31, 10**18, 10**400, 1e400, -1e400, float("nan"), True, False, None, "", "8", "x", [], [1], {}]
ODD += [{"a": 1}, NESTED]
OWN = [*sorted({*QWenConfig().to_dict()} - {*PreTrainedConfig().to_dict()}), "torch_dtype", "model_type", "visual"]
INHERITED = sorted({*PreTrainedConfig().to_dict(), "rope_scaling", "use_return_dict", "other"} - {*OWN})
VISUAL = [("visual", field) for field in ("heads", "image_size", "layers", "mlp_ratio", "output_dim", "width")]
VISUAL += [("visual", field) for field in ("image_start_id", "patch_size")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("odd") / "model"
    config = random_config(256, num_hidden_layers=1, visual_layers=1, image_size=224)
    write_checkpoint(directory, random_model(config, seed=1, dtype=torch.float32), byte_vocabulary())
    return directory


@pytest.fixture(scope="module")
def fields(directory):
    return (directory / "config.json").read_text()


def load(directory):
    """The model, or what is said in its place: one line that names the directory."""
    try:
        return QWenLMHeadModel.from_pretrained(directory), ""
    except CheckpointError as error:
        return None, str(error)


def check_message(message, directory):
    assert str(directory) in message
    assert "\n" not in message
    assert len(message) < 500 + len(str(directory))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [*OWN, *INHERITED, *VISUAL], ids=str)
def test_an_odd_value(directory, fields, place):
    ids = torch.arange(8)[None]
    for value in ODD[::5] if place in INHERITED else ODD:
        content = json.loads(fields)
        section, field = (content["visual"], place[1]) if isinstance(place, tuple) else (content, place)
        section[field] = value
        (directory / "config.json").write_text(json.dumps(content))
        model, message = load(directory)
        if model is None:
            check_message(message, directory)
        else:
            assert model.eval()(ids).logits.isfinite().all(), value
            assert model.train()(ids, labels=ids).loss.isfinite(), value


@pytest.mark.parametrize("depth", [900, 10_000, 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_nested_deeply(directory, fields, name, depth):
    (directory / "config.json").write_text(fields)
    sound = (directory / name).read_text()
    (directory / name).write_text(f'{{"model_type": "qwen", "visual": {"[" * depth}{"]" * depth}}}')
    model, message = load(directory)
    (directory / name).write_text(sound)
    if model is None:
        check_message(message, directory)
    else:
        assert (name, depth) != ("config.json", depth)


@pytest.mark.parametrize("settings", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq"}, {}, "x", [1], True])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantized_checkpoint(directory, fields, key, settings):
    (directory / "config.json").write_text(json.dumps(json.loads(fields) | {key: settings}))
    for read in (read_config, QWenLMHeadModel.from_pretrained):
        with pytest.raises(CheckpointError, match="checkpoints are not supported; give the model that was") as error:
            read(directory)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["x", -1, [], {"a": 1}, 10**400])
@pytest.mark.parametrize("name", ["early_stopping", "max_new_tokens", "compile_config", "watermarking_config"])
def test_generation_settings_that_transformers_cannot_read(directory, fields, name, value):
    (directory / "config.json").write_text(fields)
    (directory / "generation_config.json").write_text(json.dumps({name: value}))
    model, message = load(directory)
    if model is None:
        check_message(message, directory / "generation_config.json")


def test_whatever_has_no_effect_does_not_keep_a_model_from_being_saved(directory, fields, tmp_path):
    (directory / "config.json").write_text(fields)
    without_effect = {
        "early_stopping": True,
        "length_penalty": 2.0,
        "output_scores": True,
        "cache_implementation": "static",
    }
    sampling = {"temperature": 0.0, "top_k": 1, "min_p": 0.1}
    settings = {"do_sample": False, "use_cache": False, "max_new_tokens": 7} | without_effect | sampling
    (directory / "generation_config.json").write_text(json.dumps(settings))
    QWenLMHeadModel.from_pretrained(directory).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["max_new_tokens"] == 7
    assert not saved.keys() & (without_effect.keys() | sampling.keys())
