"""finetune.py on transformers' vision-language models: results that load without this project, and runs that go on."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.training_runs import Run
from PIL import Image
from safetensors.torch import load_file, save_file

from mmrole.base.errors import UserError
from mmrole.data.messages import one_turn
from mmrole.data.requests import GenerationSettings
from mmrole.models.checkpoints import Checkpoint, find_checkpoint
from mmrole.models.loading import Model, load
from mmrole.training.finetuning import main

QUESTION = "What do you see?"
# Another process that has transformers alone; torchvision, which AutoProcessor may want, is not here.
PLAIN = """
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
model, adapter, ids, picture, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter or model)
assert tokenizer.chat_template
module = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
if adapter:
    from peft import PeftModel
    module = PeftModel.from_pretrained(module, adapter)
pixels = AutoImageProcessor.from_pretrained(adapter or model, backend="pil")(Image.open(picture), return_tensors="pt")
ids = torch.load(ids)
shows = {"mm_token_type_ids": (ids == module.config.image_token_id).long()} if "image_grid_thw" in pixels else {}
with torch.no_grad():
    logits = module.eval()(input_ids=ids, **pixels, **shows).logits
torch.save(logits[0], out)
assert not [name for name in sys.modules if name.startswith("mmrole")]
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vlm_training") / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (56, 84, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def make_vlm_run(repository, tiny_vlm, pictures) -> Callable[..., Run]:
    """Makes runs on a kind's checkpoint, with four samples a step: half of them have a picture."""
    rows = []
    for number in range(16):
        shown = f"Picture 1: <img>images/{number // 2 % 2}.png</img>\n" if number % 2 else ""
        question = {"from": "user", "value": f"{shown}{'You are a sailor. ' * 20}{QUESTION} {number}"}
        rows.append(
            {"id": str(number), "conversations": [question, {"from": "assistant", "value": f"I see {number} whales."}]}
        )
    data = pictures.parent / "train.json"
    data.write_text(json.dumps(rows))

    def make(kind: str, output_dir: Path, *flags: object, processes: int = 1, **environment: str) -> Run:
        common = {
            "--model_name_or_path": tiny_vlm(kind),
            "--data_path": data,
            "--image_dir": pictures,
            "--use_cpu": True,
            "--per_device_train_batch_size": 4 // processes,
            "--learning_rate": 1e-3,
            "--logging_steps": 1,
            "--report_to": "none",
        }
        given = [str(item) for pair in common.items() for item in pair]
        return Run(repository, output_dir, [*given, *map(str, flags)], processes, environment, port=29655)

    return make


def logits(checkpoint: Checkpoint, picture: Path, ids_file: Path) -> torch.Tensor:
    """What this project computes for a prompt, whose ids it writes."""
    unused = GenerationSettings()
    model = load(Model(checkpoint, unused, unused, torch.device("cpu"), torch.float32), progress=False)
    encoded = model.family.encode(one_turn("You are a sailor.", picture, QUESTION))
    torch.save(torch.from_numpy(encoded.input_ids).long()[None], ids_file)
    module = model.module
    module.set_attn_implementation("sdpa")
    ids = torch.load(ids_file)
    inputs = dict(model.family.preprocess([picture]))
    if model.family.position_rows == 3:
        inputs["mm_token_type_ids"] = (ids == module.config.image_token_id).long()
    with torch.no_grad():
        return module(input_ids=ids, **inputs).logits[0]


def plain_logits(folder: Path, model: Path, picture: Path, adapter: Path | None = None) -> torch.Tensor:
    """What transformers, with PEFT for an adapter, computes for these ids in a process of its own."""
    out = folder / "logits.pt"
    command = [sys.executable, "-c", PLAIN, str(model), "" if adapter is None else str(adapter)]
    done = subprocess.run(
        [*command, str(folder / "ids.pt"), str(picture), str(out)], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out)


def test_a_trained_model_loads_in_transformers_alone(make_vlm_run, tiny_vlm, pictures, tmp_path):
    run = make_vlm_run("qwen3_vl", tmp_path / "out", "--max_steps", 2, "--max_pixels", 9000, "--freeze", "vision")
    assert main(run.command()[2:]) == 0
    picture, before = pictures / "0.png", tiny_vlm("qwen3_vl")
    expected = logits(Checkpoint(run.output_dir), picture, tmp_path / "ids.pt")
    found = plain_logits(tmp_path, run.output_dir, picture)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (logits(Checkpoint(before), picture, tmp_path / "other.pt")[-1] - expected[-1]).abs().max() > 1e-3
    assert (run.output_dir / "config.json").read_bytes() == (before / "config.json").read_bytes()
    assert json.loads((run.output_dir / "preprocessor_config.json").read_text())["max_pixels"] == 9000
    assert run.log()[0] != run.log()[1]
    other = make_vlm_run("qwen3_vl", run.output_dir, "--max_steps", 3)
    with pytest.raises(UserError, match=r"was trained with --max_pixels 9000, this command has none; give the same"):
        main(other.command()[2:])


