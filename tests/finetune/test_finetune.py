"""finetune.py in one process: flags, mistakes, what it trains, and that other scripts load the result."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from fixtures.scripts import load_script
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmrole.base.errors import UserError
from mmrole.qwen_vl import QWenLMHeadModel
from mmrole.training import run_checkpoints
from mmrole.training.arguments import parse_arguments
from mmrole.training.finetuning import main
from mmrole.training.old_flags import GONE, RENAMED, translate

OURS = (
    *("model_name_or_path", "data_path", "eval_data_path", "image_dir", "lazy_preprocess", "system_message"),
    *("model_max_length", "use_lora", "fix_vit", "prompt_tree", "max_batch_tokens", "cache_dir"),
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_weight_path", "lora_bias", "q_lora"),
)


@pytest.fixture
def train(make_run, tmp_path):
    """Runs finetune.py's main in this process; returns the run."""

    def call(*flags, name="run"):
        run = make_run(tmp_path / name, "--max_steps", 1)
        assert main(run.command(*flags)[2:]) == 0
        return run

    return call


def test_an_interrupted_run_says_where_it_goes_on(make_run, tmp_path):
    run = make_run(tmp_path / "run", "--max_steps", 500, "--save_steps", 2)
    process = run.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 4 of "):
            process.send_signal(signal.SIGINT)
            break
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, "".join(lines) + said
    assert "Traceback" not in said
    kept = re.search(r"^interrupted: the same command goes on from (.*)$", said, re.MULTILINE)[1]
    assert run_checkpoints.fault(Path(kept)) is None


def refused(call, *flags):
    with pytest.raises(UserError) as error:
        call(*flags)
    return str(error.value)


