"""Runs that are killed, or find the disk full, and go on: nothing is lost, and no loss changes."""

import json
import resource
import shutil

import pytest
import torch
from PIL import Image

from mmrole.base.errors import UserError
from mmrole.training import run_checkpoints
from mmrole.training.finetuning import main

DEEPSPEED = {"processes": 2, "DS_ACCELERATOR": "cpu"}


def zero3(repository, folder, **optimizer):
    """A copy of the ZeRO-3 configuration with other parameters of the optimizer."""
    config = json.loads((repository / "finetune/ds_config_zero3.json").read_text())
    config["optimizer"]["params"] |= optimizer
    file = folder / "ds_config.json"
    file.write_text(json.dumps(config))
    return file


def test_killed_in_a_save_and_between_saves_in_the_second_epoch(make_run, repository, tmp_path, samples):
    config = zero3(repository, tmp_path, torch_adam=True)
    steps_per_epoch = -(-len(samples) // 8)
    assert steps_per_epoch == 4
    flags = ("--deepspeed", config, "--max_steps", 8, "--save_steps", 2, "--gradient_checkpointing", True)
    whole = make_run(tmp_path / "whole", *flags, **DEEPSPEED)
    assert whole.finish() == 0, whole.said

    killed = make_run(tmp_path / "killed", *flags, "--save_total_limit", 1, **DEEPSPEED)
    killed.kill_in_save(4)
    assert run_checkpoints.fault(killed.output_dir / "checkpoint-4") is not None
    killed.kill_after_step(7)
    assert f"{killed.output_dir}/checkpoint-4 is not complete" in killed.said
    assert f"going on from {killed.output_dir}/checkpoint-2: 2 of 8 steps are done" in killed.said
    assert killed.finish() == 0, killed.said
    assert f"going on from {killed.output_dir}/checkpoint-6" in killed.said

    assert len(whole.log()) == 8
    assert killed.log() == whole.log()
    assert killed.log("learning_rate") == whole.log("learning_rate")
    assert [folder.name for folder in run_checkpoints.find_all(killed.output_dir)] == ["checkpoint-8"]
    assert killed.finish() == 0
    assert "all 8 steps are done already" in killed.said


@pytest.mark.long
@pytest.mark.parametrize("torch_adam", [True, False])
@pytest.mark.parametrize("step", [1, 3, 5, 6, 7])
def test_killed_after_any_step(make_run, repository, tmp_path, step, torch_adam):
    config = zero3(repository, tmp_path, **({"torch_adam": True} if torch_adam else {}))
    flags = ("--deepspeed", config, "--max_steps", 9, "--save_steps", 2)
    whole = make_run(tmp_path / "whole", *flags, **DEEPSPEED)
    assert whole.finish() == 0, whole.said
    killed = make_run(tmp_path / "killed", *flags, **DEEPSPEED)
    killed.kill_after_step(step)
    assert killed.finish() == 0, killed.said
    assert killed.log() == whole.log()


@pytest.mark.long
@pytest.mark.parametrize("step", [2, 4, 6])
def test_killed_in_any_save(make_run, repository, tmp_path, step):
    flags = ("--deepspeed", zero3(repository, tmp_path, torch_adam=True), "--max_steps", 7, "--save_steps", 2)
    whole = make_run(tmp_path / "whole", *flags, **DEEPSPEED)
    assert whole.finish() == 0, whole.said
    killed = make_run(tmp_path / "killed", *flags, **DEEPSPEED)
    killed.kill_in_save(step)
    assert killed.finish() == 0, killed.said
    assert killed.log() == whole.log()


def test_full_disk_in_a_save_leaves_the_checkpoint_before(make_run, tmp_path):
    run = make_run(tmp_path / "run", "--max_steps", 3, "--save_steps", 1, "--save_total_limit", 1)
    assert run.finish("--max_steps", 1) == 0, run.said
    shutil.rmtree(run.output_dir / "runs", ignore_errors=True)
    limit = (run.output_dir / "model.safetensors").stat().st_size // 2  # a disk that takes no more than this of a file
    status = run.finish(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert status == 2, run.said
    assert f"error: cannot write {run.output_dir}/checkpoint-2" in run.said
    assert f"{run.output_dir}/checkpoint-1 is whole: make room" in run.said
    assert "Traceback" not in run.said
    assert [folder.name for folder in run_checkpoints.find_all(run.output_dir)] == ["checkpoint-1"]
    assert run_checkpoints.fault(run.output_dir / "checkpoint-1") is None
    assert run.finish() == 0, run.said
    assert f"going on from {run.output_dir}/checkpoint-1" in run.said
    assert len(run.log()) == 3


STEPS = ("--save_strategy", "steps", "--per_device_train_batch_size", 12)


@pytest.fixture
def start(make_run, tmp_path):
    """Runs finetune.py's main in this process, again and again into one directory; returns the run."""

    def call(*flags, name="run"):
        run = make_run(tmp_path / name, *STEPS)
        assert main(run.command(*flags)[2:]) == 0
        return run

    return call


def without_result(run, name):
    """A copy as a kill leaves it that came after the last checkpoint and before the result."""
    folder = shutil.copytree(run.output_dir, run.output_dir.with_name(name))
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()


def test_killed_between_the_last_checkpoint_and_the_result(start, data_file, samples):
    assert len(samples) > 2 * 12  # the last step is inside of an epoch
    flags = ("--max_steps", 2, "--save_steps", 1, "--eval_strategy", "epoch", "--eval_data_path", data_file)
    whole = start(*flags)
    without_result(whole, "killed")
    killed = start(*flags, "--save_total_limit", 1, name="killed")
    assert [folder.name for folder in run_checkpoints.find_all(killed.output_dir)] == ["checkpoint-2"]
    assert not (killed.output_dir / "checkpoint-3").exists()
    for name in ("model.safetensors", "config.json"):
        assert (killed.output_dir / name).read_bytes() == (whole.output_dir / name).read_bytes()
    assert killed.log("eval_loss") == whole.log("eval_loss")
    assert len(whole.log("eval_loss")) == 1


def test_what_may_change_is_used_from_the_first_new_step(start, data_file):
    first = start("--max_steps", 2, "--save_steps", 2, "--logging_steps", 2, "--lr_scheduler_type", "constant")
    changed = ("--learning_rate", 3e-5, "--weight_decay", 0.9, "--adam_beta2", 0.5, "--adam_epsilon", 1e-6)
    changed += ("--save_steps", 1, "--logging_steps", 1, "--lr_scheduler_type", "linear", "--max_grad_norm", 0.5)
    changed += ("--eval_strategy", "steps", "--eval_steps", 1, "--eval_data_path", data_file)
    start("--max_steps", 4, *changed)
    group = torch.load(first.output_dir / "checkpoint-3/optimizer.pt", weights_only=True)["param_groups"][0]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.9, (0.9, 0.5), 1e-6)
    assert first.log("learning_rate") == [1e-3, pytest.approx(3e-5 * 2 / 4), pytest.approx(3e-5 * 1 / 4)]
    assert len(first.log("eval_loss")) == 2
    assert [folder.name for folder in run_checkpoints.find_all(first.output_dir)] == [
        f"checkpoint-{n}" for n in (4, 3, 2)
    ]


def refused(start, *flags):
    with pytest.raises(UserError) as error:
        start("--max_steps", 3, *flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_may_not_change_is_refused_by_name(start, data_file, image_dir, samples, tmp_path):
    pictures = tmp_path / "pictures"
    for sample in samples:
        (pictures / sample["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_dir / sample["image"], pictures / sample["image"])
    renamed = shutil.copy(data_file, tmp_path / "renamed.json")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(samples[:-1]))
    evaluation = ("--eval_strategy", "epoch", "--eval_data_path", data_file)
    run = start("--max_steps", 1, "--image_dir", pictures, *evaluation)
    start("--max_steps", 2, "--data_path", renamed, "--image_dir", image_dir, *evaluation)

    assert "with --data_path" in refused(start, "--data_path", other)
    assert "with --eval_data_path" in refused(start, *evaluation[:-1], other)
    assert "with optimizer 'adamw" in refused(start, "--optim", "adafactor")
    assert "with --dataloader_drop_last False" in refused(start, "--dataloader_drop_last", True)
    assert "with --seed of dropout 42" in refused(start, "--seed", 7, "--data_seed", 42)
    assert "with --lr_scheduler_type" in refused(start, "--lr_scheduler_type", "reduce_lr_on_plateau", *evaluation)
    replaced = pictures / samples[-1]["image"]
    Image.new("RGB", (300, 200), "green").save(replaced)
    assert "with pictures of --data_path" in refused(start, "--image_dir", pictures)

    checkpoint = run.output_dir / "checkpoint-2"
    torch.save({"state": {}, "param_groups": []}, checkpoint / "optimizer.pt")
    listed = json.loads((checkpoint / "complete.json").read_text())
    listed["files"]["optimizer.pt"] = (checkpoint / "optimizer.pt").stat().st_size
    (checkpoint / "complete.json").write_text(json.dumps(listed))
    assert f"cannot go on from {checkpoint}: ValueError" in refused(start)


def test_folders_of_somebody_else_are_left_alone(start, tmp_path):
    for step in (1, 500):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        (tmp_path / f"run/checkpoint-{step}/notes.txt").write_text("mine")
    assert "checkpoint-1 was not written by this run" in refused(start)
    shutil.rmtree(tmp_path / "run/checkpoint-1")
    start("--max_steps", 2, "--save_steps", 1, "--save_total_limit", 1)
    assert (tmp_path / "run/checkpoint-500/notes.txt").read_text() == "mine"
    assert [folder.name for folder in run_checkpoints.find_all(tmp_path / "run")] == ["checkpoint-500", "checkpoint-2"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds config.json, which this run would write over"):
        start("--max_steps", 1, name="other")


def test_killed_while_the_result_is_moved(start, capsys):
    flags = ("--save_strategy", "no", "--max_steps", 1)
    run = start(*flags)
    whole = {file.name: file.read_bytes() for file in run.output_dir.iterdir() if file.is_file()}
    aside = run.output_dir / ".output"
    aside.mkdir()
    for name in ("complete.json", "model.safetensors"):
        (run.output_dir / name).rename(aside / name)
    (run.output_dir / "model.safetensors").write_text("mine")
    assert "holds model.safetensors, which this run would write over" in refused(start, *flags)
    (run.output_dir / "model.safetensors").unlink()
    start(*flags)
    assert "all 1 steps are done already" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in run.output_dir.iterdir() if file.is_file()} == whole
    assert not aside.exists()


def test_goes_on_where_only_the_weights_of_the_result_were_deleted(start):
    run = start("--max_steps", 1, "--save_steps", 1)
    for name in ("complete.json", "model.safetensors"):
        (run.output_dir / name).unlink()
    config = (run.output_dir / "config.json").read_bytes()
    (run.output_dir / "config.json").write_text("{}")
    assert "holds config.json, which this run would write over" in refused(start, "--max_steps", 2)
    (run.output_dir / "config.json").write_bytes(config)
    assert len(start("--max_steps", 2, "--save_steps", 1).log()) == 2


def test_what_was_written_into_a_result_is_not_written_over(start):
    adapter = ("--use_lora", True)
    run = start("--max_steps", 1, *adapter)
    assert not (run.output_dir / "README.md").exists()
    (run.output_dir / "README.md").write_text("mine")
    start("--max_steps", 2, *adapter)
    assert (run.output_dir / "README.md").read_text() == "mine"
    (run.output_dir / "tokenizer_config.json").write_text("{}")
    assert "holds tokenizer_config.json, which this run would write over" in refused(start, *adapter)


def test_adapters_go_on_as_if_never_stopped(start):
    flags = ("--use_lora", True, "--save_steps", 1)
    whole = start("--max_steps", 2, *flags, name="whole")
    start("--max_steps", 1, *flags)
    stopped = start("--max_steps", 2, *flags, "--lr_scheduler_type", "constant")
    assert stopped.log()[1] == whole.log()[1]
