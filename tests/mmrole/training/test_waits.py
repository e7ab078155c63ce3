"""A training step waits for the device at most once, and still no spoiled weights are saved.

The device is PyTorch's meta device: its tensors hold nothing, so that whatever reads one fails, but for the two ways
out that are counted here.
"""

import contextlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from mmrole.base.errors import UserError
from mmrole.prompt_tree.flex import FlexForestAttention
from mmrole.training.arguments import parse_arguments
from mmrole.training.batches import collate
from mmrole.training.late_check import LateCheck
from mmrole.training.loss import tree_loss
from mmrole.training.packing import group_samples
from mmrole.training.steps import Packing, TrainingSteps
from mmrole.training.trainer import TreeTrainer

PACKING = Packing(samples_per_step=8, rank=0, world_size=1, max_batch_tokens=1500, seed=0, prompt_tree=True)
META = torch.device("meta")


class Waits(TorchDispatchMode):
    """Counts the ways from the device to the host, and gives zeros there."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        from_device = bool(args) and isinstance(args[0], torch.Tensor) and args[0].device == META
        if from_device and func is torch.ops.aten._local_scalar_dense.default:
            self.number += 1
            return 0.0
        if from_device and func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            self.number += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)


class Count(TrainerCallback):
    """Notes the number of waits at the beginning of each step."""

    def __init__(self, waits):
        self.waits, self.numbers = waits, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.numbers.append(self.waits.number)


@pytest.fixture
def steps(encoded, conversations, byte_family):
    return TrainingSteps(
        encoded, [sample.where for sample in conversations], group_samples(encoded), PACKING, byte_family
    )


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_a_step_waits_at_most_once(make_model, byte_family, steps, tmp_path, monkeypatch, logging_steps):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # has no meta device
    given = "--model_name_or_path m --data_path d --report_to none --use_cpu True --save_strategy no --max_steps 5"
    own = ["--output_dir", str(tmp_path), "--logging_steps", str(logging_steps), "--optim", "sgd"]
    training = parse_arguments([*given.split(), *own]).training
    training.distributed_state.device = META
    training.__dict__["_setup_devices"] = META
    trainer = TreeTrainer(make_model(torch.float32), training, steps, byte_family, {})
    with Waits() as waits:
        count = Count(waits)
        trainer.add_callback(count)
        trainer.train()
    assert len(count.numbers) == trainer.state.global_step == 5
    assert max(later - earlier for earlier, later in zip(count.numbers, count.numbers[1:], strict=False)) == 1
    assert waits.number <= 5 + 1  # the mean loss of the whole run is read at its end


@pytest.mark.parametrize("texts", [False, True], ids=["images", "texts alone"])
def test_a_micro_batch_waits_for_nothing(make_model, encoded, byte_family, monkeypatch, texts):
    """Whatever would read a tensor of the meta device raises: `item()`, `bool()`, `nonzero()`, copies to the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # has no meta device
    model = make_model(torch.float32).to(META)
    batch = collate(encoded[-1:] if texts else encoded, byte_family)
    assert (batch.pixels is None) == texts
    tree_loss(model, batch.to(META, non_blocking=True), byte_family).sum.backward()
    FlexForestAttention(batch.last, batch.most_nodes, META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.zeros(1, device=META))


def test_figures_are_checked_a_step_late_and_name_their_samples(steps):
    late, fine = LateCheck(steps, checks_norm=True), torch.tensor(1.0)
    late.add(1, [[3], [5, 6]], [fine, torch.tensor(math.nan)], fine, fine)
    assert late.check(last=False) is None
    late.add(2, [[0]], [fine], fine, fine)
    with pytest.raises(UserError) as error:
        late.check(last=False)
    said = str(error.value)
    assert said.startswith("step 1: the loss is nan in a batch of these samples: ")
    assert [str(place) in said for place in (steps.places[3], steps.places[5], steps.places[6])] == [False, True, True]


def test_the_last_step_is_checked_before_its_weights_are_used(steps):
    late, fine = LateCheck(steps, checks_norm=True), torch.tensor(1.0)
    late.add(1, [[3]], [fine], fine, fine)
    late.add(2, [[4]], [fine], torch.tensor(math.inf), fine)
    with pytest.raises(UserError, match="step 2: the norm of the gradient is inf on these samples: "):
        late.check(last=True)
    late = LateCheck(steps, checks_norm=False)
    late.add(1, [[3]], [fine], torch.tensor(math.inf), torch.tensor(2.5))
    figures = late.check(last=True)
    assert (figures.losses, figures.norm, figures.running) == ([1.0], math.inf, 2.5)
