"""Statistics of a data set: characters, images, dialogues, samples, their lengths, and what prompt trees save."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from mmrole.base.tables import Table
from mmrole.data.dataset import Dataset, make_sample
from mmrole.data.dialogues import DISTRIBUTIONS, IN_DISTRIBUTION, TYPES
from mmrole.data.profiles import CATEGORIES, category
from mmrole.data.splits import Split
from mmrole.prompt_tree import build_tree

if TYPE_CHECKING:
    from data_utils.description.sample_tokens import SampleTokens

SPLITS = ("training", "In-Test", "Out-Test")


class SampleLengths(NamedTuple):
    """Lengths of one sample; tokens are 0 without a tokenizer."""

    prompt_characters: int
    reply_characters: int
    prompt_tokens: int = 0
    """Everything before the reply, the positions of the image included."""
    reply_tokens: int = 0
    tokens: int = 0
    """The whole training sample."""


@dataclass
class Group:
    """The dialogues and samples of one type in one split."""

    turns: list[int] = field(default_factory=list)
    """Utterances of each dialogue that has samples here."""
    samples: list[SampleLengths] = field(default_factory=list)
    tree_positions: int = 0
    """Positions of the prefix trees of all dialogues, one tree each; 0 without a tokenizer."""

    def __iadd__(self, other: "Group") -> "Group":
        self.turns += other.turns
        self.samples += other.samples
        self.tree_positions += other.tree_positions
        return self

    @property
    def tokens(self) -> int:
        """Positions of all samples one by one; needs a tokenizer."""
        return sum(sample.tokens for sample in self.samples)


DialogueGroups = dict[tuple[str, str], Group]
"""Groups by (split, type)."""


def measure(dataset: Dataset, split: Split, encoder: "SampleTokens | None" = None) -> DialogueGroups:
    """Measures all samples of a data set.

    Args:
        dataset: characters and dialogues.
        split: which utterances are test samples.
        encoder: counts tokens; without it there are lengths in characters only.
    """
    groups: DialogueGroups = {(name, kind): Group() for name in SPLITS for kind in TYPES}
    chosen: dict[str, list[int]] = {}
    for targets in split.targets.values():
        for target in targets:
            chosen.setdefault(target.placed.dialogue.id, []).append(target.index)
    for placed in tqdm(dataset.dialogues, desc="dialogues", unit=" dialogues", disable=None):
        dialogue, file = placed
        trained = file.distribution == IN_DISTRIBUTION and dialogue.id not in split.held_out
        targets = dialogue.targets if trained else chosen.get(dialogue.id, ())
        if targets:
            name = SPLITS[0] if trained else SPLITS[1 + DISTRIBUTIONS.index(file.distribution)]
            samples = (make_sample(dialogue, index, dataset.characters) for index in targets)
            _measure_dialogue(groups[name, file.type], len(dialogue.utterances), samples, encoder)
    return groups


def character_table(dataset: Dataset, overrides: Mapping[str, str]) -> Table:
    """Characters and their own dialogues by the paper's categories; `overrides` as for `profiles.category`."""
    category_of = {name: category(character.series, overrides) for name, character in dataset.characters.items()}
    characters = Counter((category_of[name], who.distribution) for name, who in dataset.characters.items())
    dialogues: Counter = Counter()
    for dialogue, file in dataset.dialogues:
        if dialogue.owner is not None:
            dialogues[category_of[dialogue.owner], file.type] += 1
    rows = []
    for name in CATEGORIES:
        numbers = [characters[name, distribution] for distribution in DISTRIBUTIONS]
        rows.append([name, *numbers, sum(numbers), *(dialogues[name, kind] for kind in TYPES)])
    header = ["category", "in distribution", "out of distribution", "characters"]
    header += [f"{kind} dialogues" for kind in TYPES]
    return Table("characters", "Characters", header, _with_total(rows))


