"""Builds training and test files from dialogues and profiles in the published layout.

    python -m data_utils.build_dataset --data_root . --output_dir data/mine --test_from data/test

OUTPUT_DIR/train/train.json holds one sample for each utterance of an in-distribution character, without the dialogues
of test samples; OUTPUT_DIR/test/{in-distribution,out-of-distribution}/<type>_test.json hold the test samples.
OUTPUT_DIR/build_info.json, written last, tells how they were made.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from mmrole.base.errors import UserError, listed, run
from mmrole.base.files import sha256, write_json, write_json_list
from mmrole.base.json_values import JsonObject
from mmrole.base.output_folder import filling, refuse_existing
from mmrole.data.dataset import Dataset, as_training, make_sample, read_dataset
from mmrole.data.dialogues import DISTRIBUTIONS, IN_DISTRIBUTION, TYPES, overlooked_files
from mmrole.data.records import Sample
from mmrole.data.splits import Split, draw_split, find_test_files, read_test_samples, split_by_ids

TRAIN_FILE = "train/train.json"
TEST_FILES = {
    (distribution, kind): f"test/{distribution}/{kind}_test.json" for distribution in DISTRIBUTIONS for kind in TYPES
}
INFO_FILE = "build_info.json"

_SHOWN_IDS = 5


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.build_dataset",
        description="Builds training and test files from dialogues and profiles in the published layout.",
    )
    parser.add_argument("--data_root", required=True, metavar="DIR", help="folder that holds dialogues/ and profiles/")
    parser.add_argument(
        "--output_dir", required=True, metavar="OUT", help="folder for train/ and test/; made if needed"
    )
    parser.add_argument(
        "--test_from",
        nargs="+",
        metavar="DIR",
        help="take the test samples whose ids are in the <type>_test.json files in or below these folders "
        "(test files, answers or reviews); without it they are drawn",
    )
    parser.add_argument("--seed", type=int, default=1234, help="of the draw of test samples (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files in OUT, whoever made them")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, builds, writes and reports."""
    arguments = parse_arguments(argv)
    output_dir = Path(arguments.output_dir)
    earlier = [name for name in (TRAIN_FILE, *TEST_FILES.values(), INFO_FILE) if (output_dir / name).exists()]
    refuse_existing(output_dir, earlier, vars(arguments))
    given = find_test_files(arguments.test_from or [])
    own = {os.path.realpath(output_dir / name) for name in TEST_FILES.values()}
    if replaced := [path for path in given if os.path.realpath(path) in own]:
        raise UserError(f"{replaced[0]} of --test_from would be replaced by the output; give another --output_dir")
    published = read_test_samples(given)
    dataset = read_dataset(arguments.data_root)
    if all(placed.dialogue.failed for placed in dataset.dialogues):
        raise UserError(f"{arguments.data_root} has no samples to build: every dialogue's generation failed")
    if arguments.test_from:
        split = split_by_ids(dataset, [sample.id for sample in published])
    else:
        split = draw_split(dataset, arguments.seed)
    tests = {
        key: [make_sample(target.placed.dialogue, target.index, dataset.characters) for target in targets]
        for key, targets in split.targets.items()
    }
    print(_describe(dataset))
    if overlooked := overlooked_files(arguments.data_root):
        names = listed([str(path) for path in overlooked], _SHOWN_IDS)
        print(f"  not read, since they are not in dialogues/<distribution>/<type>/ ({len(overlooked)}): {names}")
    _report_tests(tests, split, published)
    # Test files that this build does not make: of an earlier build, if that is what was there.
    stale = [name for key, name in TEST_FILES.items() if not tests[key]] if INFO_FILE in earlier else []
    with filling(output_dir, vars(arguments), last=INFO_FILE, stale=stale) as folder:
        counts = _write(folder, dataset, split, tests)
        _write_info(folder, arguments, counts, split)
    trained = ", ".join(f"{kind} {counts[TRAIN_FILE, kind]:,}" for kind in TYPES)
    print(f"training: {counts[TRAIN_FILE]:,} samples ({trained})")
    if not counts[TRAIN_FILE]:
        print("  nothing is left to train on: every dialogue is a test dialogue or out of distribution")
    print(f"written to {output_dir}")


