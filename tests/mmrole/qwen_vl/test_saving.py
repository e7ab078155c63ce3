"""`save_pretrained` writes the original layout; adapters; resized embeddings."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

from mmrole.qwen_vl import QWenLMHeadModel, QWenModel

pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing:FutureWarning")  # peft asks for it

LORA_TARGETS = ["c_attn", "attn.c_proj", "w1", "w2"]  # the published ones


def saved_names(directory: Path) -> set[str]:
    names: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.keys())
    return names


def assert_same(model: torch.nn.Module, other: torch.nn.Module) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_saved_and_loaded_again(mini, fresh, tmp_path, dtype):
    model = fresh(dtype=dtype)
    model.save_pretrained(tmp_path)
    index = json.loads((mini.checkpoint / "pytorch_model.bin.index.json").read_text())
    assert saved_names(tmp_path) == set(index["weight_map"])
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path), model)
    assert not list(tmp_path.glob("*.py")) + list(tmp_path.glob("*.bin"))


def test_the_saved_configuration_has_the_originals_fields(mini, fresh, tmp_path):
    fresh(dtype="auto").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    original = dict(mini.config)
    for key in ("auto_map", "_name_or_path"):
        del original[key]
    version = "transformers_version"
    assert {**saved, version: ""} == {**original, version: ""}
    assert saved["torch_dtype"] == "bfloat16"


def test_sharded_saving(mini, fresh, tmp_path):
    model = fresh()
    model.save_pretrained(tmp_path, max_shard_size="2MB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 4
    assert set(index["weight_map"]) == set(model.state_dict())
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), model)


def test_the_base_model_alone(fresh, tmp_path):
    model = fresh()
    model.transformer.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(base) is QWenModel
    assert_same(base, model.transformer)


def test_the_generation_configuration_survives(fresh, tmp_path):
    model = fresh()
    model.save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path)
    expected = {"chat_format": "chatml", "max_window_size": 6144, "do_sample": True, "top_p": 0.3, "top_k": 0}
    assert {key: getattr(loaded, key) for key in expected} == expected
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.max_new_tokens) == (2000, 2000, 512)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.chat_format == "chatml"


def test_saving_after_switching_to_greedy_decoding(fresh, tmp_path):
    # What MMRole's --no_random does. transformers refuses to save top_p beside do_sample=False (spec §9 item 10).
    model = fresh()
    model.generation_config.do_sample = False
    model.save_pretrained(tmp_path)
    assert (model.generation_config.top_p, model.generation_config.top_k) == (0.3, 0), "the model itself is unchanged"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert loaded.do_sample is False
    assert (loaded.top_p, loaded.top_k, loaded.max_window_size) == (None, None, 6144)


@pytest.mark.parametrize("rows", [2400, 2250])
def test_resized_embeddings(mini, fresh, tmp_path, rows):
    model = fresh()
    inputs = mini.inputs("image_1")
    before = model(**inputs).logits
    model.resize_token_embeddings(rows)
    assert (model.config.vocab_size, model.transformer.wte.num_embeddings) == (rows, rows)
    kept = min(rows, 2304)
    torch.testing.assert_close(model(**inputs).logits[..., :kept], before[..., :kept], atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    assert_same(QWenLMHeadModel.from_pretrained(tmp_path, dtype=torch.float32), model)


def test_tied_embeddings(fresh, tmp_path):
    model = fresh()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in saved_names(tmp_path)
    loaded = QWenLMHeadModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def lora(model: QWenLMHeadModel) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(
        model, LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    )


@pytest.fixture
def trained(mini, fresh, gradients) -> PeftModel:
    """A LoRA model after three steps on one sample."""
    model = lora(fresh()).train()
    inputs = mini.inputs("train_image") | {"labels": mini.get("train_image/labels").long()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0] - 1
    return model.eval()


def test_lora_attaches_to_the_language_model_only(fresh):
    model = lora(fresh())
    places = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2")
    assert places == {f"base_model.model.transformer.h.{i}.{layer}" for i in range(2) for layer in layers}
    assert all(".lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_lora_trains_saves_loads_and_merges(mini, fresh, trained, tmp_path):
    inputs = mini.inputs("image_1")
    with torch.no_grad():
        logits = trained(**inputs).logits
        assert (logits - fresh()(**inputs).logits).abs().max() > 0.1
        trained.save_pretrained(tmp_path / "adapter")
        loaded = [
            PeftModel.from_pretrained(fresh(), tmp_path / "adapter"),
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32),
            AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32),
            QWenLMHeadModel.from_pretrained(tmp_path / "adapter", dtype=torch.float32),
        ]
        for model in loaded:
            torch.testing.assert_close(model(**inputs).logits, logits, atol=mini.TIGHT, rtol=0)
        merged = loaded[0].merge_and_unload()
        assert type(merged) is QWenLMHeadModel
        torch.testing.assert_close(merged(**inputs).logits, logits, atol=mini.ATOL, rtol=0)
        merged.save_pretrained(tmp_path / "merged")
        assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32), merged)


def test_a_lora_model_generates(mini, trained):
    ids = mini.ids("image_1")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": mini.pixels(ids)}
    options = {"do_sample": False, "top_p": None, "top_k": None, "max_new_tokens": 4}
    output = trained.generate(**inputs, **options)
    with trained.disable_adapter():
        original = trained.generate(**inputs, **options)
    assert output.shape[1] > ids.shape[1]
    assert output.tolist() != original.tolist()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad", "ignore:`:FutureWarning")
def test_lora_with_gradient_checkpointing(mini, fresh, use_reentrant, gradients):
    model = lora(fresh()).train()
    inputs = mini.inputs("train_image") | {"labels": mini.get("train_image/labels").long()}
    model(**inputs).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)
