"""A training run from the command line to the trained checkpoint: check everything, load, train or go on, write."""

from __future__ import annotations

import logging as python_logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch.distributed as dist
from tqdm import tqdm
from transformers import set_seed
from transformers.utils import logging

from mmrole.base.errors import UserError
from mmrole.base.process_environment import check_process_environment
from mmrole.models.adapters import ADAPTER_CONFIG
from mmrole.models.checkpoints import Checkpoint, find_checkpoint
from mmrole.models.families import Family
from mmrole.models.loading import check_checkpoint, read_family, why_no_trees
from mmrole.training import extensions, run_checkpoints, states
from mmrole.training.adapters import load_model, trained_parameters
from mmrole.training.arguments import Arguments, DataArguments, TrainingArguments, parse_arguments
from mmrole.training.dry_run import check_settings
from mmrole.training.encoding import EncodedSample, SampleEncoder
from mmrole.training.output import check_output_dir, finish_move, is_finished, write_result
from mmrole.training.packing import group_samples
from mmrole.training.ranks import from_rank0, lock_output_dir, quiet_where_others_fail, rank0_first, said_once, say
from mmrole.training.reporters import prepare_reporters
from mmrole.training.run_fingerprint import RunFingerprint, fingerprint_run
from mmrole.training.samples import TrainingSample, read_samples
from mmrole.training.steps import Packing, TrainingSteps
from mmrole.training.trainer import TreeTrainer


def main(argv: list[str] | None = None) -> int:
    """Runs finetune.py; returns the exit status.

    Raises:
        UserError: a mistake in arguments, data or checkpoints, in the processes that found it.
    """
    check_process_environment()
    try:
        with said_once():
            arguments = parse_arguments(argv)
        with states.tensors_only(deepspeed=bool(arguments.training.deepspeed)):
            with said_once():
                start = begin(arguments)
            if start is not None:
                with quiet_where_others_fail():
                    train(arguments, start)
        return 0
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class Start(NamedTuple):
    """A run that is ready to load its model.

    Attributes:
        model: the checkpoint to start from.
        prepared: data and family.
        run: what the run is made of, for its checkpoints.
        resumed: the checkpoint to go on from, None to start from the model.
        total_steps: of the whole run.
        lock: descriptor of the output directory's lock, in the first process.
    """

    model: Checkpoint
    prepared: Prepared
    run: RunFingerprint
    resumed: Path | None
    total_steps: int
    lock: int | None


def begin(arguments: Arguments) -> Start | None:
    """Checks everything that can be checked before the model loads, and says what will be done; None: nothing is left.

    Raises:
        UserError: a mistake in data, images or checkpoints.
    """
    training, output_dir = arguments.training, Path(arguments.training.output_dir)
    _quiet_libraries(training)
    model = _find_model(Path(arguments.model.model_name_or_path))
    if output_dir.exists() and output_dir.samefile(model.base):
        raise UserError(f"--output_dir {output_dir} is the model to start from; give another directory for the result")
    samples = rank0_first(training, lambda: _check_and_read(arguments, model))
    family = read_family(model, arguments.model.max_pixels)
    no_trees = from_rank0(training, lambda: why_no_trees(model, family))
    if no_trees is not None:
        say(training, no_trees)
        family = read_family(model, arguments.model.max_pixels, reads_trees=False)
    prepared = rank0_first(training, lambda: _prepare(arguments, family, *samples))
    lock = rank0_first(training, lambda: lock_output_dir(training))
    run = from_rank0(
        training,
        lambda: fingerprint_run(arguments, model, prepared.family, prepared.steps, prepared.eval_steps),
    )
    total = _total_steps(training, prepared.steps)
    check_settings(arguments, prepared.family, total)
    resumed, notes = run_checkpoints.choose(output_dir, training.resume_from_checkpoint)
    if training.use_lora and prepared.family.active_experts:
        kept = ", and --q_lora True leaves them as they are" if arguments.lora.q_lora else ""
        notes.append(f"the experts of this model get no adapters{kept}")
    for note in [*notes, *(extensions.locks() if training.deepspeed else [])]:
        say(training, f"note: {note}")
    if resumed is not None:
        run_checkpoints.check_run(resumed, run)
    rank0_first(training, lambda: finish_move(output_dir, run) if training.process_index == 0 else None)
    if is_finished(output_dir, run, total):
        say(training, f"{output_dir}: all {total:,} steps are done already")
        return None
    check_output_dir(output_dir, run, resumed)
    done = 0 if resumed is None else _steps_behind(resumed, total)
    run_checkpoints.check_free(output_dir, run, done, total)
    if resumed is not None:
        rank0_first(training, lambda: states.check(resumed, done) if training.process_index == 0 else None)
    rank0_first(training, lambda: prepare_reporters(training) if training.process_index == 0 else None)
    say(training, prepared.summary(training, total))
    if resumed is not None:
        say(training, f"going on from {resumed}: {done:,} of {total:,} steps are done")
    return Start(model, prepared, run, resumed, total, lock)


