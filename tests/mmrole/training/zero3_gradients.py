"""Run by torchrun: gradients of tree batches under ZeRO-3 against single samples without DeepSpeed.

    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 tests/mmrole/training/zero3_gradients.py BATCHES

BATCHES is a file of torch.save: the family, the configuration of a random Qwen-VL or the directory of a transformers'
model, `bins[rank][micro_batch]`, the samples' inputs.
"""

import os
import sys

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from mmrole.qwen_vl.random_checkpoint import random_model
from mmrole.training.loss import tree_loss


def main() -> None:
    """Compares every parameter's gradient; exits with an error if one differs."""
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    data = torch.load(sys.argv[1], weights_only=False)
    expected, count = one_by_one(model_of(data, for_training=False), data["samples"])

    model = model_of(data, for_training=True)
    if data["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    bins = data["bins"][rank]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": len(bins),
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for batch in bins:
        loss = tree_loss(engine, batch, data["family"])
        # DeepSpeed averages over ranks and micro-batches.
        engine.backward(loss.sum * (world_size * len(bins) / count))
        if batch is not bins[-1]:
            engine.step()  # counts the micro-batch; the last one would use the gradients up

    worst, largest = 0.0, max(float(gradient.norm()) for gradient in expected.values())
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            gradient = safe_get_full_grad(parameter)
            wanted = expected[name].norm() + 1e-3 * largest  # some are 0 but for rounding
            worst = max(worst, float((gradient - expected[name]).norm() / wanted))
    print(f"rank {rank}: worst relative difference {worst:.1e} of {len(expected)} gradients", flush=True)
    assert worst <= 5e-5
    dist.barrier()
    os._exit(0)  # threads of the process group sometimes abort while the interpreter shuts down


def model_of(data: dict, for_training: bool) -> torch.nn.Module:
    """The model; for single samples with transformers' own attention."""
    if "config" in data:
        return random_model(data["config"], seed=3, dtype=torch.float32).train()
    model = data["family"].load_module(data["directory"], for_training=for_training, dtype=torch.float32).train()
    data["family"].freeze(model, data["frozen"])
    if not for_training:
        model.set_attn_implementation("sdpa")
    return model


def one_by_one(model: torch.nn.Module, samples: list[dict]) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of the mean loss by name, and the number of loss positions."""
    count = sum(int((sample["labels"][:, 1:] != -100).sum()) for sample in samples)
    for sample in samples:
        model(**sample, num_items_in_batch=count).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}, count


if __name__ == "__main__":
    main()
