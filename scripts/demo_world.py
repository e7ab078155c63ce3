"""Makes the world of the demo, and what its models learn from besides: a step of `bash scripts/demo.sh`.

python scripts/demo_world.py make --folder demo
python -m data_utils.build_dataset --data_root demo --output_dir demo/data
python scripts/demo_world.py teach --folder demo
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

try:
    from data_utils.dialogues import DISTRIBUTIONS, ID_NAMES, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, TYPES
    from data_utils.errors import run
    from data_utils.files import read_json, write_json
    from data_utils.prompts import METRICS, REVIEW_SYSTEM, ROLE_PLAY_SYSTEM, review_prompt
    from mmrole.demo import controls, lessons
    from mmrole.demo.world import make_world, read_world
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    make = steps.add_parser("make", help="characters, pictures and dialogues, and lessons of the base model")
    make.add_argument("--dialogues", type=int, default=10, help="of each character and type (default: %(default)s)")
    make.add_argument("--profiles", type=int, default=12000, help="lessons about profiles (default: %(default)s)")
    make.add_argument("--pictures", type=int, default=9000, help="lessons about pictures (default: %(default)s)")
    make.add_argument("--comparisons", type=int, default=32000, help="lessons about two words (default: %(default)s)")
    make.add_argument("--reviews", type=int, default=16000, help="lessons about two answers (default: %(default)s)")
    teach = steps.add_parser("teach", help="reviews for the reward model, exchanged pictures, exchanged profiles")
    teach.add_argument("--prompts", type=int, default=800, help="prompts with reviewed answers (default: %(default)s)")
    teach.add_argument("--answers", type=int, default=3, help="answers to each of them (default: %(default)s)")
    for step in (make, teach):
        step.add_argument("--folder", type=Path, default=Path("demo"), help="where the world is (default: %(default)s)")
        step.add_argument("--seed", type=int, default=1, help="of everything (default: %(default)s)")
    return parser.parse_args(argv)


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
    reviewed = lessons.review_lessons(chance, arguments.reviews, reserved) + compared[: arguments.reviews // 2]
    write_json(folder / "critic.json", reviewed)
    print(
        f"{folder}: {len(world.characters)} characters, {len(world.scenes):,} pictures with a dialogue each, "
        f"{len(taught):,} lessons of the base model, {len(compared) + len(reviewed):,} of the reward model"
    )


def teach(arguments: argparse.Namespace) -> None:
    """Writes the reviews of the teacher, the data of the controls, and `vocabulary.txt` (texts for the vocabulary)."""
    folder, chance = arguments.folder, random.Random(f"teacher {arguments.seed}")
    world = read_world(folder, arguments.seed)
    samples = read_json(folder / "data" / "train" / "train.json")
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
    texts += [ROLE_PLAY_SYSTEM, REVIEW_SYSTEM, "You are a helpful assistant."] * 2
    (folder / "vocabulary.txt").write_text("\n\n".join(texts), encoding="utf-8")


if __name__ == "__main__":
    run(main)
