"""The flags of finetune/finetune.py: the published ones, transformers' `TrainingArguments`, and what was added."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import sys
from dataclasses import dataclass, field
from typing import NamedTuple

import transformers
from transformers import HfArgumentParser

from data_utils.errors import UserError
from mmrole.training import extensions

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # transformers 5 reads a number below 1 as a share of all steps
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Flags of transformers 4 by the name that they have in transformers 5; those that it still knows are left alone."""

GONE = {
    "overwrite_output_dir": "a run goes on where it was; to start anew, give another --output_dir",
    "logging_dir": "set TENSORBOARD_LOGGING_DIR for another folder than the one below --output_dir",
    "save_safetensors": "weights are always saved as safetensors",
    "group_by_length": "batches are always balanced by tokens",
}
"""Flags of transformers 4 that are ignored, and why."""

NEEDED_BY = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet_ml": "comet_ml"}


@dataclass
class ModelArguments:
    """The model."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint directory to start from, such as Qwen-VL-Chat."})


@dataclass
class DataArguments:
    """The samples."""

    data_path: str = field(metadata={"help": "Training samples: a JSON file in the published form."})
    eval_data_path: str | None = field(
        default=None, metadata={"help": "Samples for the evaluation loss, in the same form; see --eval_strategy."}
    )
    image_dir: str = field(
        default="images", metadata={"help": "Folder of the images; nothing outside of it is opened."}
    )
    lazy_preprocess: bool = field(
        default=False,
        metadata={"help": "Published; without effect: texts are always encoded first, images read when needed."},
    )
    system_message: str | None = field(
        default=None,
        metadata={"help": "System message of every sample; by default each sample's own, as inference gives it."},
    )


@dataclass
class LoraArguments:
    """LoRA adapters."""

    lora_r: int = field(default=64, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters, times the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before an adapter, in training."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["c_attn", "attn.c_proj", "w1", "w2"],
        metadata={
            "help": "Ends of the names of the matrices that get adapters; by default those of the language model."
        },
    )
    lora_weight_path: str = field(default="", metadata={"help": "Published; the published code does not read it."})
    lora_bias: str = field(default="none", metadata={"help": "Biases to train as well: none, all or lora_only."})
    q_lora: bool = field(
        default=False,
        metadata={"help": "With --use_lora: the language model's matrices in 4 bits (NF4). Needs bitsandbytes."},
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments, with MMRole's.

    An optimizer step takes `per_device_train_batch_size * gradient_accumulation_steps` samples on each device. How
    they are packed into passes of the model is up to `max_batch_tokens`; so once parsed, `per_device_train_batch_size`
    holds the product and `gradient_accumulation_steps` is 1.
    """

    output_dir: str = field(
        default="checkpoints/finetuned",
        metadata={"help": "Where the trained checkpoint goes, and the checkpoint-N folders from which a run resumes."},
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint-N folder; True or nothing: the newest complete one in --output_dir, if there is one; "
            "False: refuse to go on where something was."
        },
    )
    report_to: str | None = field(
        default="tensorboard",
        metadata={"help": "Where the log goes besides the terminal: tensorboard, wandb, …, none."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Published; without effect: models are local."})
    model_max_length: int = field(
        default=8192,
        metadata={"help": "Most tokens of a sample; longer ones are cut from the right, never in an image."},
    )
    use_lora: bool = field(default=False, metadata={"help": "Train LoRA adapters of the language model only."})
    fix_vit: bool = field(
        default=True, metadata={"help": "Freeze the vision tower but for its resampler (visual.attn_pool)."}
    )
    prompt_tree: bool = field(
        default=True,
        metadata={"help": "Read what samples of a step share once; False: each alone. Same loss, up to rounding."},
    )
    max_batch_tokens: int = field(
        default=8192,
        metadata={
            "help": "Positions in one pass of the model: memory against speed; changes no result but by rounding."
        },
    )

    def __post_init__(self) -> None:
        """Checks and resolves the arguments.

        Raises:
            UserError: two of them contradict each other, or what they name is not there.
        """
        if self.per_device_train_batch_size < 1 or self.gradient_accumulation_steps < 1:
            raise UserError("--per_device_train_batch_size and --gradient_accumulation_steps must be at least 1")
        if self.max_batch_tokens < 1 or self.model_max_length < 1:
            raise UserError("--max_batch_tokens and --model_max_length must be at least 1")
        samples = self.per_device_train_batch_size * self.gradient_accumulation_steps
        # DeepSpeed must know that gradients of several passes are summed, though their number differs from step to
        # step; the Trainer gets all passes of a step at once.
        self.per_device_train_batch_size, self.gradient_accumulation_steps = 1, samples
        if self.deepspeed and "RANK" not in os.environ:
            raise UserError("--deepspeed: start the script with torchrun --nproc_per_node N, one process for each GPU")
        if os.environ.get("DS_ACCELERATOR") == "cpu":
            self.use_cpu = True
        super().__post_init__()
        if self.deepspeed and self.use_cpu:
            # transformers starts DeepSpeed's processes only where there are GPUs.
            from deepspeed import comm

            notes = extensions.before_build_on_cpu()
            if os.environ["RANK"] == "0":
                print(*(f"note: {note}" for note in notes), sep="\n", end="\n" if notes else "", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):  # each process would say that it has built an extension
                comm.init_distributed(dist_backend="gloo", verbose=False)
        self.per_device_train_batch_size, self.gradient_accumulation_steps = samples, 1
        # The loss is stopped at, and not filtered, where it is not finite.
        self.logging_nan_inf_filter = False
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every pass uses every trained parameter
        for name in self.report_to:
            package = NEEDED_BY.get(name)
            if package is not None and importlib.util.find_spec(package) is None:
                raise UserError(f"--report_to {name}: {package} is not installed; pip install {package}, or give none")
        for unsupported in ("load_best_model_at_end", "auto_find_batch_size", "save_only_model", "push_to_hub"):
            if getattr(self, unsupported):
                raise UserError(f"--{unsupported} is not supported; leave it out")

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimizer step, on all devices together."""
        return self.per_device_train_batch_size * self.world_size

    @property
    def order_seed(self) -> int:
        """Seed of the order of the samples."""
        return self.seed if self.data_seed is None else self.data_seed


class Arguments(NamedTuple):
    """A command line."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    lora: LoraArguments


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line; flags of transformers 4 are translated, each with a line on stderr.

    Raises:
        UserError: values contradict each other, or what they name is not there.
        SystemExit: argparse has printed help or a usage error.
    """
    argv, notes = translate(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments, LoraArguments),
        usage="%(prog)s --model_name_or_path DIRECTORY --data_path FILE --output_dir DIRECTORY [flags]",
        description="Trains Qwen-VL-Chat into an agent or a reward model. The other flags are those of "
        "transformers' TrainingArguments.",
    )
    try:
        arguments = Arguments(*parser.parse_args_into_dataclasses(argv, look_for_args_file=False))
    except (ValueError, ImportError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from None
    check_together(arguments)
    if arguments.training.process_index == 0:
        for note in notes:
            print(note, file=sys.stderr)
    return arguments


def check_together(arguments: Arguments) -> None:
    """Raises UserError for flags that contradict each other."""
    training, lora = arguments.training, arguments.lora
    if lora.q_lora and not training.use_lora:
        raise UserError("--q_lora trains LoRA adapters; add --use_lora True")
    if lora.q_lora and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--q_lora: bitsandbytes is not installed; pip install bitsandbytes")
    if lora.q_lora and zero_stage(training) == 3:
        raise UserError("--q_lora does not work with ZeRO-3; use finetune/ds_config_zero2.json, or no --deepspeed")
    if lora.lora_bias not in ("none", "all", "lora_only"):
        raise UserError(f"--lora_bias {lora.lora_bias}: give none, all or lora_only")
    if str(training.eval_strategy.value) != "no" and arguments.data.eval_data_path is None:
        raise UserError(f"--eval_strategy {training.eval_strategy.value} needs --eval_data_path")


def zero_stage(training: TrainingArguments) -> int:
    """The ZeRO stage that --deepspeed asks for, 0 without it."""
    config = getattr(training, "hf_deepspeed_config", None)
    return 0 if config is None else int(config.get_value("zero_optimization.stage", 0))


def translate(argv: list[str]) -> tuple[list[str], list[str]]:
    """Flags of transformers 4 as the installed transformers has them.

    Returns:
        The command line to parse, and a line about each flag that was renamed or left out.
    """
    known = {item.name for item in dataclasses.fields(TrainingArguments)}
    translated, notes, skipping = [], [], False
    for argument in argv:
        is_flag = argument.startswith("--")
        if skipping and not is_flag:
            continue
        skipping = False
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if is_flag and name in GONE and name not in known:
            notes.append(f"note: --{name} is ignored: {GONE[name]}")
            skipping = True
        elif is_flag and RENAMED.get(name) in known:
            if name not in known or name.startswith("gradient_checkpointing"):
                argument = f"--{RENAMED[name]}{equals}{value}"
            if name not in known:
                notes.append(f"note: --{name} is called --{RENAMED[name]} in transformers 5")
            translated.append(argument)
        else:
            translated.append(argument)
    return translated, notes
