"""Optimizer steps as a data set: number of the step → the micro-batches of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mmrole.base.errors import UserError, Where
from mmrole.models.families import Family
from mmrole.training.batches import TreeBatch, collate
from mmrole.training.encoding import EncodedSample
from mmrole.training.packing import Bin, Groups, Step, pack_epoch

if TYPE_CHECKING:
    from transformers import TrainingArguments


class StepBatches(NamedTuple):
    """What one process computes in an optimizer step.

    Attributes:
        batches: its micro-batches, as many as every other process has.
        bins: the samples of each.
        n_targets: loss positions of the whole step, on all processes.
        n_tokens: positions of the whole step's samples.
        n_samples: samples of the whole step.
    """

    batches: list[TreeBatch]
    bins: list[Bin]
    n_targets: int
    n_tokens: int
    n_samples: int


@dataclass(frozen=True)
class Packing:
    """How samples become steps; the same for any number of processes, but for who computes what.

    With `drop_last`, an epoch ends before a step that would have fewer samples. With `alone`, a micro-batch is one
    sample.
    """

    samples_per_step: int
    rank: int
    world_size: int
    max_batch_tokens: int
    seed: int
    prompt_tree: bool
    drop_last: bool = False
    alone: bool = False


class TrainingSteps(Dataset):
    """The steps of a run, numbered through all epochs: `steps[number]` is the same on every call.

    It raises UserError if an image that was there has gone, or has been exchanged since; a worker of a DataLoader
    returns it instead, for `checked`: torch would raise it with the worker's traceback for a text.
    """

    def __init__(
        self,
        samples: Sequence[EncodedSample],
        places: Sequence[Where],
        groups: Groups,
        packing: Packing,
        family: Family,
    ) -> None:
        """Takes encoded samples, where each was read, their groups, and the family of the model."""
        self.samples, self.places, self.groups, self.packing, self.family = samples, places, groups, packing, family
        whole, rest = divmod(len(samples), packing.samples_per_step)
        self.steps_per_epoch = whole + (rest > 0 and not packing.drop_last)
        self._epoch, self._steps = -1, []
        self._versions = {file: _version(file) for file in {rows.file for sample in samples for rows in sample.images}}

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __getitem__(self, number: int) -> StepBatches | UserError:
        try:
            return self._batches(number)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return error

    def _batches(self, number: int) -> StepBatches:
        epoch, place = divmod(number, self.steps_per_epoch)
        step = self._pack(epoch)[place]
        bins = step.bins[self.packing.rank]
        return StepBatches(
            batches=[self._collate(bin_) for bin_ in bins],
            bins=bins,
            n_targets=sum(int(self.samples[index].targets[1:].sum()) for index in step.samples),
            n_tokens=sum(len(self.samples[index]) for index in step.samples),
            n_samples=len(step.samples),
        )

    def places_of(self, number: int) -> list[Where]:
        """Where the samples of a step were read."""
        epoch, place = divmod(number, self.steps_per_epoch)
        return [self.places[index] for index in self._pack(epoch)[place].samples]

    def _collate(self, bin_: Bin) -> TreeBatch:
        samples = [self.samples[index] for index in bin_]
        for file in {rows.file for sample in samples for rows in sample.images}:
            if _version(file) not in (None, self._versions[file]):
                raise UserError(
                    f"{file} is not what it was when the run began: put that back, and run the same command again"
                )
        try:
            return collate(
                samples,
                self.family,
                prompt_tree=self.packing.prompt_tree,
                most_nodes=self.packing.max_batch_tokens,
            )
        except OSError as error:
            raise UserError(
                f"{error}; it could be read when the run began: put it back, and run the same command again"
            ) from error

    def _pack(self, epoch: int) -> list[Step]:
        if epoch != self._epoch:
            self._steps = pack_epoch(
                self.groups,
                samples_per_step=self.packing.samples_per_step,
                world_size=self.packing.world_size,
                max_batch_tokens=self.packing.max_batch_tokens,
                seed=self.packing.seed,
                epoch=epoch,
                alone=self.packing.alone,
            )
            self._epoch = epoch
        return self._steps


def _version(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, by which an exchange is noticed; None if it is not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class EpochSampler(Sampler[int]):
    """The numbers of the steps of the epoch that the run is in."""

    def __init__(self, steps_per_epoch: int, global_step: Callable[[], int]) -> None:
        self._steps_per_epoch, self._global_step = steps_per_epoch, global_step

    def __len__(self) -> int:
        return self._steps_per_epoch

    def __iter__(self) -> Iterator[int]:
        start = self._global_step() // self._steps_per_epoch * self._steps_per_epoch
        return iter(range(start, start + self._steps_per_epoch))


def make_loader(steps: TrainingSteps, training: TrainingArguments, global_step: Callable[[], int]) -> DataLoader:
    """Loads the steps of the epoch that the run is in."""
    return DataLoader(
        steps,
        batch_size=1,
        sampler=EpochSampler(steps.steps_per_epoch, global_step),
        collate_fn=only,
        num_workers=training.dataloader_num_workers,
        pin_memory=training.dataloader_pin_memory and training.device.type == "cuda",
        persistent_workers=training.dataloader_persistent_workers,
        prefetch_factor=training.dataloader_prefetch_factor,
        multiprocessing_context=training.dataloader_multiprocessing_context,
    )


def only(items: list[StepBatches]) -> StepBatches:
    """The one item of a DataLoader's batch: a step is batched already."""
    (item,) = items
    return item


def checked(step: StepBatches | UserError) -> StepBatches:
    """A step that a DataLoader gives; raises what its worker found wrong."""
    if isinstance(step, UserError):
        raise step
    return step
