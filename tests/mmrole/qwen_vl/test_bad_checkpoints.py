"""A checkpoint that cannot be used gets one line that names the file, and nothing is filled with random values."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from mmrole.qwen_vl import CheckpointError, QWenConfig, QWenLMHeadModel
from mmrole.qwen_vl.checkpoint_files import read_config, read_shapes

BIN_SHARD, BIN_INDEX = "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"
SAFE_SHARD, SAFE_INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


def to_safetensors(directory: Path) -> None:
    for index, shard in enumerate(sorted(directory.glob("*.bin")), start=1):
        save_file(torch.load(shard, weights_only=True), directory / f"model-{index:05d}-of-00002.safetensors")
        shard.unlink()
    text = (directory / BIN_INDEX).read_text().replace("pytorch_model-", "model-").replace(".bin", ".safetensors")
    (directory / SAFE_INDEX).write_text(text)
    (directory / BIN_INDEX).unlink()


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def one_line(load: Callable[[], object], *parts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture(params=["bin", "safetensors"])
def shard(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    """The second shard of a checkpoint in one of the two forms."""
    if request.param == "bin":
        return checkpoint / BIN_SHARD
    to_safetensors(checkpoint)
    return checkpoint / SAFE_SHARD


def index_of(shard: Path) -> Path:
    return shard.parent / (BIN_INDEX if shard.suffix == ".bin" else SAFE_INDEX)


def loaders(directory: Path) -> list[Callable[[], object]]:
    return [
        lambda: QWenLMHeadModel.from_pretrained(directory),
        lambda: AutoModelForCausalLM.from_pretrained(directory),
        lambda: AutoModel.from_pretrained(directory),
    ]


def test_missing_shard(shard):
    shard.unlink()
    for load in loaders(shard.parent):
        one_line(load, str(shard), "missing shard", index_of(shard).name)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.999])
def test_truncated_shard(shard, kept):
    content = shard.read_bytes()
    shard.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    for load in loaders(shard.parent):
        one_line(load, str(shard), "truncated or corrupt")


def test_one_byte_short(shard):
    shard.write_bytes(shard.read_bytes()[:-1])
    one_line(loaders(shard.parent)[0], str(shard), "truncated or corrupt")


@pytest.mark.parametrize("content", [b"\0" * 5000, b"garbage" * 1000, b"{}" * 40], ids=["zeros", "text", "braces"])
def test_garbage(shard, content):
    shard.write_bytes(content)
    one_line(loaders(shard.parent)[0], str(shard), "truncated or corrupt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_corrupt_header(shard):
    content = bytearray(shard.read_bytes())
    start = 8 if shard.suffix == ".safetensors" else content.index(b"data.pkl") + 70
    content[start : start + 40] = b"\xff" * 40
    shard.write_bytes(content)
    one_line(loaders(shard.parent)[0], str(shard), "truncated or corrupt")


def test_a_pointer_of_git_lfs(shard):
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3042507\n")
    one_line(loaders(shard.parent)[0], str(shard), "git lfs pull")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_damage_anywhere_is_one_line_or_no_damage(tmp_path, form):
    generator = random.Random(7)
    tensors = {"transformer.a": torch.ones(4), "b": torch.zeros(2, 3, dtype=torch.bfloat16)}
    file = tmp_path / ("pytorch_model.bin" if form == "bin" else "model.safetensors")
    if form == "bin":
        torch.save(tensors, file)
    else:
        file.write_bytes(save(tensors))
    sound, messages = file.read_bytes(), []
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(generator.choice([1, 2, 5])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        file.write_bytes(damaged)
        try:
            read_shapes(tmp_path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(file) in message and "\n" not in message for message in messages)


def test_not_a_dictionary_of_tensors(checkpoint):
    shard = checkpoint / BIN_SHARD
    for content in ([torch.ones(2)], {"state_dict": {"a": torch.ones(2)}}):
        torch.save(content, shard)
        one_line(loaders(checkpoint)[0], str(shard), "not a dictionary of tensors")


def test_an_index_that_names_absent_weights(shard):
    name = "transformer.h.9.ln_1.weight"
    edit(index_of(shard), lambda index: index["weight_map"].update({name: shard.name}))
    one_line(loaders(shard.parent)[0], str(shard), name, index_of(shard).name)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}'])
def test_a_broken_index(shard, content):
    index_of(shard).write_text(content)
    one_line(loaders(shard.parent)[0], str(index_of(shard)))


@pytest.mark.parametrize("place", ["../elsewhere.bin", "/etc/passwd", "sub/shard.bin"])
def test_an_index_that_leads_out_of_the_directory(shard, place):
    edit(index_of(shard), lambda index: index["weight_map"].update({"lm_head.weight": place}))
    one_line(loaders(shard.parent)[0], str(index_of(shard)), "not a file beside it")


def test_a_missing_weight(shard):
    # transformers would fill it with random values and only warn.
    weights = torch.load(shard, weights_only=True) if shard.suffix == ".bin" else load_file(shard)
    name = next(key for key in weights if "c_proj" in key)
    del weights[name]
    torch.save(weights, shard) if shard.suffix == ".bin" else save_file(weights, shard)
    edit(index_of(shard), lambda index: index["weight_map"].pop(name))
    one_line(loaders(shard.parent)[0], str(shard.parent), "1 weight missing", name)


def test_no_weights_at_all(checkpoint):
    for file in checkpoint.glob("pytorch_model*"):
        file.unlink()
    one_line(loaders(checkpoint)[0], str(checkpoint), "no weights")


def test_shapes_that_contradict_the_configuration(shard):
    edit(shard.parent / "config.json", lambda config: config.update(intermediate_size=1024))
    for load in loaders(shard.parent):
        one_line(load, str(shard.parent), "6 shapes contradict config.json", "[256, 384] in the file")
    edit(shard.parent / "config.json", lambda config: config.update(intermediate_size=768, num_hidden_layers=3))
    one_line(loaders(shard.parent)[0], str(shard.parent), "8 weights missing")


def test_ignore_mismatched_sizes_is_obeyed(checkpoint):
    edit(checkpoint / "config.json", lambda config: config.update(vocab_size=2400))
    one_line(loaders(checkpoint)[0], "2 shapes contradict config.json")
    model = QWenLMHeadModel.from_pretrained(checkpoint, ignore_mismatched_sizes=True)
    assert model.lm_head.weight.shape == (2400, 256)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_size": 200}, "hidden_size 200 is not kv_channels 64 x num_attention_heads 4"),
        ({"num_attention_heads": 5}, "hidden_size 256 is not kv_channels 64 x num_attention_heads 5"),
        ({"intermediate_size": 769}, "intermediate_size 769 is odd"),
        ({"rotary_pct": 0.02}, "rotary_pct 0.02 of kv_channels 64 is not an even number"),
        ({"rotary_pct": 2}, "rotary_pct 2 of kv_channels 64"),
        ({"vocab_size": 2216}, "image_start_id 2214 lies outside of vocab_size 2216"),
        ({"visual": {"output_dim": 512}}, "visual.output_dim 512 is not hidden_size 256"),
        ({"visual": {"heads": 7}}, "visual.width 96 is not a multiple of visual.heads 7"),
        ({"visual": {"image_size": 450}}, "visual.image_size 450 is not a multiple of patch_size 14"),
        ({"visual": {"output_dim": 64}, "hidden_size": 64, "kv_channels": 16}, "visual.output_dim 64 cannot be split"),
        ({"hidden_size": "big"}, "hidden_size in config.json is 'big'"),
        ({"seq_length": 0}, "seq_length in config.json is 0"),
        ({"visual": {"heads": 0}}, "visual.heads in config.json is 0"),
        ({"visual": {"layers": None}}, "visual.layers in config.json is None"),
        ({"rotary_emb_base": "x"}, "rotary_emb_base in config.json is 'x'"),
        ({"visual": {"mlp_ratio": "x"}}, "visual.mlp_ratio in config.json is 'x'"),
        ({"torch_dtype": "floaty"}, "config.json holds a value that cannot be used"),
    ],
    ids=str,
)
def test_sizes_that_are_none_or_contradict_each_other(checkpoint, change, part):
    def apply(config: dict) -> None:
        config["visual"] |= change.get("visual", {})
        config |= {key: value for key, value in change.items() if key != "visual"}

    edit(checkpoint / "config.json", apply)
    for load in (read_config, QWenConfig.from_pretrained, AutoConfig.from_pretrained, QWenLMHeadModel.from_pretrained):
        one_line(lambda load=load: load(checkpoint), str(checkpoint), part)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\ufffe{}"])
def test_a_configuration_that_is_no_json_object(checkpoint, content):
    (checkpoint / "config.json").write_text(content)
    for load in (read_config, QWenLMHeadModel.from_pretrained):
        one_line(lambda load=load: load(checkpoint), str(checkpoint / "config.json"))


def test_a_configuration_that_is_no_text(checkpoint):
    (checkpoint / "config.json").write_bytes(b"\xff\xfe\x00\x01")
    one_line(lambda: read_config(checkpoint), str(checkpoint / "config.json"), "not valid JSON")


def test_no_configuration(checkpoint):
    (checkpoint / "config.json").unlink()
    for load in (read_config, QWenLMHeadModel.from_pretrained):
        one_line(lambda load=load: load(checkpoint), str(checkpoint / "config.json"), "missing")


@pytest.mark.parametrize("model_type", ["llama", "qwen2_vl", "nonsense", None])
def test_another_model_type(checkpoint, model_type):
    edit(checkpoint / "config.json", lambda config: config.update(model_type=model_type))
    for load in (read_config, QWenLMHeadModel.from_pretrained):
        one_line(lambda load=load: load(checkpoint), str(checkpoint / "config.json"), f"model_type is {model_type!r}")


def test_a_text_only_qwen(complete_checkpoint):
    edit(complete_checkpoint / "config.json", lambda config: config.pop("visual"))
    auto_classes = (AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM)
    for load in (read_config, QWenLMHeadModel.from_pretrained, *(auto.from_pretrained for auto in auto_classes)):
        one_line(lambda load=load: load(complete_checkpoint), str(complete_checkpoint), "a text-only Qwen")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_tokenizer_configuration(checkpoint, content):
    (checkpoint / "tokenizer_config.json").write_text(content)
    one_line(lambda: read_config(checkpoint), str(checkpoint / "tokenizer_config.json"))


def test_a_missing_directory(tmp_path):
    for load in (read_config, QWenLMHeadModel.from_pretrained):
        one_line(lambda load=load: load(tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such directory")
    (tmp_path / "file").write_text("")
    one_line(lambda: read_config(tmp_path / "file"), str(tmp_path / "file"), "no such directory")


def test_the_one_form_that_is_asked_for(checkpoint):
    one_line(lambda: QWenLMHeadModel.from_pretrained(checkpoint, use_safetensors=True), str(checkpoint), "no weights")
    to_safetensors(checkpoint)
    one_line(lambda: QWenLMHeadModel.from_pretrained(checkpoint, use_safetensors=False), str(checkpoint), "no weights")
    assert QWenLMHeadModel.from_pretrained(checkpoint, use_safetensors=True).lm_head.weight.shape == (2304, 256)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"layers": 1}], ids=["blocks", "vision blocks"])
def test_a_configuration_of_a_smaller_model(checkpoint, change):
    edit(checkpoint / "config.json", lambda c: (c["visual"] if "layers" in change else c).update(change))
    for load in loaders(checkpoint):
        one_line(load, str(checkpoint), "config.json has no place for")


def test_a_vision_tower_without_one_of_its_fields(checkpoint):
    edit(checkpoint / "config.json", lambda c: c["visual"].pop("heads"))
    for load in loaders(checkpoint):
        one_line(load, "`visual` in config.json has no 'heads'")


def test_shards_from_before_the_zip_format_load(checkpoint):
    for file in checkpoint.glob("*.bin"):
        torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert QWenLMHeadModel.from_pretrained(checkpoint, dtype=torch.float32).config.num_hidden_layers == 2


def test_a_tokenizer_of_its_own_in_a_subfolder(checkpoint, tmp_path):
    inner = tmp_path / "outer" / "inner"
    checkpoint.rename(inner.parent.mkdir() or inner)
    planted = {"tokenizer_class": "Foo", "auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}}
    (inner / "tokenizer_config.json").write_text(json.dumps(planted))
    (inner.parent / "tokenization_x.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    one_line(
        lambda: AutoTokenizer.from_pretrained(inner.parent, subfolder="inner", trust_remote_code=True),
        "tokenizer of its own",
    )
    assert not (tmp_path / "marker").exists()


def test_int32_labels_and_a_mask_of_the_new_positions_only(checkpoint):
    model = QWenLMHeadModel.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.arange(1, 12, dtype=torch.int32)[None]
    assert model(ids, labels=ids).loss == model(ids.long(), labels=ids.long()).loss
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="11 past and 2 new ones"):
        model(ids[:, :2], attention_mask=torch.ones(1, 2), past_key_values=cache)
