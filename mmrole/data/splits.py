"""Train/test split: the test samples of given files, or a draw by the published rule."""

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmrole.base.errors import Problems, UserError
from mmrole.base.files import read_records
from mmrole.base.paths import files_below
from mmrole.data.dataset import Dataset, PlacedDialogue
from mmrole.data.dialogues import DISTRIBUTIONS, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, TYPES, Dialogue
from mmrole.data.records import Sample


@dataclass(frozen=True, slots=True)
class Target:
    """An utterance that is the reference answer of a test sample."""

    placed: PlacedDialogue
    index: int


@dataclass(frozen=True)
class Split:
    """The test samples by (distribution, type), in the order of their files, and what must not be trained on."""

    targets: dict[tuple[str, str], list[Target]]
    held_out: frozenset[str]
    """Ids of the dialogues of test samples: none of their utterances is a training sample."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Ids of test samples that cannot be made, by reason."""


def find_test_files(places: Iterable[str | os.PathLike]) -> list[Path]:
    """The files `<type>_test.json` in or below the given folders, without hidden ones; a given file is taken as it is.

    Raises:
        UserError: there is none below a folder, or the folder does not exist.
    """
    files: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"{place} does not exist; give test files, or folders of them")
        names = [f"{kind}_test.json" for kind in TYPES]
        if place.is_dir():
            found = [path for path in files_below(place, "*_test.json") if path.name in names]
        else:
            found = [place]
        if not found:
            raise UserError(f"{place} holds no test files; give a folder with {', '.join(names)} in it or below it")
        files += found
    return list(dict.fromkeys(files))


def read_test_samples(files: Iterable[str | os.PathLike]) -> list[Sample]:
    """The samples of test, answer or review files, each id once, in the order of the files.

    Raises:
        UserError: a file cannot be read, or has faulty records.
    """
    problems = Problems()
    samples: dict[str, Sample] = {}
    for path in files:
        for sample in read_records(path, Sample, problems):
            samples.setdefault(sample.id, sample)
    problems.raise_if_any("the test files have faulty records", "correct them, or give other files")
    return list(samples.values())


def split_by_ids(dataset: Dataset, ids: Sequence[str]) -> Split:
    """The test samples with the given ids, `<dialogue id>_<index of the utterance>`, in the order given."""
    by_id = {placed.dialogue.id: placed for placed in dataset.dialogues}
    split = Split(_empty_targets(), frozenset(id_.rpartition("_")[0] for id_ in ids))
    for id_ in ids:
        name, _, number = id_.rpartition("_")
        placed = by_id.get(name)
        if placed is None:
            reason = "the dialogue is not there"
        elif placed.dialogue.failed:
            reason = "the dialogue's generation failed"
        elif number not in map(str, placed.dialogue.targets):
            reason = "the dialogue has no such utterance of a character"
        else:
            split.targets[placed.file.distribution, placed.file.type].append(Target(placed, int(number)))
            continue
        split.left_out.setdefault(reason, []).append(id_)
    return split


def draw_split(dataset: Dataset, seed: int) -> Split:
    """Draws test samples by the published rule.

    In distribution: one dialogue for each character and type. Out of distribution, where nothing is kept for training:
    one for each character, type and source of images, which are all that the published data has. Half of a type's
    samples are the first turn of a character, half a random later one; between two characters chance decides who.
    A draw depends on nothing but the seed and the owner's own dialogues, but for which half it falls into.
    """
    targets = _empty_targets()
    for (distribution, kind), drawn in targets.items():
        pools: dict[tuple[str | None, str], list[PlacedDialogue]] = {}
        for placed in dataset.dialogues:
            if (placed.file.distribution, placed.file.type) == (distribution, kind) and not placed.dialogue.failed:
                pools.setdefault(_pool(placed), []).append(placed)
        chances = {pool: random.Random(repr((seed, distribution, kind, pool))) for pool in pools}
        ranked = sorted(pools, key=lambda pool: chances[pool].random())
        first = set(ranked[: (len(ranked) + 1) // 2])
        for pool, candidates in pools.items():
            drawn.append(_draw(dataset, candidates, pool in first, chances[pool]))
    held_out = frozenset(target.placed.dialogue.id for drawn in targets.values() for target in drawn)
    return Split(targets, held_out)


def _empty_targets() -> dict[tuple[str, str], list[Target]]:
    return {(distribution, kind): [] for distribution in DISTRIBUTIONS for kind in TYPES}


def _pool(placed: PlacedDialogue) -> tuple[str | None, str]:
    """The owner of a dialogue and, out of distribution, the source of its image."""
    dialogue, file = placed
    if file.distribution == IN_DISTRIBUTION:
        return dialogue.owner, ""
    return dialogue.owner, "COCO" if dialogue.image.startswith("COCO/") else "script"


def _draw(dataset: Dataset, candidates: list[PlacedDialogue], first: bool, chance: random.Random) -> Target:
    """One utterance: the first turn of its speaker, or, where a dialogue has one, a later turn."""
    longer = [placed for placed in candidates if any(turns[1:] for turns in _turns(dataset, placed))]
    placed = chance.choice(candidates if first or not longer else longer)
    turns_of_speakers = list(_turns(dataset, placed))
    if first:
        return Target(placed, chance.choice(turns_of_speakers)[0])
    turns = chance.choice([turns for turns in turns_of_speakers if turns[1:]] or turns_of_speakers)
    return Target(placed, chance.choice(turns[1:] or turns))


def _turns(dataset: Dataset, placed: PlacedDialogue) -> Iterator[list[int]]:
    """The turns of each character who may be tested: in Out-Test, only those out of distribution."""
    dialogue: Dialogue = placed.dialogue
    for speaker in dialogue.speakers:
        character = dataset.characters.get(speaker)  # the human partner is none
        if character is None:
            continue
        if placed.file.distribution == OUT_OF_DISTRIBUTION != character.distribution:
            continue
        yield [index for index in dialogue.targets if dialogue.utterances[index].speaker == speaker]