def test_adapters_load_in_peft_alone_and_merge_with_every_file(make_vlm_run, tiny_vlm, pictures, tmp_path, repository):
    run = make_vlm_run(
        "gemma3", tmp_path / "out", "--use_lora", True, "--max_steps", 2, "--gradient_checkpointing", True
    )
    assert main(run.command("--checkpoint_layers", 2)[2:]) == 0
    picture, base = pictures / "0.png", tiny_vlm("gemma3")
    expected = logits(find_checkpoint(run.output_dir, use_lora=True), picture, tmp_path / "ids.pt")
    found = plain_logits(tmp_path, base, picture, run.output_dir)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (logits(Checkpoint(base), picture, tmp_path / "other.pt")[-1] - expected[-1]).abs().max() > 1e-4

    further = make_vlm_run("gemma3", tmp_path / "further", "--model_name_or_path", run.output_dir)
    with pytest.raises(UserError, match=r"is a LoRA adapter .*; merge it, .*: python scripts/merge_lora.py --adapter "):
        main(further.command()[2:])
    (run.output_dir / "notes.txt").write_text("of the adapter")
    merge = ["scripts/merge_lora.py", "--adapter", str(run.output_dir), "--output_dir", str(tmp_path / "merged")]
    done = subprocess.run([sys.executable, *merge], cwd=repository, capture_output=True, text=True)
    said = f"{tmp_path}/merged: {run.output_dir} on {base} merged, in float32\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    merged = logits(Checkpoint(tmp_path / "merged"), picture, tmp_path / "merged.pt")
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert names == {file.name for file in base.iterdir()} | {"notes.txt"}
    for name in names - {"config.json", "model.safetensors", "notes.txt"}:
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