def training_samples(dataset: Dataset, split: Split) -> Iterator[JsonObject]:
    """The training samples, by type, in the order of the dialogues; none of a dialogue that is tested."""
    for kind in TYPES:
        for dialogue in dataset.usable(IN_DISTRIBUTION, kind):
            if dialogue.id not in split.held_out:
                for target in dialogue.targets:
                    yield as_training(make_sample(dialogue, target, dataset.characters), kind)


def _write(folder: Path, dataset: Dataset, split: Split, tests: dict[tuple[str, str], list[JsonObject]]) -> Counter:
    """Writes all files but the last; the counts are by file and, for training, also by type."""
    counts: Counter = Counter()

    def counted() -> Iterator[JsonObject]:
        for sample in tqdm(training_samples(dataset, split), desc="training samples", unit=" samples", disable=None):
            counts[TRAIN_FILE, sample["type"]] += 1
            yield sample

    counts[TRAIN_FILE] = write_json_list(folder / TRAIN_FILE, counted())
    for key, samples in tests.items():
        if samples:
            write_json(folder / TEST_FILES[key], samples)
            counts[TEST_FILES[key]] = len(samples)
    return counts


def _write_info(folder: Path, arguments: argparse.Namespace, counts: Counter, split: Split) -> None:
    names = [name for name in counts if isinstance(name, str)]
    info = {
        "data_root": arguments.data_root,
        "test_from": arguments.test_from,
        "seed": None if arguments.test_from else arguments.seed,
        "files": {name: {"records": counts[name], "sha256": sha256(folder / name)} for name in names},
        "training_samples": {kind: counts[TRAIN_FILE, kind] for kind in TYPES},
        "test_ids_left_out": split.left_out,
    }
    write_json(folder / INFO_FILE, info)


def _describe(dataset: Dataset) -> str:
    usable = sum(not placed.dialogue.failed for placed in dataset.dialogues)
    lines = [
        f"characters: {len(dataset.characters):,}, dialogues: {usable:,} "
        f"(besides {len(dataset.dialogues) - usable:,} failed generations, which are left out)"
    ]
    for kind in TYPES:
        owners = {dialogue.owner for name in DISTRIBUTIONS for dialogue in dataset.usable(name, kind)}
        without = [name for name in dataset.characters if name not in owners]
        if without:
            lines.append(f"  no {kind} dialogues of their own ({len(without)}): {listed(without, _SHOWN_IDS)}")
    return "\n".join(lines)


def _report_tests(tests: dict[tuple[str, str], list[JsonObject]], split: Split, published: list[Sample]) -> None:
    for distribution, name in zip(DISTRIBUTIONS, ("In-Test", "Out-Test"), strict=True):
        sizes = [len(tests[distribution, kind]) for kind in TYPES]
        parts = ", ".join(f"{kind} {size}" for kind, size in zip(TYPES, sizes, strict=True))
        print(f"{name}: {sum(sizes)} samples ({parts})" + ("" if sum(sizes) else ": no files are written"))
    for reason, ids in split.left_out.items():
        print(f"  {len(ids)} test samples left out, {reason}: {listed(ids, _SHOWN_IDS)} (all of them: {INFO_FILE})")
    made = {sample["id"]: sample for samples in tests.values() for sample in samples}
    if published and made:
        changed = [sample.id for sample in published if sample.id in made and not _same(sample, made[sample.id])]
        print(f"  {len(made) - len(changed)} of {len(made)} are the same as in --test_from, to the letter")
        if changed:
            print(f"  {len(changed)} differ, because a dialogue or a profile does: {listed(changed, _SHOWN_IDS)}")


def _same(published: Sample, made: JsonObject) -> bool:
    question, answer = made["conversations"]
    fields = ("system", "image", "role", "script", "other_role")
    same_texts = (published.question, published.reference) == (question["value"], answer["value"])
    return same_texts and all(getattr(published, name) == made[name] for name in fields)


if __name__ == "__main__":
    run(main)
