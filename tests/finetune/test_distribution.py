"""However a step is distributed, its loss is the same: one process, DDP, ZeRO-2, ZeRO-3, with and without offload."""

import json

import pytest

FLAGS = ("--max_steps", 3, "--lr_scheduler_type", "constant", "--max_batch_tokens", 6144, "--save_strategy", "no")


@pytest.fixture(scope="module")
def alone(make_run, tmp_path_factory):
    """The losses of one process."""
    run = make_run(tmp_path_factory.mktemp("alone"), *FLAGS)
    assert run.finish() == 0, run.said
    return run.log()


def config(repository, folder, name):
    """A shipped configuration without the section that sets the rate, and without pinned memory, which needs a GPU."""
    fields = json.loads((repository / f"finetune/ds_config_{name}.json").read_text())
    fields.pop("scheduler", None)
    for part in ("offload_optimizer", "offload_param"):
        if part in fields["zero_optimization"]:
            fields["zero_optimization"][part]["pin_memory"] = False
    file = folder / "ds_config.json"
    file.write_text(json.dumps(fields))
    return file


@pytest.mark.long
def test_ddp(make_run, alone, tmp_path, same_course):
    run = make_run(tmp_path / "ddp", *FLAGS, processes=2)
    assert run.finish() == 0, run.said
    same_course(run.log(), alone)


@pytest.mark.long
@pytest.mark.parametrize("name", ["zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_deepspeed(make_run, repository, alone, tmp_path, name, same_course):
    run = make_run(
        *(tmp_path / name, *FLAGS, "--deepspeed", config(repository, tmp_path, name)), processes=2, DS_ACCELERATOR="cpu"
    )
    assert run.finish() == 0, run.said
    same_course(run.log(), alone)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_cosine_configurations_lack_the_schedule_only(repository, stage):
    published, cosine = (
        json.loads((repository / f"finetune/ds_config_zero{stage}{suffix}.json").read_text())
        for suffix in ("", "_cosine")
    )
    assert published.pop("scheduler")["type"] == "WarmupLR"
    assert published == cosine
