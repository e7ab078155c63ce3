"""Which flags of transformers' `TrainingArguments` this trainer obeys; every other one is refused by its name.

docs/training.md holds the same in a table.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import transformers

from mmrole.base.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SAMPLES = "a step's samples and their packing follow from --seed and --max_batch_tokens"
_LOSS = "the loss is the mean cross entropy over the loss positions of the whole step"
_METRICS = "evaluation computes the loss and nothing else"
_BEST = "no checkpoint counts as the best one; --save_total_limit keeps the newest"
_HUB = "nothing is uploaded; upload --output_dir when it is finished"
_COMPILED = "the shapes of prompt trees differ from step to step, and each would be compiled"
_SHARDED = "models are shared out by --deepspeed, or copied by torchrun alone"
_LIGER = "the model has no kernels of Liger"
_NEWER = "it is newer than this program"

OBEYED = frozenset(
    (
        *("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        *("bf16", "fp16", "tf32", "use_cpu", "full_determinism", "seed", "data_seed"),
        *(
            "activation_checkpointing",
            "activation_checkpointing_kwargs",
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
        ),
        *(
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "log_level",
            "log_level_replica",
            "log_on_each_node",
            "disable_tqdm",
        ),
        *(
            "report_to",
            "run_name",
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "skip_memory_metrics",
        ),
        *("do_train", "do_eval", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "prediction_loss_only"),
        *("save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint"),
        *(
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
        ),
        *("dataloader_multiprocessing_context", "dataloader_drop_last"),
        *(
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_backend",
            "ddp_timeout",
            "local_rank",
            "deepspeed",
        ),
    )
)
"""They do what transformers says, or `check_values` and `check_together` say why not."""

IGNORED = {
    "per_device_eval_batch_size": "evaluation is packed by --max_batch_tokens as well",
    "lazy_preprocess": "texts are always encoded first, images read when needed",
    "cache_dir": "models are local",
}
"""Published commands carry them, and they change no result: a line says so."""

REFUSED = {
    "label_smoothing_factor": _LOSS,
    "average_tokens_across_devices": _LOSS,
    "neftune_noise_alpha": "its noise depends on the length of a sample, which samples read together do not have",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "optim_target_modules": "no optimizer for some matrices only is supported",
    "dataloader_in_order": _SAMPLES,
    "train_sampling_strategy": _SAMPLES,
    "length_column_name": _SAMPLES,
    "remove_unused_columns": _SAMPLES,
    "label_names": _SAMPLES,
    "ignore_data_skip": "a run goes on where it was in the data",
    "auto_find_batch_size": "lower --max_batch_tokens, which changes no result",
    "accelerator_config": "each process packs its own share of a step",
    "include_num_input_tokens_seen": "tokens/s are shown as the run goes on",
    "torch_empty_cache_steps": "lower --max_batch_tokens, if memory does not suffice",
    "bf16_full_eval": "evaluation computes as training does",
    "fp16_full_eval": "evaluation computes as training does",
    "batch_eval_metrics": _METRICS,
    "eval_accumulation_steps": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _METRICS,
    "include_for_metrics": _METRICS,
    "do_predict": "inference.py answers with the trained model",
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "save_only_model": "a run that is interrupted could not go on",
    "save_on_each_node": "nodes share the output directory",
    "enable_jit_checkpoint": "a killed run goes on from its last checkpoint; lower --save_steps",
    "restore_callback_states_from_checkpoint": "no callback has a state to restore",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "use_cache": "training keeps no keys and values",
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "parallelism_config": _SHARDED,
    "ddp_static_graph": "the number of passes differs from step to step",
    "debug": "neither of its modes works here",
}
"""Other values than the default are refused, and why."""


def refuse_unsupported(training: transformers.TrainingArguments) -> None:
    """Refuses what transformers has a flag for and this trainer does not do.

    Flags that no list here names come from a newer transformers, and nobody has looked whether they have an effect.

    Raises:
        UserError: a flag has another value than its default.
    """
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    for name in changed(training):
        if name in known and name not in OBEYED and name not in IGNORED:
            raise UserError(f"--{name} is not supported; leave it out: {REFUSED.get(name, _NEWER)}")


def ignored(*groups: DataclassInstance) -> list[str]:
    """A line for each flag of these dataclasses that is given and ignored."""
    return [
        f"note: --{name} is ignored: {IGNORED[name]}" for group in groups for name in changed(group) if name in IGNORED
    ]


def changed(group: DataclassInstance) -> list[str]:
    """The flags of a dataclass that have another value than their default."""
    names = []
    for field in dataclasses.fields(group):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(group, field.name)
        if value != default and (value or default):  # the parser makes [] of an empty text
            names.append(field.name)
    return names
