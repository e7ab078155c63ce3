"""Runs that are killed, or find the disk full, and go on: nothing is lost, and no loss changes."""

import json
import resource
import shutil

import pytest

from mmrole.training import checkpoints

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
    assert checkpoints.fault(killed.output_dir / "checkpoint-4") is not None
    killed.kill_after_step(7)
    assert f"{killed.output_dir}/checkpoint-4 is not complete" in killed.said
    assert f"going on from {killed.output_dir}/checkpoint-2: 2 of 8 steps are done" in killed.said
    assert killed.finish() == 0, killed.said
    assert f"going on from {killed.output_dir}/checkpoint-6" in killed.said

    assert len(whole.log()) == 8
    assert killed.log() == whole.log()
    assert killed.log("learning_rate") == whole.log("learning_rate")
    assert [folder.name for folder in checkpoints.find_all(killed.output_dir)] == ["checkpoint-8"]
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
    assert [folder.name for folder in checkpoints.find_all(run.output_dir)] == ["checkpoint-1"]
    assert checkpoints.fault(run.output_dir / "checkpoint-1") is None
    assert run.finish() == 0, run.said
    assert f"going on from {run.output_dir}/checkpoint-1" in run.said
    assert len(run.log()) == 3
