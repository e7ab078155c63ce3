"""`scripts/make_tiny_checkpoint.py` writes checkpoints that load as published ones do, the same bytes every time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.scripts import load_script
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import mmrole.qwen_vl  # noqa: F401 - registers the auto classes
from mmrole.qwen_vl import bpe
from mmrole.qwen_vl.chat_format import ChatTurn
from mmrole.qwen_vl.processing import Chat, QWenProcessor

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_tiny_checkpoint.py"

TEXT = """"What do you see in the picture?" asked the captain. "A ship," said the sailor, "and a storm behind it."
The captain looked at the picture for a long time. "That is my ship," he said. "And that storm is why I am here."
船长看着照片，很久没有说话。"这是我的船。"他说。
"""

# Spec §2.1 at the default sizes: hidden 128, feed-forward 256; vision width 64, feed-forward int(64 * 4.9231).
LANGUAGE_LAYER = {
    "ln_1.weight": (128,),
    "attn.c_attn.weight": (384, 128),
    "attn.c_attn.bias": (384,),
    "attn.c_proj.weight": (128, 128),
    "ln_2.weight": (128,),
    "mlp.w1.weight": (256, 128),
    "mlp.w2.weight": (256, 128),
    "mlp.c_proj.weight": (128, 256),
}
VISION_LAYER = {
    "ln_1.weight": (64,),
    "ln_1.bias": (64,),
    "ln_2.weight": (64,),
    "ln_2.bias": (64,),
    "attn.in_proj.weight": (192, 64),
    "attn.in_proj.bias": (192,),
    "attn.out_proj.weight": (64, 64),
    "attn.out_proj.bias": (64,),
    "mlp.c_fc.weight": (315, 64),
    "mlp.c_fc.bias": (315,),
    "mlp.c_proj.weight": (64, 315),
    "mlp.c_proj.bias": (64,),
}
SINGLE = {
    "transformer.wte.weight": (640, 128),
    "transformer.ln_f.weight": (128,),
    "transformer.visual.positional_embedding": (256, 64),
    "transformer.visual.proj": (128, 128),
    "transformer.visual.conv1.weight": (64, 3, 14, 14),
    "transformer.visual.ln_pre.weight": (64,),
    "transformer.visual.ln_pre.bias": (64,),
    "transformer.visual.attn_pool.pos_embed": (256, 128),
    "transformer.visual.attn_pool.query": (256, 128),
    "transformer.visual.attn_pool.kv_proj.weight": (128, 64),
    "transformer.visual.attn_pool.attn.in_proj_weight": (384, 128),
    "transformer.visual.attn_pool.attn.in_proj_bias": (384,),
    "transformer.visual.attn_pool.attn.out_proj.weight": (128, 128),
    "transformer.visual.attn_pool.attn.out_proj.bias": (128,),
    "transformer.visual.attn_pool.ln_q.weight": (128,),
    "transformer.visual.attn_pool.ln_q.bias": (128,),
    "transformer.visual.attn_pool.ln_kv.weight": (128,),
    "transformer.visual.attn_pool.ln_kv.bias": (128,),
    "transformer.visual.ln_post.weight": (128,),
    "transformer.visual.ln_post.bias": (128,),
    "lm_head.weight": (640, 128),
}


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "story.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def flags(text) -> list[str]:
    return ["--train_vocab_on", str(text), "--vocab_size", "300", "--seed", "7"]


@pytest.fixture(scope="module")
def checkpoint(script, flags, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "new" / "tiny"
    assert script.main(["--output_dir", str(directory), *flags]) == 0
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_loads_and_answers(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert (config.vocab_size, config.image_start_id) == (640, 300 + 214)
    assert model.generation_config.eos_token_id == tokenizer.eod_id == 300
    assert tokenizer.decode(tokenizer.encode_ordinary(TEXT)) == TEXT

    inputs = QWenProcessor.from_pretrained(checkpoint)(
        Chat([ChatTurn("What do you see?", images=[Image.new("RGB", (40, 30), "orange")])])
    )
    output = model.generate(**inputs, max_new_tokens=48, min_new_tokens=48, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert len(set(answer.tolist())) >= 24
    assert answer.max() <= tokenizer.im_end_id
    assert tokenizer.decode(answer)


def test_parameters_are_those_of_the_original(checkpoint):
    expected = dict(SINGLE)
    for layer in range(2):
        expected |= {f"transformer.h.{layer}.{name}": shape for name, shape in LANGUAGE_LAYER.items()}
        blocks = f"transformer.visual.transformer.resblocks.{layer}"
        expected |= {f"{blocks}.{name}": shape for name, shape in VISION_LAYER.items()}
    state = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_configuration_files_are_those_of_the_original(checkpoint):
    golden = Path(__file__).resolve().parents[1] / "golden" / "ckpt_mini"
    for name, left_out in [
        ("config.json", {"_name_or_path", "auto_map"}),
        ("generation_config.json", set()),
        ("tokenizer_config.json", {"auto_map"}),
    ]:
        original = json.loads((golden / name).read_text(encoding="utf-8")).keys() - left_out
        assert original <= json.loads((checkpoint / name).read_text(encoding="utf-8")).keys(), name
        assert "auto_map" not in (checkpoint / name).read_text(encoding="utf-8")


def test_others_may_read_it_as_the_umask_says(checkpoint):
    assert len({file.stat().st_mode for file in checkpoint.iterdir() if file.is_file()}) == 1


def test_the_same_seed_gives_the_same_bytes(checkpoint, flags, tmp_path):
    command = [sys.executable, str(SCRIPT), "--output_dir", "again", *flags]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert contents(tmp_path / "again") == contents(checkpoint)
    assert done.stdout.splitlines()[-1].startswith("again: ")


def test_another_seed_gives_other_weights_alone(script, checkpoint, flags, tmp_path):
    assert script.main(["--output_dir", str(tmp_path / "other"), *flags[:-1], "8"]) == 0
    before, after = contents(checkpoint), contents(tmp_path / "other")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"model.safetensors"}


@pytest.mark.parametrize(("weights", "index"), [("bin", "pytorch_model.bin"), ("safetensors", "model.safetensors")])
def test_shards_hold_the_same_weights(script, checkpoint, flags, tmp_path, weights, index):
    assert script.main(["--output_dir", str(tmp_path), "--format", weights, "--max_shard_size", "500KB", *flags]) == 0
    shards = set(json.loads((tmp_path / f"{index}.index.json").read_text(encoding="utf-8"))["weight_map"].values())
    assert len(shards) > 1
    assert {file.name for file in tmp_path.glob("*model*")} == {*shards, f"{index}.index.json"}
    expected = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_first_lines_of_the_real_vocabulary(script, real_vocabulary, tmp_path):
    arguments = ["--vocab", str(real_vocabulary), "--vocab_lines", "2000", "--dtype", "float32", "--init_std", "0.02"]
    assert script.main(["--output_dir", str(tmp_path), *arguments]) == 0
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    # As in the reference checkpoint ckpt_mini, which has the same 2,000 lines.
    assert (config["vocab_size"], config["visual"]["image_start_id"]) == (2304, 2214)
    assert (config["torch_dtype"], config["initializer_range"]) == ("float32", 0.02)
    assert (tmp_path / "qwen.tiktoken").read_bytes() == b"".join(real_vocabulary.open("rb").readlines()[:2000])


def test_without_a_vocabulary_there_are_the_single_bytes(script, tmp_path):
    assert script.main(["--output_dir", str(tmp_path)]) == 0
    assert len(bpe.read_ranks(tmp_path / "qwen.tiktoken")) == 256


def test_a_checkpoint_is_replaced_only_on_demand(script, flags, tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path), *flags]
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert script.main([*arguments, "--format", "bin", "--max_shard_size", "500KB"]) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert script.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(tmp_path) in message
    assert "--overwrite" in message
    assert contents(tmp_path) == before

    assert script.main([*arguments, "--overwrite"]) == 0
    assert contents(tmp_path).keys() == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes.txt",
        "qwen.tiktoken",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hidden_size", "64"], "output_dim 64"),
        (["--num_attention_heads", "3"], "num_attention_heads 3"),
        (["--visual_heads", "5"], "visual.heads 5"),
        (["--image_size", "100"], "image_size 100"),
        (["--vocab", "absent.tiktoken"], "absent.tiktoken"),
        (["--vocab", "short.tiktoken", "--vocab_lines", "1000"], "short.tiktoken"),
        (["--train_vocab_on", "absent.txt", "--vocab_size", "300"], "absent.txt"),
        (["--train_vocab_on", "latin1.txt", "--vocab_size", "300"], "latin1.txt"),
        (["--max_shard_size", "plenty"], "plenty"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(script, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("latin1.txt").write_bytes("Fräulein".encode("latin1"))
    bpe.write_ranks("short.tiktoken", {bytes([byte]): byte for byte in range(256)})
    assert script.main(["--output_dir", "out", *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert {file.name for file in Path().iterdir()} == {"latin1.txt", "short.tiktoken"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vocab_size", "300"],
        ["--train_vocab_on", "a.txt"],
        ["--train_vocab_on", "a.txt", "--vocab_size", "255"],
        ["--train_vocab_on", "a.txt", "--vocab_size", "300", "--vocab", "b"],
        ["--vocab_lines", "300"],
        ["--num_hidden_layers", "0"],
    ],
)
def test_flags_that_do_not_go_together(script, tmp_path, arguments):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--output_dir", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2


def test_help_needs_no_torch():
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stopped:\n"
        "    sys.exit(stopped.code or 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output_dir" in done.stdout