def _find_model(directory: Path) -> Checkpoint:
    if (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").is_file():
        raise UserError(
            f"--model_name_or_path {directory} is a LoRA adapter ({ADAPTER_CONFIG}); merge it, and give the merged "
            f"model: python scripts/merge_lora.py --adapter {directory} --output_dir DIRECTORY"
        )
    return find_checkpoint(directory, use_lora=False)


def train(arguments: Arguments, start: Start) -> None:
    """Loads the model, trains, and writes the result to --output_dir.

    Raises:
        UserError: the loss is not finite, or a checkpoint cannot be written.
    """
    training, prepared = arguments.training, start.prepared
    set_seed(training.seed)
    model = load_model(prepared.family, str(start.model.base), training, arguments.lora)
    start.model.check_unchanged({"model": start.run["--model_name_or_path"]})
    trained, parameters = trained_parameters(model)
    say(training, f"{start.model}: {trained:,} of {parameters:,} parameters are trained")
    trainer = TreeTrainer(model, training, prepared.steps, prepared.family, start.run, prepared.eval_steps)
    try:
        trainer.train(resume_from_checkpoint=None if start.resumed is None else str(start.resumed))
    except KeyboardInterrupt:
        kept, _ = run_checkpoints.find_newest(Path(training.output_dir))
        say(training, f"interrupted: the same command {f'goes on from {kept}' if kept else 'starts again'}")
        raise SystemExit(130) from None
    trainer.remove_surplus()  # a kill after the last checkpoint may have left some
    write_result(trainer, start.total_steps)
    if start.lock is not None:
        os.close(start.lock)
    say(training, f"{training.output_dir}: trained, {start.total_steps:,} steps")


class Prepared(NamedTuple):
    """Everything that is checked before the model loads."""

    family: Family
    steps: TrainingSteps
    eval_steps: TrainingSteps | None
    quoting: int
    """Samples for training with `<img>…</img>` in a text that is no picture."""
    without_system: int
    """Samples for training that get no system message, neither their own nor one for all."""

    def summary(self, training: TrainingArguments, total: int) -> str:
        """What will be trained on, in a line or two."""
        samples = self.steps.samples
        pictured = sum(bool(sample.images) for sample in samples)
        lines = [
            f"{len(samples):,} samples, {pictured:,} of them with a picture, "
            f"{sum(len(sample) for sample in samples):,} tokens: "
            f"{self.steps.steps_per_epoch:,} steps an epoch of {training.samples_per_step:,} samples, {total:,} in all"
        ]
        cut = sum(sample.is_cut for sample in samples)
        emptied = sum(sample.is_cut and not sample.teaches for sample in samples)
        if cut:
            lines.append(
                f"longer than --model_max_length {training.model_max_length:,}, and cut: {cut:,} samples"
                + (f", {emptied:,} of them before anything that is learned" if emptied else "")
            )
        if self.quoting:
            lines.append(
                f"{self.quoting:,} samples have <img>…</img> in a text, which is read as text, not as a picture"
            )
        if self.without_system:
            lines.append(
                f"{self.without_system:,} samples have no system message, which prompts for answers and reviews have; "
                "--system_message TEXT gives all samples one"
            )
        return "\n".join(lines)


Samples: TypeAlias = tuple[list[TrainingSample], list[TrainingSample] | None]
"""Those for training, and those for evaluation, if there are any."""


def _check_and_read(arguments: Arguments, checkpoint: Checkpoint) -> Samples:
    """Reads the samples, and checks data, images and the headers of the weights."""
    is_first = arguments.training.process_index == 0
    if is_first:
        check_checkpoint(checkpoint, arguments.model.max_pixels)
    return _read(arguments.data, decode_images=is_first)  # each image is decoded once


def _prepare(
    arguments: Arguments, family: Family, samples: list[TrainingSample], eval_samples: list[TrainingSample] | None
) -> Prepared:
    """Encodes the samples and makes steps of them."""
    data, training = arguments.data, arguments.training
    packing = Packing(
        samples_per_step=training.samples_per_step,
        rank=training.process_index,
        world_size=training.world_size,
        max_batch_tokens=training.max_batch_tokens,
        seed=training.order_seed,
        prompt_tree=training.prompt_tree,
        drop_last=training.dataloader_drop_last,
        alone=not family.reads_trees,
    )
    encoder = SampleEncoder(family, training.model_max_length, data.system_message)
    steps = _steps(encoder, samples, packing)
    whole = replace(packing, drop_last=False)
    eval_steps = None if eval_samples is None else _steps(encoder, eval_samples, whole)
    if "language" in training.frozen and not training.use_lora and not any(each.images for each in steps.samples):
        raise UserError(
            f"--freeze {training.freeze} trains what sees pictures alone, and no sample of {data.data_path} shows one; "
            "give samples with pictures, or do not freeze language"
        )
    without_system = 0 if data.system_message is not None else sum(sample.system is None for sample in samples)
    return Prepared(family, steps, eval_steps, sum(sample.quotes for sample in samples), without_system)


def _read(data: DataArguments, decode_images: bool) -> Samples:
    """The samples; the problems of both kinds are raised together."""
    read, faults = [], []
    for path in (data.data_path, data.eval_data_path):
        try:
            read.append(None if path is None else read_samples(path, data.image_dir, decode_images=decode_images))
        except UserError as error:
            faults += error.lines
    if faults:
        raise UserError(*faults)
    return read[0], read[1]


def _steps(encoder: SampleEncoder, samples: Sequence[TrainingSample], packing: Packing) -> TrainingSteps:
    hidden = packing.rank != 0 or not sys.stderr.isatty()
    bar = tqdm(encoder.encode_all(samples), "encoding", len(samples), unit=" samples", disable=hidden)
    encoded: list[EncodedSample] = list(bar)
    if not any(sample.teaches for sample in encoded):
        raise UserError(
            f"--model_max_length {encoder.max_length:,} cuts each sample of {samples[0].where.file} before anything "
            "that is learned; give more"
        )
    longest = max(len(sample) for sample in encoded)
    if longest > encoder.family.max_positions:
        raise UserError(
            f"--model_max_length {encoder.max_length:,} is more than the {encoder.family.max_positions:,} positions of "
            f"the model, and the longest sample has {longest:,} tokens; give at most {encoder.family.max_positions}"
        )
    if longest > packing.max_batch_tokens:
        raise UserError(
            f"--max_batch_tokens {packing.max_batch_tokens} is less than the {longest} tokens of the longest sample; "
            f"give at least {longest}, or a smaller --model_max_length"
        )
    if packing.drop_last and len(samples) < packing.samples_per_step:
        raise UserError(
            f"--dataloader_drop_last True leaves nothing of {len(samples)} samples, fewer than the "
            f"{packing.samples_per_step} of a step; leave it out, or give a smaller --per_device_train_batch_size"
        )
    return TrainingSteps(
        encoded,
        [sample.where for sample in samples],
        group_samples(encoded, packing.prompt_tree and encoder.family.reads_trees),
        packing,
        encoder.family,
    )


def _steps_behind(resumed: Path, total: int) -> int:
    done = run_checkpoints.step_of(resumed)
    if done > total:
        raise UserError(
            f"{resumed} has more steps behind it than the {total:,} of this command; give more, or another --output_dir"
        )
    return done


def _total_steps(training: TrainingArguments, steps: TrainingSteps) -> int:
    if training.max_steps > 0:
        return training.max_steps
    return math.ceil(training.num_train_epochs * steps.steps_per_epoch)


def _quiet_libraries(training: TrainingArguments) -> None:
    if training.process_index != 0 or not sys.stderr.isatty():
        logging.disable_progress_bar()
    # What the libraries say to each other's authors, at every step or about what is done on purpose.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers")
    for name, words in (
        ("accelerate.accelerator", "Gradient accumulation steps mismatch"),
        ("DeepSpeed", "Attempting to get learning rate from scheduler before it has started"),
        ("DeepSpeed", "Setting accelerator to CPU"),
        ("transformers.trainer_utils", "do not match the ones in the `trainer_state.json`"),
    ):
        python_logging.getLogger(name).addFilter(lambda record, words=words: words not in record.getMessage())