def test_killed_and_gone_on(make_vlm_run, tmp_path, capsys):
    flags = ("--max_steps", 5, "--save_steps", 2, "--freeze", "language")
    whole = make_vlm_run("llava", tmp_path / "whole", *flags)
    assert main(whole.command()[2:]) == 0
    killed = make_vlm_run("llava", tmp_path / "killed", *flags)
    killed.kill_after_step(3)
    assert main(killed.command()[2:]) == 0
    assert f"going on from {killed.output_dir}/checkpoint-2: 2 of 5 steps are done" in capsys.readouterr().out
    assert killed.log() == whole.log()
    weights = [(run.output_dir / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]


def test_what_cannot_be_learned_is_refused_before_the_model_loads(make_vlm_run, tiny_vlm, pictures, tmp_path, capsys):
    rows = json.loads((pictures.parent / "train.json").read_text())
    (tmp_path / "plain.json").write_text(json.dumps(rows[::2]))
    run = make_vlm_run("llava", tmp_path / "out", "--data_path", tmp_path / "plain.json", "--max_steps", 1)
    with pytest.raises(UserError, match=r"--freeze vision,language trains what sees pictures alone, and no sample of "):
        main(run.command("--freeze", "vision,language")[2:])
    with pytest.raises(UserError, match=r"--model_max_length 40 cuts each sample of .*plain.json before anything that"):
        main(run.command("--model_max_length", 40)[2:])
    short = shutil.copytree(tiny_vlm("llava"), tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 100
    (short / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"--model_max_length 8,192 is more than the 100 positions of the model, and the "
    ):
        main(run.command("--model_name_or_path", short)[2:])
    assert main(run.command()[2:]) == 0
    assert "\n8 samples have no system message, which prompts for answers and reviews have; " in capsys.readouterr().out


def test_bfloat16_on_the_cpu_learns_as_float32_does(make_vlm_run, tiny_vlm, tmp_path):
    runs = [
        make_vlm_run("llava", tmp_path / name, "--max_steps", 3, "--freeze", "none", "--bf16", bf16)
        for name, bf16 in (("float32", False), ("bfloat16", True))
    ]
    assert [main(run.command()[2:]) for run in runs] == [0, 0]
    assert runs[1].log() == pytest.approx(runs[0].log(), rel=0.02)
    assert runs[1].log() != runs[0].log()
    assert shapes(runs[1].output_dir) == shapes(tiny_vlm("llava"))  # the weights themselves stay in float32


def torch_adam(repository: Path, stage: int, folder: Path) -> Path:
    """The configuration of a stage of ZeRO with torch's optimizer, which is not built first."""
    config = json.loads((repository / f"finetune/ds_config_zero{stage}.json").read_text())
    config["optimizer"]["params"]["torch_adam"] = True
    (folder / "ds_config.json").write_text(json.dumps(config))
    return folder / "ds_config.json"


def shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (weight.shape, weight.dtype) for name, weight in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_of_zero_in_bfloat16_have_the_names_of_the_models(make_vlm_run, tiny_vlm, repository, tmp_path, stage):
    """Tied ones are saved once."""
    zero = ("--deepspeed", torch_adam(repository, stage, tmp_path), "--bf16", True)
    run = make_vlm_run("gemma3", tmp_path / "out", *zero, "--max_steps", 2, "--save_steps", 1, DS_ACCELERATOR="cpu")
    assert run.finish() == 0, run.said
    expected = {name: (shape, torch.bfloat16) for name, (shape, _) in shapes(tiny_vlm("gemma3")).items()}
    assert shapes(run.output_dir) == shapes(run.output_dir / "checkpoint-1") == expected
    assert run.log()[0] != run.log()[1]


@pytest.mark.long
def test_it_is_said_that_experts_get_no_adapters(make_vlm_run, tmp_path, capsys):
    run = make_vlm_run("qwen3_vl_moe", tmp_path / "out", "--max_steps", 1, "--use_lora", True)
    assert main(run.command()[2:]) == 0
    assert "note: the experts of this model get no adapters\n" in capsys.readouterr().out
    adapted = load_file(run.output_dir / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapted} == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.long
def test_experts_with_zero3_are_those_of_published_files(make_vlm_run, tiny_vlm, repository, tmp_path):
    kept, published = tiny_vlm("qwen3_vl_moe"), tmp_path / "published"
    shutil.copytree(kept, published)
    weights = load_file(kept / "model.safetensors")
    experts = {name: weight.mT.contiguous() for name, weight in weights.items() if ".experts." in name}
    save_file(weights | experts, published / "model.safetensors", {"format": "pt"})
    zero3 = ("--deepspeed", torch_adam(repository, 3, tmp_path), "--max_steps", 1)
    run = make_vlm_run("qwen3_vl_moe", tmp_path / "out", *zero3, DS_ACCELERATOR="cpu")
    assert run.finish() != 0
    assert f"error: {kept}: its weights cannot be loaded (" in run.said
    assert "not as transformers saves them; use ZeRO-2" in run.said
    assert run.finish("--model_name_or_path", published) == 0, run.said
    assert shapes(run.output_dir) == shapes(published)


@pytest.mark.long
def test_a_model_that_reads_no_trees_learns_from_one_sample_after_another(make_vlm_run, tmp_path, capsys):
    runs = [
        make_vlm_run("qwen3_5", tmp_path / name, "--max_steps", 3, "--save_steps", 2, "--prompt_tree", trees)
        for name, trees in (("trees", True), ("none", False))
    ]
    for run in runs:
        assert main(run.command()[2:]) == 0
        said = capsys.readouterr().out
        assert "note: prompt trees are not exact with this model (logits differ by" in said
    assert runs[0].log() == runs[1].log()


@pytest.mark.long
@pytest.mark.parametrize(("stage", "kind"), [(2, "gemma3"), (3, "qwen3_vl")])  # whose weights are tied
def test_killed_and_gone_on_with_zero(make_vlm_run, tiny_vlm, repository, tmp_path, stage, kind):
    zero = ("--deepspeed", torch_adam(repository, stage, tmp_path), "--gradient_checkpointing", True)
    flags = (*zero, "--max_steps", 5, "--save_steps", 2)
    deepspeed = {"processes": 2, "DS_ACCELERATOR": "cpu"}
    whole = make_vlm_run(kind, tmp_path / "whole", *flags, **deepspeed)
    assert whole.finish() == 0, whole.said
    killed = make_vlm_run(kind, tmp_path / "killed", *flags, **deepspeed)
    killed.kill_after_step(3)
    assert killed.finish() == 0, killed.said
    assert killed.log() == whole.log()
    assert shapes(killed.output_dir) == shapes(tiny_vlm(kind))
    weights = [(run.output_dir / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]
