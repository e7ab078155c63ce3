"""An adapter is what its files say and fits its base, or is refused in one line before the base loads."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mmrole.base.errors import UserError
from mmrole.data.requests import GenerationSettings
from mmrole.models.adapters import OBEYED, WITHOUT_EFFECT, read_adapter_config
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.loading import Model, check_checkpoint, load
from mmrole.qwen_vl import QWenLMHeadModel
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import byte_vocabulary

TARGETS = ["c_attn", "attn.c_proj", "w1", "w2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "model"
    config = random_config(256, num_hidden_layers=2, visual_layers=1, image_size=224)
    write_checkpoint(directory, random_model(config, seed=1, dtype=torch.float32), byte_vocabulary())
    return directory


@pytest.fixture
def train(base, tmp_path):
    """Makes an adapter on the base, as peft saves it; returns its directory and the adapted model."""

    def train(**fields):
        torch.manual_seed(0)
        adapted = get_peft_model(QWenLMHeadModel.from_pretrained(base), LoraConfig(r=4, **fields))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(tmp_path / "adapter")
        edit(tmp_path / "adapter", base_model_name_or_path=str(base))
        return tmp_path / "adapter", adapted.eval()

    return train


@pytest.fixture
def adapter(train):
    return train(target_modules=TARGETS)[0]


def edit(adapter, **fields):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def check(adapter):
    return check_checkpoint(find_checkpoint(adapter, use_lora=True))


def refusal(adapter):
    with pytest.raises(UserError) as error:
        check(adapter)
    assert "\n" not in str(error.value)
    assert str(adapter) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": TARGETS, "bias": "lora_only"},
        {"target_modules": TARGETS, "bias": "all", "task_type": "CAUSAL_LM"},
        {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"], "rank_pattern": {"h.0.attn.c_attn": 2}},
        {"target_modules": TARGETS, "use_dora": True, "use_rslora": True},
        {"target_modules": TARGETS, "exclude_modules": ["w1"]},
        {"target_modules": r".*h\.1\..*(w1|w2)", "alpha_pattern": {"w1": 3}, "init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_what_peft_trains_is_merged(train, fields):
    adapter, adapted = train(**fields)
    check(adapter)
    settings = GenerationSettings()
    model = Model(find_checkpoint(adapter, use_lora=True), settings, settings, torch.device("cpu"), torch.float32)
    merged = load(model, progress=False).module
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_that_do_not_fit(adapter, base, form):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)

    def write(content):
        if form == "safetensors":
            return save_file(content, file)
        file.unlink(missing_ok=True)
        return torch.save(content, adapter / "adapter_model.bin")

    write(weights)
    check(adapter)
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"
    for other in (name.replace(".h.1.", ".h.7."), "base_model.model.transformer.visual.conv1.lora_A.weight", "more"):
        write(weights | {other: torch.ones(4, 128)})
        assert f"does not fit {base}: 1 weights are left over" in refusal(adapter)
    write({key: value for key, value in weights.items() if key != name})
    assert f"1 weights are missing, first {name!r}" in refusal(adapter)
    write(weights | {name: torch.ones(5, 128)})
    assert f"{name!r} has the shape [5, 128] in the file, and [4, 128] by" in refusal(adapter)


def test_a_configuration_that_names_less_than_the_file_holds(adapter):
    edit(adapter, target_modules=["c_attn"])
    assert "12 weights are left over by adapter_config.json" in refusal(adapter)
    edit(adapter, target_modules=["nowhere"])
    assert "does not fit" in refusal(adapter)
    edit(adapter, target_modules="((")
    assert "does not fit" in refusal(adapter)


@pytest.mark.parametrize("rank", [10**9, 2**31 - 1, 5])
def test_an_absurd_rank_is_compared_with_headers(adapter, rank):
    edit(adapter, r=rank)
    assert "has the shape [4, " in refusal(adapter) or "does not fit" in refusal(adapter)


def test_damaged_weights(adapter):
    file = adapter / "adapter_model.safetensors"
    for content in (b"", file.read_bytes()[:-1], b"garbage" * 9, (10**15).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        assert "truncated or corrupt" in refusal(adapter)


@pytest.mark.parametrize("key", OBEYED)
def test_an_odd_value_gets_one_line(adapter_config, key):
    holds, wanted = OBEYED[key]
    for odd in (0, -1, 10**10, 1.5, True, "8", [], [1], {"a": "b"}):
        edit(adapter_config, **{key: odd})
        if holds(odd):
            assert read_adapter_config(adapter_config)[key] == odd
        else:
            with pytest.raises(UserError, match=f"adapter_config.json: '{key}' must be {wanted}, not ") as error:
                read_adapter_config(adapter_config)
            assert "\n" not in str(error.value)


@pytest.fixture
def adapter_config(tmp_path):
    """A directory with the configuration that peft writes."""
    LoraConfig(r=4, target_modules=TARGETS).save_pretrained(tmp_path)
    return tmp_path


def test_every_key_of_peft_is_decided(adapter_config):
    """What peft writes where nothing was asked for is taken; what it may write besides is refused by name."""
    assert read_adapter_config(adapter_config)["target_modules"]
    names = json.loads((adapter_config / "adapter_config.json").read_text()).keys()
    for name in names - OBEYED.keys() - WITHOUT_EFFECT:
        shutil.rmtree(adapter_config)
        LoraConfig(r=4, target_modules=TARGETS).save_pretrained(adapter_config)
        edit(adapter_config, **{name: {"a": [1]}})
        with pytest.raises(UserError, match=rf"adapter_config.json: '{name}' .* is not supported"):
            read_adapter_config(adapter_config)


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_replication": [[0, 2]]},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"init_lora_weights": "pissa"},
        {"a_later_invention": 0.5},
        {"peft_type": "IA3"},
        {"peft_type": ["LORA"]},
    ],
    ids=str,
)
def test_what_would_be_ignored_or_run_is_refused(adapter_config, fields):
    edit(adapter_config, **fields)
    with pytest.raises(UserError, match=next(iter(fields))):
        read_adapter_config(adapter_config)


@pytest.mark.parametrize("base_path", [None, "", "x" * 5000, "a\0b", ["a"], "Qwen/Qwen-VL-Chat"], ids=str)
def test_a_base_that_is_not_there(adapter, base_path):
    edit(adapter, base_model_name_or_path=base_path)
    with pytest.raises(UserError) as error:
        check(adapter)
    assert "\n" not in str(error.value)


def test_a_vocabulary_of_another_model_in_the_adapter(adapter, base):
    lines = (base / "qwen.tiktoken").read_bytes().splitlines(keepends=True)
    (adapter / "qwen.tiktoken").write_bytes(b"".join([*lines, b"YWJj 256\n"]))
    assert "this is the vocabulary of another model" in refusal(adapter)


@pytest.mark.parametrize("form", ["safetensors", "bin", "config alone"])
def test_a_whole_model_is_used_alone_whatever_lies_beside_it(adapter, base, tmp_path, form):
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copy(adapter / "adapter_config.json", both)
    weights = load_file(adapter / "adapter_model.safetensors")
    if form == "safetensors":
        save_file(weights, both / "adapter_model.safetensors")
    elif form == "bin":
        torch.save(weights, both / "adapter_model.bin")
    checkpoint, settings = find_checkpoint(both, use_lora=False), GenerationSettings()
    check_checkpoint(checkpoint)
    loaded = load(Model(checkpoint, settings, settings, torch.device("cpu"), torch.float32), progress=False).module
    expected = load_file(base / "model.safetensors")
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())
    assert loaded.name_or_path == loaded.config.name_or_path == str(both)
    edit(both, base_model_name_or_path=str(both))
    with pytest.raises(UserError, match=r"has no weights|names itself as the base"):
        find_checkpoint(both, use_lora=True)
