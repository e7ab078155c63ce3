"""Steps of `bash scripts/demo.sh --real`: its world, its model that cannot see yet, and what came of them.

python scripts/demo_real.py world --folder demo-real
python scripts/demo_real.py checkpoint --folder demo-real
python -m data_utils.build_dataset --data_root demo-real --output_dir demo-real/data
python scripts/demo_real.py exchange --folder demo-real
python scripts/demo_real.py table --folder demo-real
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

try:
    from transformers.utils import logging

    from mmrole.base.arguments import at_least
    from mmrole.base.errors import UserError, run
    from mmrole.base.files import read_json, write_json
    from mmrole.base.json_values import JsonObject
    from mmrole.data.dialogues import DISTRIBUTIONS, TYPES
    from mmrole.demo import controls, real_findings, showing, smollm2, talks
    from mmrole.demo.findings import gates_table, model_answers, read_answer_records
    from mmrole.demo.real_findings import Fluency
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

START = Path("checkpoints/start")
"""The model that cannot see yet, in the folder of the demo."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    world = steps.add_parser("world", help="characters, pictures, dialogues and lessons")
    world.add_argument("--characters", type=at_least(3), default=76, help="in distribution (default: %(default)s)")
    for flag, least, default, meaning in (
        ("--comments", 2, 6, "comments of each of them; one is for the test"),
        ("--human_talks", 2, 4, "talks of each of them with a person"),
        ("--inter_role_talks", 2, 2, "talks of each of them with another"),
        ("--lessons", 1, 3200, "pictures with a plain sentence"),
    ):
        world.add_argument(flag, type=at_least(least), default=default, help=f"{meaning} (default: %(default)s)")
    checkpoint = steps.add_parser("checkpoint", help=f"SmolLM2-135M-Instruct behind a random vision tower -> {START}")
    exchange = steps.add_parser("exchange", help="test samples with exchanged pictures")
    table = steps.add_parser("table", help="what was learned; exit status 1 if a gate does not hold")
    table.add_argument("--no_gates", action="store_true", help="show the figures, whatever they are")
    for step in (world, checkpoint, exchange, table):
        step.add_argument("--folder", type=Path, default=Path("demo-real"), help="of the demo (default: %(default)s)")
        step.add_argument("--seed", type=int, default=1, help="of what is drawn by chance (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs a step; returns the exit status."""
    arguments = parse_arguments(argv)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return {"world": world, "checkpoint": checkpoint, "exchange": exchange, "table": table}[arguments.step](arguments)


def world(arguments: argparse.Namespace) -> int:
    """Writes the world, and `lessons.json`."""
    counts = {
        "comment": arguments.comments,
        "human-role": arguments.human_talks,
        "inter-role": arguments.inter_role_talks,
    }
    made = talks.make_real_world(arguments.folder, arguments.seed, arguments.characters, counts)
    chance = random.Random(f"lessons {arguments.seed}")
    lessons = talks.caption_lessons(arguments.folder, chance, arguments.lessons)
    write_json(arguments.folder / "lessons.json", lessons)
    print(
        f"{arguments.folder}: {len(made.catchphrases)} characters, {len(made.scenes):,} pictures with a dialogue each, "
        f"{len(lessons):,} with a sentence"
    )
    return 0


def checkpoint(arguments: argparse.Namespace) -> int:
    """Writes the model that cannot see yet."""
    model, processor = smollm2.make_real_checkpoint(arguments.seed)
    smollm2.write_real_checkpoint(arguments.folder / START, model, processor)
    random_ones = model.num_parameters() - model.model.language_model.num_parameters()
    print(f"{arguments.folder / START}: {model.num_parameters():,} parameters, of which {random_ones:,} are random")
    return 0


def exchange(arguments: argparse.Namespace) -> int:
    """Writes the test samples with exchanged pictures."""
    chance = random.Random(f"exchange {arguments.seed}")
    for kind in TYPES:
        for distribution in DISTRIBUTIONS:
            tests = read_json(arguments.folder / "data" / "test" / distribution / f"{kind}_test.json")
            exchanged = controls.exchange_pictures(tests, chance)
            write_json(arguments.folder / "controls" / "pictures" / distribution / f"{kind}_test.json", exchanged)
    return 0


def table(arguments: argparse.Namespace) -> int:
    """Shows and writes the gates, and five talks beside their pictures."""
    folder = arguments.folder
    known = talks.read_real_world(folder)
    inside, outside = (model_answers(folder, "agent", name) for name in DISTRIBUTIONS)
    answers = folder / "controls" / "answers" / "pictures"
    exchanged = [record for name in DISTRIBUTIONS for record in read_answer_records(answers / name)]
    if not inside or not outside:
        raise UserError(f"{folder} has no answers of the agent; run: bash scripts/demo.sh --real")
    fluency = _fluency(folder, [*inside, *outside])
    gates = real_findings.real_gates(inside, outside, exchanged, fluency, known)
    text = "\n".join(["# What was learned", "", *gates_table(gates), "", *_fluency_line(fluency)]) + "\n"
    (folder / "demo_table.md").write_text(text, encoding="utf-8")
    print(text)
    chosen = [*random.Random(arguments.seed).sample(inside, 3), *random.Random(arguments.seed).sample(outside, 2)]
    for record in chosen:
        print(*showing.talk_lines(folder / "images", record, sys.stdout.isatty()), "", sep="\n")
    failed = [gate.name for gate in gates if not gate.holds]
    if arguments.no_gates or not failed:
        return 0
    print(f"error: not reached: {'; '.join(failed)}", file=sys.stderr)
    return 1


def _fluency(folder: Path, records: list[JsonObject]) -> Fluency:
    """Of the answers, and of the references: what the world's author would have said."""
    model, tokenizer = smollm2.load_language_model(folder / START)
    spoken = {
        key: [
            (record["system"], record["conversations"][0]["value"], record["conversations"][1][key])
            for record in records
        ]
        for key in ("answer", "value")
    }
    return Fluency(
        answers=real_findings.mean_log_probability(model, tokenizer, spoken["answer"]),
        teaching=real_findings.mean_log_probability(model, tokenizer, spoken["value"]),
    )


def _fluency_line(fluency: Fluency) -> list[str]:
    return [
        "Mean log-probability of a token under the unchanged SmolLM2-135M-Instruct, which does not see the picture: "
        f"{fluency.answers:.2f} of the answers, {fluency.teaching:.2f} of the replies that the world's author wrote."
    ]


if __name__ == "__main__":
    run(main)
