"""What --report_to names is checked before the model loads, and what it raises later is a line as well."""

import os

import pytest
from transformers import TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback

from mmrole.base.errors import UserError
from mmrole.training.arguments import parse_arguments
from mmrole.training.reporters import prepare_reporters, say_faults_in_a_line


def parse(output_dir, name):
    given = ("--model_name_or_path", "m", "--data_path", "d", "--use_cpu", "True", "--report_to", name)
    return parse_arguments([*given, "--output_dir", str(output_dir)]).training


def test_the_folder_of_the_log(tmp_path):
    prepare_reporters(parse(tmp_path / "run", "tensorboard"))
    assert (tmp_path / "run/runs").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write TensorBoard's log to .*file/runs: .*; give --report_to none$"):
        prepare_reporters(parse(tmp_path / "file", "tensorboard"))


def test_a_reporter_that_fails_when_training_begins(tmp_path):
    (tmp_path / "file").touch()
    training, reporter = parse(tmp_path / "file", "tensorboard"), TensorBoardCallback()
    say_faults_in_a_line([reporter], training)
    with pytest.raises(UserError, match=r"^--report_to tensorboard: .*; put that right .* give --report_to none$"):
        reporter.on_train_begin(training, TrainerState(), TrainerControl())


@pytest.mark.skipif("WANDB_API_KEY" in os.environ, reason="there may be a login")
def test_no_login(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^--report_to wandb: ") as error:
        prepare_reporters(parse(tmp_path, "wandb"))
    assert "\n" not in str(error.value)
