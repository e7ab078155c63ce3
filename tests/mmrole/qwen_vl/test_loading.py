"""Loading in every layout, dtype and placement: every weight is the file's, and nothing depends on construction."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from mmrole.qwen_vl import QWenConfig, QWenLMHeadModel, QWenModel, QWenTokenizer
from mmrole.qwen_vl.checkpoint_files import expected_shapes

SPECIAL_TOKENS_MAP = {"pad_token": "<|endoftext|>"}


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    """What the .bin shards of a directory hold, in bfloat16."""
    shards = sorted(directory.glob("pytorch_model-*.bin"))
    return {key: value for shard in shards for key, value in torch.load(shard, weights_only=True).items()}


def assert_holds(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert set(state) == set(weights)
    for key, value in weights.items():
        assert torch.equal(state[key], value.to(state[key].dtype)), key


def change_layout(directory: Path, layout: str) -> None:
    """Turns the .bin shards of a checkpoint into another layout that was in use."""
    weights = weights_of(directory)
    if layout == "bin_shards":
        return
    if layout == "with_leftovers":
        leftovers = {"attn.masked_bias": torch.tensor(-1e4), "attn.rotary_emb.inv_freq": torch.zeros(32)}
        shard = directory / "pytorch_model-00001-of-00002.bin"
        first = torch.load(shard, weights_only=True)
        extra = {f"transformer.h.{i}.{key}": value for i in range(2) for key, value in leftovers.items()}
        torch.save(first | extra, shard)
        index_file = directory / "pytorch_model.bin.index.json"
        index = json.loads(index_file.read_text())
        index["weight_map"] |= dict.fromkeys(extra, shard.name)
        index_file.write_text(json.dumps(index))
        return
    for file in directory.glob("pytorch_model*"):
        file.unlink()
    if layout == "one_bin":
        torch.save(weights, directory / "pytorch_model.bin")
    elif layout == "one_safetensors":
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    elif layout == "safetensors_shards":
        half = sorted(weights)[: len(weights) // 2]
        parts = [{key: weights[key] for key in half}, {key: weights[key] for key in weights if key not in half}]
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for part, name in zip(parts, names, strict=True):
            save_file(part, directory / name, metadata={"format": "pt"})
        weight_map = {key: name for part, name in zip(parts, names, strict=True) for key in part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["bin_shards", "one_bin", "one_safetensors", "safetensors_shards", "with_leftovers"])
def test_auto_classes_load_every_layout(mini, checkpoint, layout):
    weights = weights_of(checkpoint)
    change_layout(checkpoint, layout)
    config = AutoConfig.from_pretrained(checkpoint)
    assert type(config) is QWenConfig
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert type(model) is QWenLMHeadModel
    assert not model.training
    assert_holds(model, weights)
    assert mini.difference("text_short", model(**mini.inputs("text_short")).logits) < mini.TIGHT
    base = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    assert type(base) is QWenModel
    prefix = "transformer."
    assert_holds(base, {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)})


def test_a_directory_of_the_old_trainer(complete_checkpoint):
    # transformers 4.32 writes no code files, no auto_map for the tokenizer, but a pad token.
    (complete_checkpoint / "special_tokens_map.json").write_text(json.dumps(SPECIAL_TOKENS_MAP))
    (complete_checkpoint / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
                "clean_up_tokenization_spaces": True,
                "model_max_length": 3072,
                "padding_side": "right",
                "tokenizer_class": "QWenTokenizer",
            }
        )
    )
    assert_holds(AutoModelForCausalLM.from_pretrained(complete_checkpoint), weights_of(complete_checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(complete_checkpoint)
    assert type(tokenizer) is QWenTokenizer
    assert tokenizer.pad_token_id == tokenizer.eod_id == 2000


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float64, torch.float64),
        ("float32", torch.float32),
        ("auto", torch.bfloat16),
        (None, torch.bfloat16),
    ],
)
def test_dtype(mini, fresh, dtype, expected):
    model = fresh(dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert_holds(model, weights_of(mini.checkpoint))
    logits = model(**mini.inputs("image_1"), logits_to_keep=8).logits
    assert logits.dtype == expected
    assert mini.difference("image_1", logits.float()) < (0.2 if expected.itemsize == 2 else mini.TIGHT)


def test_half_is_used_throughout(mini, fresh):
    assert fresh().half()(**mini.inputs("text_short")).logits.dtype == torch.float16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_float64_stays_float64(mini, models, attention):
    model, inputs = models("mini", attention, torch.float64), mini.inputs("image_2")
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: (output[0] if isinstance(output, tuple) else output)})
        )
        for name, module in model.named_modules()
        if name
    ]
    logits = model(**inputs, logits_to_keep=4).logits
    for hook in hooks:
        hook.remove()
    tensors = {name: output for name, output in seen.items() if isinstance(output, torch.Tensor)}
    assert len(tensors) > 40
    assert {output.dtype for output in tensors.values()} == {torch.float64}
    cache = model(**mini.inputs("text_short")).past_key_values
    assert cache.layers[0].keys.dtype == cache.layers[0].values.dtype == torch.float64
    assert mini.difference("image_2", logits) < 1e-4
    other = models("mini", "eager" if attention == "sdpa" else "sdpa", torch.float64)(**inputs, logits_to_keep=4).logits
    torch.testing.assert_close(logits, other, atol=1e-10, rtol=0)
    assert model(**inputs, labels=inputs["input_ids"]).loss.dtype == torch.float64


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, "cpu"], ids=str)
def test_device_map(mini, fresh, device_map):
    model = fresh(device_map=device_map)
    assert_holds(model, weights_of(mini.checkpoint))
    logits = model(**mini.inputs("image_1"), logits_to_keep=8).logits
    assert mini.difference("image_1", logits) < mini.TIGHT


def test_layers_offloaded_to_disk(mini, fresh, tmp_path):
    placed = dict.fromkeys(("lm_head", "transformer.wte", "transformer.ln_f", "transformer.h.0"), "cpu")
    placed |= {"transformer.h.1": "disk", "transformer.visual": "disk"}
    model = fresh(device_map=placed, offload_folder=str(tmp_path))
    logits = model(**mini.inputs("image_1"), logits_to_keep=8).logits
    assert mini.difference("image_1", logits) < mini.TIGHT


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_attention_implementation(fresh, attention):
    model = fresh(attn_implementation=attention)
    assert model.config._attn_implementation == attention
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_a_model_built_on_the_meta_device(mini):
    config = AutoConfig.from_pretrained(mini.checkpoint)
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
    assert not list(model.buffers()), "rotary tables and log-n factors are computed, so that none can be lost"
    model.to_empty(device="cpu")
    model.load_state_dict(weights_of(mini.checkpoint))
    model = model.float().eval()
    for case in ("text_short", "length_1025", "image_1"):
        logits = model(**mini.inputs(case), logits_to_keep=mini.rows(case)).logits
        assert mini.difference(case, logits) < mini.TIGHT


def test_a_state_dict_instead_of_files(mini):
    weights = weights_of(mini.checkpoint)
    config = AutoConfig.from_pretrained(mini.checkpoint)
    model = QWenLMHeadModel.from_pretrained(None, config=config, state_dict=dict(weights), dtype=torch.float32)
    assert_holds(model, weights)
    assert not model.transformer.visual.attn_pool.pos_embed.requires_grad


def test_loading_info(mini):
    _, info = QWenLMHeadModel.from_pretrained(mini.checkpoint, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def test_everything_but_the_resamplers_positions_is_trainable(mini):
    config = AutoConfig.from_pretrained(mini.checkpoint)
    for model in (QWenLMHeadModel(config), QWenLMHeadModel.from_pretrained(mini.checkpoint)):
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {"transformer.visual.attn_pool.pos_embed"}


def test_initial_values(mini):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(mini.checkpoint)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model) is QWenLMHeadModel
    state = model.state_dict()
    std = config.initializer_range
    expected = {
        "transformer.wte.weight": std,
        "lm_head.weight": std,
        "transformer.h.0.attn.c_attn.weight": std,
        "transformer.h.0.attn.c_proj.weight": std / 2,  # GPT-2's rule, two layers
        "transformer.h.1.mlp.c_proj.weight": std / 2,
        "transformer.visual.conv1.weight": std,
        "transformer.visual.positional_embedding": 96**-0.5,
        "transformer.visual.proj": 256**-0.5,
        "transformer.visual.attn_pool.query": std,
        "transformer.visual.attn_pool.attn.in_proj_weight": std,
    }
    for key, value in expected.items():
        assert abs(float(state[key].std()) / value - 1) < 0.05, key
    for key, value in state.items():
        if key.endswith("bias"):
            assert (value == 0).all(), key
        elif "ln_" in key:
            assert (value == 1).all(), key
    golden = mini.tensors["visual/resampler_pos_embed_exact"]
    torch.testing.assert_close(state["transformer.visual.attn_pool.pos_embed"][::4].float(), golden, atol=4e-3, rtol=0)
    assert all(value.isfinite().all() for value in state.values())


def test_parameters_of_qwen_vl_chat():
    # The published index: 853 tensors, 9,656,935,168 values (spec §2.1).
    shapes = expected_shapes(QWenLMHeadModel, QWenConfig())
    assert len(shapes) == 853
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 9_656_935_168
    visual = {key: shape for key, shape in shapes.items() if key.startswith("transformer.visual.")}
    assert sum(torch.Size(shape).numel() for shape in visual.values()) == 1_935_610_624
    assert shapes["transformer.visual.transformer.resblocks.47.mlp.c_fc.weight"] == (8192, 1664)
    assert shapes["transformer.h.31.mlp.w1.weight"] == (11008, 4096)


def test_a_tower_as_wide_as_the_model_has_no_projection(mini):
    config = AutoConfig.from_pretrained(mini.checkpoint)
    config.visual["width"], config.visual["heads"] = 256, 4
    model = QWenLMHeadModel(config).eval()
    assert not any("kv_proj" in key for key in model.state_dict())
    assert model.get_image_features(torch.zeros(1, 3, 448, 448)).shape == (1, 256, 256)


def test_the_configuration_goes_round(mini):
    config = AutoConfig.from_pretrained(mini.checkpoint)
    assert config.to_dict() == QWenConfig.from_dict(config.to_dict()).to_dict()
    assert QWenConfig(**mini.config).to_diff_dict() | {"auto_map": None} == config.to_diff_dict() | {"auto_map": None}
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin.to_dict() == config.to_dict()
        assert twin.visual is not config.visual
    assert QWenConfig().visual is not QWenConfig().visual
    assert QWenConfig().to_dict()["visual"]["width"] == 1664


def test_models_can_be_copied_and_pickled(mini, fresh):
    model = fresh()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**mini.inputs("text_short")).logits, model(**mini.inputs("text_short")).logits)


def test_paths_as_strings_and_subfolders(checkpoint):
    weights = weights_of(checkpoint)
    inner = checkpoint.parent / "outer" / "inner"
    shutil.copytree(checkpoint, inner)
    assert_holds(AutoModelForCausalLM.from_pretrained(str(inner)), weights)
    assert_holds(AutoModelForCausalLM.from_pretrained(inner.parent, subfolder="inner"), weights)
