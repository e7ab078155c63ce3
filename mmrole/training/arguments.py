"""The flags of finetune/finetune.py: the published ones, transformers' `TrainingArguments`, and what was added."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import HfArgumentParser

from mmrole.base.errors import UserError
from mmrole.models.families import PARTS, Family
from mmrole.training import deepspeed_config, extensions, flags, values
from mmrole.training.old_flags import translate
from mmrole.training.reporters import check_reporters


@dataclass
class ModelArguments:
    """The model."""

    model_name_or_path: str = field(
        metadata={
            "help": "Checkpoint directory to start from: Qwen-VL-Chat, or a vision-language model of transformers."
        }
    )
    max_pixels: int | None = field(
        default=None,
        metadata={
            "help": "Most pixels of an image, to which larger ones are shrunk; by default the checkpoint's own limit. "
            "It is saved with the result."
        },
    )


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
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Ends of the names of the matrices that get adapters; by default those of the language model, "
            "which docs/training.md names."
        },
    )
    lora_weight_path: str = field(default="", metadata={"help": "Published; the published code does not read it."})
    lora_bias: str = field(default="none", metadata={"help": "Biases to train as well: none, all or lora_only."})
    q_lora: bool = field(
        default=False,
        metadata={"help": "With --use_lora: the language model's matrices in 4 bits (NF4). Needs bitsandbytes."},
    )

    def targets(self, family: Family) -> list[str]:
        """`--lora_target_modules`, or what a family names."""
        return list(family.lora_targets if self.lora_target_modules is None else self.lora_target_modules)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments, with MMRole's.

    An optimizer step takes `per_device_train_batch_size * gradient_accumulation_steps` samples on each device. How
    they are packed into passes of the model is up to `max_batch_tokens`; so once parsed, `per_device_train_batch_size`
    holds the product and `gradient_accumulation_steps` is 1.
    """

    # Never missing here. The types of these three say which values the parser of flags takes.
    output_dir: str = field(  # pyright: ignore[reportIncompatibleVariableOverride]
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
    report_to: str | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="tensorboard",
        metadata={"help": "Where the log goes besides the terminal: tensorboard, wandb, …, none."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Published; without effect: models are local."})
    model_max_length: int = field(
        default=8192,
        metadata={"help": "Most tokens of a sample; longer ones are cut from the right, never in an image."},
    )
    use_lora: bool = field(default=False, metadata={"help": "Train LoRA adapters of the language model only."})
    freeze: str | None = field(
        default=None,
        metadata={
            "help": "Parts that are not trained, of vision, projector and language, with commas; none for none. By "
            "default vision. The projector is what lies between tower and language model, in Qwen-VL "
            "visual.attn_pool; embeddings and LM head belong to the language model."
        },
    )
    fix_vit: bool | None = field(
        default=None, metadata={"help": "Published: True is --freeze vision, the default, False is --freeze none."}
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

    checkpoint_layers: int | None = field(
        default=None,
        metadata={
            "help": "With --gradient_checkpointing True: only the first N blocks of the language model are computed "
            "again in the backward pass, by default all: memory against speed."
        },
    )

    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Not supported: a loss that is not finite ends the run."}
    )
    include_num_input_tokens_seen: bool = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=False, metadata={"help": "Not supported: tokens/s are shown as the run goes on."}
    )

    def __post_init__(self) -> None:
        """Checks and resolves the arguments.

        Raises:
            UserError: two of them contradict each other, or what they name is not there.
        """
        self.notes = []  # lines to say once all is known to be right
        self.use_cpu = self.use_cpu or values.wants_cpu()
        flags.refuse_unsupported(self)
        values.check_numbers(self)
        values.check_values(self)
        values.check_environment(self)
        values.check_device(self)
        samples = self.per_device_train_batch_size * self.gradient_accumulation_steps
        # DeepSpeed must know that gradients of several passes are summed, though their number differs from step to
        # step; the Trainer gets all passes of a step at once.
        self.per_device_train_batch_size, self.gradient_accumulation_steps = 1, samples
        if self.deepspeed:
            if "RANK" not in os.environ:
                raise UserError(
                    "--deepspeed: start the script with torchrun --nproc_per_node N, one process for each GPU"
                )
            config = deepspeed_config.read_deepspeed_config(self.deepspeed)
            self.deepspeed = self.deepspeed if Path(str(self.deepspeed)).is_file() else config
            notes = extensions.make_architectures_readable(os.environ)
            if torch.cuda.is_available() and not self.use_cpu:
                notes += extensions.before_build_on_gpu(config)
            self.notes += [f"note: {note}" for note in notes]
        super().__post_init__()
        if self.deepspeed:
            deepspeed_config.check_mismatches(self)
            self.notes += deepspeed_config.check_sections(self)
        if self.deepspeed and self.use_cpu:
            # transformers starts DeepSpeed's processes only where there are GPUs.
            from deepspeed import comm

            notes = extensions.before_build_on_cpu()
            if os.environ["RANK"] == "0":
                print(*(f"note: {note}" for note in notes), sep="\n", end="\n" if notes else "", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):  # each process would say that it has built an extension
                comm.init_distributed(dist_backend="gloo", verbose=False)
        self.per_device_train_batch_size, self.gradient_accumulation_steps = samples, 1
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every pass uses every trained parameter
        if self.n_gpu > 1:
            self.notes.append(
                f"note: one of {self.n_gpu} GPUs is used; torchrun --nproc_per_node {self.n_gpu} uses them all"
            )
            self._n_gpu = 1  # transformers would copy the model in one process, and split a step's batches in vain
        check_reporters(self)

    @property
    def frozen(self) -> list[str]:
        """The parts that are not trained, of `PARTS`."""
        given = self.freeze or ("none" if self.fix_vit is False else "vision")
        return [] if given == "none" else [part for part in PARTS if part in given.split(",")]

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimizer step, on all devices together."""
        return self.per_device_train_batch_size * self.world_size

    @property
    def order_seed(self) -> int:
        """Seed of the order of the samples."""
        return self.seed if self.data_seed is None else self.data_seed

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """As transformers' own, but never 0 for a schedule of DeepSpeed's, which refuses it and makes the same of 1.

        Newer versions of transformers see to it themselves.
        """
        steps = super().get_warmup_steps(num_training_steps)
        return max(1, steps) if self.deepspeed and "scheduler" in self.hf_deepspeed_config.config else steps


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
    known = {item.name for item in dataclasses.fields(TrainingArguments)}
    argv, notes = translate(sys.argv[1:] if argv is None else argv, known)
    parser = HfArgumentParser(
        # transformers' type of a dataclass is a new type, which no class is of.
        (ModelArguments, DataArguments, TrainingArguments, LoraArguments),  # pyright: ignore[reportArgumentType]
        usage="%(prog)s --model_name_or_path DIRECTORY --data_path FILE --output_dir DIRECTORY [flags]",
        description="Trains a vision-language model into an agent or a reward model. The other flags are those of "
        "transformers' TrainingArguments.",
    )
    try:
        arguments = Arguments(*parser.parse_args_into_dataclasses(argv, look_for_args_file=False))
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from None
    check_together(arguments)
    if arguments.training.process_index == 0:
        for note in [*notes, *flags.ignored(*arguments), *arguments.training.notes]:
            print(note, file=sys.stderr)
    return arguments


def check_together(arguments: Arguments) -> None:
    """Raises UserError for flags that contradict each other, or have no effect beside the others."""
    values.check_numbers(arguments.model)
    _check_frozen(arguments.training)
    _check_adapter_flags(arguments.training, arguments.lora)
    _check_when(arguments.training, arguments.data)
    _check_recomputation(arguments.training)


def _check_frozen(training: TrainingArguments) -> None:
    if training.freeze is None:
        return
    if training.fix_vit is not None:
        raise UserError(f"--fix_vit {training.fix_vit} says what --freeze {training.freeze} says; leave out either")
    given = training.freeze.split(",")
    if training.freeze != "none" and not all(part in PARTS for part in given):
        raise UserError(f"--freeze {training.freeze}: give vision, projector, language, or some with commas, or none")
    if len(training.frozen) == len(PARTS):
        raise UserError(f"--freeze {training.freeze} leaves nothing to train; leave out a part")


def _check_adapter_flags(training: TrainingArguments, lora: LoraArguments) -> None:
    values.check_numbers(lora)
    if lora.q_lora and not training.use_lora:
        raise UserError("--q_lora trains LoRA adapters; add --use_lora True")
    if lora.q_lora and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--q_lora: bitsandbytes is not installed; pip install bitsandbytes")
    if lora.q_lora and zero_stage(training) == 3:
        raise UserError("--q_lora does not work with ZeRO-3; use finetune/ds_config_zero2.json, or no --deepspeed")
    if lora.lora_bias not in ("none", "all", "lora_only"):
        raise UserError(f"--lora_bias {lora.lora_bias}: give none, all or lora_only")
    if lora.lora_weight_path:
        raise UserError(
            "--lora_weight_path is not supported; leave it out: merge that adapter with merge_lora.py first"
        )
    if training.use_lora and training.fix_vit is False:
        raise UserError("--fix_vit False has no effect on --use_lora True, which trains adapters; leave out either")
    if training.use_lora and training.freeze is not None:
        raise UserError("--freeze has no effect on --use_lora True, which trains adapters alone; leave out either")
    if not training.use_lora and (changed := flags.changed(lora)):
        raise UserError(f"--{changed[0]} has no effect without adapters; add --use_lora True")


def _check_when(training: TrainingArguments, data: DataArguments) -> None:
    strategy = values.word(training.eval_strategy)
    evaluates = strategy != "no" or training.eval_on_start
    if evaluates and data.eval_data_path is None:
        flag = "--eval_on_start True" if strategy == "no" else f"--eval_strategy {strategy}"
        raise UserError(f"{flag} needs --eval_data_path")
    changed = flags.changed(training)
    for flag in ("do_eval", "eval_steps", "eval_delay"):
        if strategy == "no" and flag in changed:
            raise UserError(f"--{flag} has no effect; add --eval_strategy steps, or epoch")
    if data.eval_data_path is not None and not evaluates:
        raise UserError("--eval_data_path has no effect; add --eval_strategy steps, or epoch")
    for what, when in (("eval", strategy), ("save", values.word(training.save_strategy))):
        if when != "steps" and f"{what}_steps" in changed:
            raise UserError(f"--{what}_steps has no effect on --{what}_strategy {when}; leave out either")
    logging = values.word(training.logging_strategy)
    if logging != "steps" and "logging_steps" in changed:  # the recipes give it
        training.notes.append(f"note: --logging_steps is ignored: --logging_strategy is {logging}")


def _check_recomputation(training: TrainingArguments) -> None:
    recomputes = training.gradient_checkpointing or getattr(training, "activation_checkpointing", None)
    if training.checkpoint_layers is not None and not recomputes:
        raise UserError("--checkpoint_layers has no effect; add --gradient_checkpointing True")
    if training.checkpoint_layers is not None and training.checkpoint_layers < 1:
        raise UserError(
            f"--checkpoint_layers {training.checkpoint_layers}: give 1 or more; with --gradient_checkpointing False no "
            "block is computed again"
        )


def zero_stage(training: TrainingArguments) -> int:
    """The ZeRO stage that --deepspeed asks for, 0 without it."""
    config = getattr(training, "hf_deepspeed_config", None)
    return 0 if config is None else int(config.get_value("zero_optimization.stage", 0))