def image_table(dataset: Dataset) -> Table:
    """Distinct images of the usable dialogues, by where they come from."""
    images: dict[str, set[str]] = {"COCO": set(), "stills": set()}
    dialogues: Counter = Counter()
    for dialogue, file in dataset.dialogues:
        if not dialogue.failed:
            source = "COCO" if dialogue.image.startswith("COCO/") else "stills"
            images[source].add(dialogue.image)
            dialogues[source, file.type] += 1
    rows = [[source, len(names), *(dialogues[source, kind] for kind in TYPES)] for source, names in images.items()]
    header = ["source", "images", *(f"{kind} dialogues" for kind in TYPES)]
    return Table("images", "Images", header, _with_total(rows))


def sample_table(groups: DialogueGroups, max_len: int) -> Table:
    """Dialogues, samples and mean lengths by split and type; with tokens, also how many samples exceed `max_len`."""
    tokens = has_tokens(groups)
    header = ["split", "type", "dialogues", "turns a dialogue", "samples", "prompt characters", "reply characters"]
    if tokens:
        header += ["prompt tokens", "reply tokens", "tokens", "longest", f"over {max_len:,}"]
    rows = []
    for name in SPLITS:
        total = Group()
        for kind in TYPES:
            if groups[name, kind].samples:
                rows.append([name, kind, *_sample_cells(groups[name, kind], max_len, tokens)])
            total += groups[name, kind]
        if total.samples:
            rows.append([name, "all", *_sample_cells(total, max_len, tokens)])
    return Table("samples", "Samples (lengths are means)", header, rows)


def tree_table(groups: DialogueGroups, max_len: int) -> Table:
    """Positions to compute for the training samples: padded to `max_len`, one by one, and as one tree a dialogue."""
    header = [
        "type",
        "samples",
        f"padded to {max_len:,}",
        "one by one",
        "as trees",
        "one by one / trees",
        "padded / trees",
    ]
    total = Group()
    rows = []
    for kind in TYPES:
        if groups[SPLITS[0], kind].samples:
            rows.append([kind, *_tree_cells(groups[SPLITS[0], kind], max_len)])
            total += groups[SPLITS[0], kind]
    return Table("trees", "Positions of training samples", header, [*rows, ["all", *_tree_cells(total, max_len)]])


def has_tokens(groups: DialogueGroups) -> bool:
    """Whether the samples were measured with a tokenizer."""
    return any(group.tree_positions for group in groups.values())


def has_trees(groups: DialogueGroups) -> bool:
    """Whether there are trees to tell of: training samples, measured with a tokenizer."""
    return any(groups[SPLITS[0], kind].tree_positions for kind in TYPES)


def _measure_dialogue(group: Group, n_turns: int, samples: Iterable[dict], encoder: "SampleTokens | None") -> None:
    group.turns.append(n_turns)
    sequences = []
    for sample in samples:
        prompt, reply = (len(turn["value"]) for turn in sample["conversations"])
        if encoder is None:
            group.samples.append(SampleLengths(prompt, reply))
        else:
            sequence, counts = encoder.encode(sample)
            sequences.append(sequence)
            group.samples.append(SampleLengths(prompt, reply, *counts))
    if encoder is not None:
        group.tree_positions += len(build_tree(sequences))


def _sample_cells(group: Group, max_len: int, tokens: bool) -> list:
    samples = group.samples
    cells = [len(group.turns), _mean(group.turns), len(samples)]
    cells += [_mean([sample.prompt_characters for sample in samples])]
    cells += [_mean([sample.reply_characters for sample in samples])]
    if tokens:
        lengths = [sample.tokens for sample in samples]
        cells += [
            _mean([sample.prompt_tokens for sample in samples]),
            _mean([sample.reply_tokens for sample in samples]),
        ]
        cells += [_mean(lengths), max(lengths), sum(length > max_len for length in lengths)]
    return cells


def _tree_cells(group: Group, max_len: int) -> list:
    padded, tokens, tree = len(group.samples) * max_len, group.tokens, group.tree_positions
    return [len(group.samples), padded, tokens, tree, tokens / tree, padded / tree]


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def _with_total(rows: list[list]) -> list[list]:
    return [*rows, ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]]
