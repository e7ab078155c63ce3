"""Makes the world of the demo, and what its models learn from besides: a step of `bash scripts/demo.sh`.

python scripts/demo_world.py make --folder demo
python -m data_utils.build_dataset --data_root demo --output_dir demo/data
python scripts/demo_world.py teach --folder demo
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from pathlib import Path

try:
    from mmrole.base.arguments import at_least
    from mmrole.base.errors import UserError, run
    from mmrole.base.files import read_json, write_json
    from mmrole.data.dialogues import DISTRIBUTIONS, ID_NAMES, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, TYPES
    from mmrole.data.prompts import METRICS, REVIEW_SYSTEM, ROLE_PLAY_SYSTEM, review_prompt
    from mmrole.demo import controls, lessons
    from mmrole.demo.faults import KINDS
    from mmrole.demo.world import make_world, read_world
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    make = steps.add_parser("make", help="characters, pictures and dialogues, and lessons that come first")
    teach = steps.add_parser("teach", help="reviews for the reward model, exchanged pictures, exchanged profiles")
    for step, flag, least, default, meaning in (
        (make, "--dialogues", 2, 10, "of each character and type; one of them is for the test"),
        (make, "--profiles", 1, 12000, "lessons about profiles"),
        (make, "--pictures", 1, 9000, "lessons about pictures"),
        (make, "--comparisons", 1, 32000, "lessons about two words"),
        (make, "--reviews", 1, 24000, "lessons about two answers"),
        (teach, "--prompts", 1, 500, "prompts with reviewed answers"),
        (teach, "--answers", 1, 3, f"answers to each of them, at most {len(KINDS)}"),
    ):
        step.add_argument(flag, type=at_least(least), default=default, help=f"{meaning} (default: %(default)s)")
    for step in (make, teach):
        step.add_argument("--folder", type=Path, default=Path("demo"), help="where the world is (default: %(default)s)")
        step.add_argument("--seed", type=int, default=1, help="of what is drawn by chance (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.step == "teach" and arguments.answers > len(KINDS):
        parser.error(f"--answers {arguments.answers}: there are {len(KINDS)} kinds of answer")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Runs a step."""
    arguments = parse_arguments(argv)
    (make if arguments.step == "make" else teach)(arguments)


def make(arguments: argparse.Namespace) -> None:
    """Writes the world, and lessons: `base.json`, and for the reward model `comparisons.json` and `critic.json`."""
    folder = arguments.folder
    world = make_world(folder, arguments.seed, arguments.dialogues)
    chance = random.Random(f"lessons {arguments.seed}")
    reserved = {character.catchphrase for character in world.characters.values()}
    taught = lessons.profile_lessons(chance, arguments.profiles, reserved)
    taught += lessons.picture_lessons(chance, arguments.pictures, folder / "images")
    write_json(folder / "base.json", taught)
    compared = lessons.comparison_lessons(chance, arguments.comparisons)
    write_json(folder / "comparisons.json", compared)
    # Some comparisons again, lest they be forgotten.
    reviewed = lessons.review_lessons(chance, arguments.reviews, reserved) + compared[: arguments.reviews // 4]
    write_json(folder / "critic.json", reviewed)
    print(
        f"{folder}: {len(world.characters)} characters, {len(world.scenes):,} pictures with a dialogue each, "
        f"{len(taught):,} lessons of the base model, {len(compared) + len(reviewed):,} of the reward model"
    )


def teach(arguments: argparse.Namespace) -> None:
    """Writes the reviews of the teacher, the data of the controls, and `vocabulary.txt` (texts for the vocabulary)."""
    folder, chance = arguments.folder, random.Random(f"teacher {arguments.seed}")
    world = read_world(folder)
    samples = read_json(folder / "data" / "train" / "train.json")
    if not samples:
        raise UserError(f"{folder / 'data' / 'train' / 'train.json'} is empty; make the world with more --dialogues")
    write_json(folder / "data" / "train" / "train_exchanged.json", controls.exchange_pictures(samples, chance))
    for kind in TYPES:
        for distribution in DISTRIBUTIONS:
            tests = read_json(folder / "data" / "test" / distribution / f"{kind}_test.json")
            exchanged = controls.exchange_pictures(tests, chance)
            write_json(folder / "controls" / "pictures" / distribution / f"{kind}_test.json", exchanged)
        tests = read_json(folder / "data" / "test" / IN_DISTRIBUTION / f"{kind}_test.json")
        for probe, records in controls.probes(tests, world, chance).items():
            write_json(folder / "controls" / "probes" / probe / f"{kind}_test.json", records)
        tests = read_json(folder / "data" / "test" / OUT_OF_DISTRIBUTION / f"{kind}_test.json")
        exchanged = controls.exchange_profiles(tests, world)
        write_json(folder / "controls" / "profiles" / f"{kind}_test.json", exchanged)
    taught = chance.sample(samples, min(arguments.prompts, len(samples)))
    reviewed = controls.teacher_reviews(taught, world, arguments.answers, chance)
    for fault, records in reviewed.items():
        for kind in TYPES:
            own = [record for record in records if f"_{ID_NAMES[kind]}_" in record["id"]]
            write_json(folder / "teacher" / fault / f"{kind}_test.json", own)
    _write_vocabulary(folder, [*samples, *read_json(folder / "base.json")], reviewed)
    answers = sum(map(len, reviewed.values()))
    print(f"{folder / 'teacher'}: {answers:,} answers with {answers * len(METRICS):,} reviews")


def _write_vocabulary(folder: Path, samples: list[dict], reviewed: dict[str, list[dict]]) -> None:
    """Texts like those that the models will read, of training data only."""
    texts = [turn["value"] for sample in samples for turn in sample["conversations"]]
    for record in (record for records in reviewed.values() for record in records):
        texts += [review["review"] for review in record["rm_review"].values()]
        names = {"role": record["role"], "series": record["script"], "other_role": record["other_role"]}
        for metric in METRICS:
            prompt = review_prompt(question="", evaluated_answer="", reference="", metric=metric, **names)
            texts.append(prompt.text)
    # A line of Chinese has no spaces: whole sentences about pictures would become tokens, and nothing be shared.
    texts = [re.sub(r"(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])", "\n", text) for text in texts]
    texts += [ROLE_PLAY_SYSTEM, REVIEW_SYSTEM, "You are a helpful assistant."] * 2
    (folder / "vocabulary.txt").write_text("\n\n".join(texts), encoding="utf-8")


if __name__ == "__main__":
    run(main)