def test_help_explains_our_flags(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for flag in OURS:
        assert f"\n  --{flag} " in said or f"\n  --{flag}\n" in said, flag


def test_the_model_must_be_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--data_path", "train.json"])
    assert end.value.code == 2
    assert "--model_name_or_path" in capsys.readouterr().err


def test_flags_of_transformers_4_are_translated(tmp_path, capsys):
    published = "--evaluation_strategy no --warmup_ratio=0.01 --gradient_checkpointing True --lazy_preprocess True"
    flags = f"{published} --overwrite_output_dir True --adam_beta2 0.95 --report_to none --use_cpu True".split()
    arguments = parse_arguments(["--model_name_or_path", "m", "--data_path", "d", *flags])
    assert arguments.training.warmup_steps == 0.01
    assert arguments.training.gradient_checkpointing is True
    notes = capsys.readouterr().err.splitlines()
    translated = ["--evaluation_strategy", "--warmup_ratio", "--overwrite_output_dir"]
    assert [line.split()[1] for line in notes] == [*translated, "--lazy_preprocess"]
    assert translate(["--seed", "1"], {"seed"}) == (["--seed", "1"], [])
    assert not RENAMED.keys() & GONE.keys()


def test_samples_of_a_step_are_the_product_of_the_published_flags():
    flags = [
        "--per_device_train_batch_size",
        "8",
        "--gradient_accumulation_steps",
        "4",
        "--report_to",
        "none",
        "--use_cpu",
        "True",
    ]
    training = parse_arguments(["--model_name_or_path", "m", "--data_path", "d", *flags]).training
    assert training.samples_per_step == 32
    assert training.gradient_accumulation_steps == 1


def test_what_is_missing_is_named_in_a_line(train, tmp_path, tiny):
    assert "no such directory" in refused(train, "--model_name_or_path", tmp_path / "none")
    assert "nowhere.json" in refused(train, "--data_path", tmp_path / "nowhere.json")
    assert "--use_lora True" in refused(train, "--q_lora", "True")
    assert "needs --eval_data_path" in refused(train, "--eval_strategy", "steps")
    assert "torchrun" in refused(train, "--deepspeed", "finetune/ds_config_zero3.json")
    assert "longest sample" in refused(train, "--max_batch_tokens", "100")
    evaluation = ("--eval_data_path", tmp_path / "neither.json", "--eval_strategy", "epoch")
    both = refused(train, "--data_path", tmp_path / "nowhere.json", *evaluation)
    assert "nowhere.json" in both
    assert "neither.json" in both
    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    assert "model.safetensors" in refused(train, "--model_name_or_path", broken)
    words = shutil.copytree(tiny, tmp_path / "words")
    (words / "qwen.tiktoken").write_bytes((tiny / "qwen.tiktoken").read_bytes()[:-3] + b"\n\n")
    assert "qwen.tiktoken: line" in refused(train, "--model_name_or_path", words)


def test_what_libraries_would_refuse_is_said_before_the_model_loads(train, tmp_path, monkeypatch):
    def no_model(*arguments):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("mmrole.training.finetuning.load_model", no_model)
    lora = ("--use_lora", True, "--lora_target_modules")
    assert "the model has no such module; its own are attn.c_attn," in refused(train, *lora, "c_attn", "q_proj")
    assert "is not supported" in refused(train, *lora, "ln_1")
    assert "the LM head gets no adapter" in refused(train, *lora, "lm_head")
    assert "--lr_scheduler_type cosine_with_min_lr" in refused(train, "--lr_scheduler_type", "cosine_with_min_lr")
    assert "no effect" in refused(
        train, "--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"num_cycles": 2}'
    )
    assert "--optim_args momentum=0.5 has no effect" in refused(train, "--optim_args", "momentum=0.5")
    assert "--optim grokadamw: " in refused(train, "--optim", "grokadamw")
    assert "leaves nothing" in refused(train, "--dataloader_drop_last", True, "--per_device_train_batch_size", 1000)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/proc/none")
    assert "set another TENSORBOARD_LOGGING_DIR" in refused(train, "--report_to", "tensorboard")


def test_an_epoch_drops_its_last_step_if_it_is_asked_to(train, samples, capsys):
    train("--dataloader_drop_last", True, "--per_device_train_batch_size", len(samples) - 1)
    assert ": 1 steps an epoch of " in capsys.readouterr().out


def test_a_missing_reporter_is_named(train, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "wandb is not installed" in refused(train, "--report_to", "wandb")


def test_problems_of_data_and_images_are_listed_together(train, samples, tmp_path):
    damaged = json.loads(json.dumps(samples[:3]))
    damaged[0]["conversations"] = []
    damaged[1]["image"] = "Friends/none.jpg"
    damaged[1]["conversations"][0]["value"] = "Picture 1: <img>images/Friends/none.jpg</img>\nWho is it?"
    damaged[2]["conversations"][0]["value"] = "Picture 1: <img>images/../secret.jpg</img>\nWho is it?"
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    said = refused(train, "--data_path", tmp_path / "damaged.json")
    for index in range(3):
        assert f"damaged.json[{index}]" in said


def test_a_loss_that_is_not_finite_stops_with_step_and_samples(train, tiny, tmp_path, samples):
    broken = shutil.copytree(tiny, tmp_path / "nan")
    model = QWenLMHeadModel.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    model.save_pretrained(broken)
    said = refused(train, "--model_name_or_path", broken)
    assert said.startswith("step 1: the loss is nan")
    assert any(sample["id"] in said for sample in samples)


def test_a_gradient_that_is_not_finite_stops_before_it_is_saved(train, tiny, tmp_path):
    broken = shutil.copytree(tiny, tmp_path / "steep")
    model = QWenLMHeadModel.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 1e22
    model.save_pretrained(broken)
    said = refused(train, "--model_name_or_path", broken)
    assert said.startswith("step 1: the norm of the gradient is ")
    assert "train.json[" in said
    assert not run_checkpoints.find_all(tmp_path / "run")


def test_no_checkpoint_is_written_over(train, tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "run")
    assert "is the model to start from" in refused(train, "--model_name_or_path", copy)
    assert "would write over" in refused(train)
    assert (copy / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_evaluation_loss_is_the_training_loss(train, tiny, tmp_path, data_file, samples):
    # Samples beyond seq_length, where answers are generated with dynamic NTK.
    short = shutil.copytree(tiny, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"seq_length": 256}))
    run = train(
        *("--model_name_or_path", short, "--eval_data_path", data_file, "--eval_on_start", True),
        *("--per_device_train_batch_size", len(samples)),
    )
    assert run.log("eval_loss") == pytest.approx(run.log(), rel=1e-5)


def test_a_run_over_pixels_of_an_earlier_version_is_not_gone_on_with(train):
    run = train()
    for folder in (run.output_dir, run.output_dir / "checkpoint-1"):
        manifest = json.loads((folder / "complete.json").read_text())
        del manifest["run"]["pixels"]
        (folder / "complete.json").write_text(json.dumps(manifest))
    said = refused(train, "--max_steps", 2)
    assert "checkpoint-1 was trained without noting its pixels, this command has '2: " in said
    assert said.endswith("or another --output_dir")


def test_without_trees_the_losses_are_the_same(train, samples):
    flags = ("--per_device_train_batch_size", len(samples))  # without trees the order is another one
    with_trees = train(*flags, name="trees")
    without = train(*flags, "--prompt_tree", False, "--max_batch_tokens", 4096, name="single")
    assert without.log() == pytest.approx(with_trees.log(), rel=1e-5)


def test_trained_parts_are_the_published_ones_and_speed_is_reported(train, tiny, capsys):
    run = train("--learning_rate", 1e-2, "--report_to", "tensorboard")
    assert " tokens/s, " in (said := capsys.readouterr().out)
    assert " nodes/s, " in said
    events = EventAccumulator(str(next((run.output_dir / "runs").glob("**/events*")).parent)).Reload()
    assert {"train/loss", "train/tokens_per_second", "train/nodes_per_second"} <= set(events.Tags()["scalars"])
    assert not run.log("nodes_per_second")
    before, after = load_file(tiny / "model.safetensors"), load_file(run.output_dir / "model.safetensors")
    same = {name for name in before if torch.equal(before[name].float(), after[name].float())}
    vision = {name for name in before if ".visual." in name and ".attn_pool." not in name}
    assert same == vision
    assert before.keys() == after.keys()


def test_the_result_is_a_checkpoint_that_trains_and_resumes(train, tiny, capsys):
    first = train()
    names = {file.name for file in first.output_dir.iterdir() if file.is_file()}
    assert {"config.json", "generation_config.json", "model.safetensors", "qwen.tiktoken"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pth"))}
    assert (first.output_dir / "model.safetensors").stat().st_mode == (first.output_dir / "config.json").stat().st_mode
    train("--model_name_or_path", first.output_dir, name="second")
    train()
    assert "all 1 steps are done already" in capsys.readouterr().out
    assert "--seed 42, this command has 7" in refused(train, "--max_steps", 2, "--seed", 7)
    assert "checkpoint-1 is there" in refused(train, "--max_steps", 2, "--resume_from_checkpoint", "False")
    train("--max_steps", 2)
    assert "going on from" in capsys.readouterr().out
    (first.output_dir / "checkpoint-2/model.safetensors").write_bytes(b"")
    assert "model.safetensors has 0 bytes" in refused(
        train, "--max_steps", 3, "--resume_from_checkpoint", first.output_dir / "checkpoint-2"
    )
    train("--max_steps", 3)
    said = capsys.readouterr().out
    assert "checkpoint-2 is not complete (model.safetensors has 0 bytes" in said
    assert "checkpoint-1: 1 of 3 steps are done" in said
    assert "checkpoint-3 has more steps behind it than the 2" in refused(train, "--max_steps", 2)
    shutil.rmtree(first.output_dir / "checkpoint-1")
    for folder in run_checkpoints.find_all(first.output_dir):
        run_checkpoints.remove(folder)
    assert "would write over" in refused(train, "--max_steps", 4)


@pytest.mark.parametrize("q_lora", [False, True])
def test_adapters_load_and_merge(train, q_lora, tiny, tmp_path, repository):
    if q_lora:
        pytest.importorskip("bitsandbytes")
    run = train("--use_lora", True, "--q_lora", q_lora, "--max_steps", 5, "--gradient_checkpointing", True)
    assert run.log()[-1] < run.log()[0]
    config = json.loads((run.output_dir / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["attn.c_proj", "c_attn", "w1", "w2"]
    adapter = load_file(run.output_dir / "adapter_model.safetensors")
    assert not [name for name in adapter if "visual" in name]

    merge = load_script(repository / "scripts/merge_lora.py")
    flags = ["--adapter", str(run.output_dir), "--output_dir", str(tmp_path / "merged"), "--dtype", "float32"]
    assert merge.main(flags) == 0
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    name = "transformer.h.0.mlp.w1"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"].float() + scale * b @ a)
    assert "already holds a checkpoint" in refused(merge.main, flags)
