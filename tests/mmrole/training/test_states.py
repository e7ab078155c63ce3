"""States of a checkpoint: what libraries load as they go on is tensors and figures, and runs nothing."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerState

from mmrole.base.errors import UserError
from mmrole.training.states import check, tensors_only


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint without weights, with what transformers saves beside them."""
    folder = tmp_path / "checkpoint-2"
    (folder / "global_step2").mkdir(parents=True)
    TrainerState(epoch=0.5, global_step=2, train_batch_size=8, log_history=[{"loss": 1.0}]).save_to_json(
        folder / "trainer_state.json"
    )
    torch.save({"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 1e-3}]}, folder / "optimizer.pt")
    torch.save({"numpy": np.random.get_state(), "cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "latest").write_text("global_step2")
    return folder


def legacy(obj, file):
    torch.save(obj, file, _use_new_zipfile_serialization=False)


def plain_pickle(obj, file):
    file.write_bytes(pickle.dumps(obj))


def tar(obj, file):
    inner = file.with_suffix(".inner")
    inner.write_bytes(pickle.dumps(obj))
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.add(inner, arcname=name)


@pytest.mark.parametrize("write", [torch.save, legacy, plain_pickle, tar])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state_1.pth", "pytorch_model.bin", "global_step2/zero_pp_rank_1_optim_states.pt"]
)
def test_code_in_any_state_and_form_is_refused_and_not_run(folder, tmp_path, name, write):
    planted = {"lr": 1e-3, "deeper": [(Planted(tmp_path / "EXECUTED"),)]}
    write(planted, folder / name)
    with tensors_only(deepspeed=False), pytest.raises(UserError) as refused:
        check(folder, 2)
    assert str(folder / name) in str(refused.value)
    assert "\n" not in str(refused.value)
    with tensors_only(deepspeed=False), pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(folder / name, weights_only=False)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_what_is_saved_is_accepted(folder, write):
    write({"state": torch.ones(3, dtype=torch.bfloat16), "step": 2}, folder / "scheduler.pt")
    with tensors_only(deepspeed=False):
        check(folder, 2)


def test_the_engine_of_deepspeed_loads_its_own_figures_and_no_code(folder, tmp_path):
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    engine, file = TorchCheckpointEngine(), folder / "global_step2/mp_rank_00_model_states.pt"
    state = {"scaler": LossScaler(1), "stage": ZeroStageEnum.weights, "fragments": [fragment_address(3, 0)]}
    torch.save(state, file)
    with tensors_only(deepspeed=True):
        check(folder, 2)
        assert engine.load(file)["stage"] == 3
    torch.save(state | {"planted": Planted(tmp_path / "EXECUTED")}, file)
    with tensors_only(deepspeed=True):
        with pytest.raises(UserError, match=r"mp_rank_00_model_states.pt is refused: it would run posix.system"):
            check(folder, 2)
        with pytest.raises(pickle.UnpicklingError):
            engine.load(file)
    assert not (tmp_path / "EXECUTED").exists()


def test_the_environment_cannot_switch_it_off(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Planted(tmp_path / "EXECUTED"), folder / "optimizer.pt")
    with tensors_only(deepspeed=False), pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "optimizer.pt")
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", b"{}"),
        ("trainer_state.json", b'{"global_step": 2, "unknown": 1}'),
        ("trainer_state.json", b'{"global_step": 2, "epoch": 1, "train_batch_size": 8, "log_history": 5}'),
        ("trainer_state.json", b'{"global_step": 2, "epoch": 1, "train_batch_size": null}'),
        ("trainer_state.json", b'{"global_step": 2, "epoch": 1, "train_batch_size": 8, "total_flos": {}}'),
        ("trainer_state.json", b'{"global_step": "2", "epoch": 1, "train_batch_size": 8}'),
        ("trainer_state.json", b"[" * 100_000),
        ("optimizer.pt", b"\0" * 3000),
        ("rng_state.pth", b"PK\x03\x04" + b"x" * 3000),
        ("model.safetensors", b"\xff" * 3000),
        ("latest", b"../elsewhere"),
        ("latest", b"\xff\xfe"),
    ],
)
def test_damage_is_named_in_a_line(folder, name, content):
    (folder / name).write_bytes(content)
    with tensors_only(deepspeed=False), pytest.raises(UserError) as refused:
        check(folder, 2)
    assert str(folder / name) in str(refused.value)
    assert "\n" not in str(refused.value)
