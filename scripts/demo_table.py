"""The final table of the demo: what its models have learned, and whether that is enough.

    python scripts/demo_table.py --folder demo

Written to FOLDER/demo_table.md as well. Exit status 1: a gate does not hold.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from mmrole.base.json_values import JsonObject

try:
    from mmrole.base.errors import run
    from mmrole.data.dialogues import DISTRIBUTIONS
    from mmrole.data.prompts import METRICS
    from mmrole.demo import findings
    from mmrole.demo.characters import CastMember
    from mmrole.demo.controls import PROBES
    from mmrole.demo.findings import CHANCE, MODELS, Gate, TeacherAgreement
    from mmrole.demo.world import World, read_world
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

Reviews = dict[str, list[JsonObject]]
"""Reviewed answers by model, or by kind of probe."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of the demo (default: %(default)s)")
    parser.add_argument("--no_gates", action="store_true", help="show the figures, whatever they are")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = parse_arguments(argv)
    world = read_world(arguments.folder)
    reviews = {model: findings.model_reviews(arguments.folder, model) for model in MODELS}
    probes = {
        name: findings.read_answer_records(arguments.folder / "controls" / "probe_reviews" / name) for name in PROBES
    }
    agreements = {
        "all": findings.agreement(_together(reviews, probes), world),
        "the agent's": findings.agreement(reviews["agent"], world),
        "blind's": findings.agreement(reviews["blind"], world),
        "with faults of all kinds": findings.agreement(probes["mixed"], world),
    }
    gates = [*answer_gates(arguments.folder, world), *review_gates(reviews, probes, agreements["all"])]
    table = answers_table(arguments.folder, reviews, world)
    parts = [
        "# What was learned",
        "",
        *table,
        "",
        *findings.gates_table(gates),
        "",
        *details_table(arguments.folder, world),
        "",
    ]
    parts += agreement_table(agreements)
    text = "\n".join(parts) + "\n"
    (arguments.folder / "demo_table.md").write_text(text, encoding="utf-8")
    print(text)
    failed = [gate.name for gate in gates if not gate.holds]
    if arguments.no_gates or not failed:
        return 0
    print(f"error: not reached: {'; '.join(failed)}", file=sys.stderr)
    return 1


def answers_table(folder: Path, reviews: Reviews, world: World) -> list[str]:
    """One row for each model, in Markdown."""
    lines = [
        "| | names the colour | shape | place | count | own catchphrase, In-Test | own address, In-Test"
        " | own catchphrase, Out-Test | score by the reward model |",
        "|---|" + "---:|" * 8,
    ]
    for model in MODELS:
        inside, outside = (findings.model_answers(folder, model, name) for name in DISTRIBUTIONS)
        shares = [
            *findings.seen([*inside, *outside], world)[:4],
            _says(inside, findings.own, world),
            findings.addresses(inside, world),
            _says(outside, findings.own, world),
        ]
        cells = [f"{share:.0%}" for share in shares]
        lines.append(f"| {model} | {' | '.join(cells)} | {findings.mean_score(reviews[model]):.3f} |")
    lines += _exchanged_lines(_exchanged_pictures(folder), world)
    return [*lines, f"| chance | {' | '.join(f'{share:.0%}' for share in CHANCE)} | | | | |"]


def _exchanged_pictures(folder: Path) -> list[JsonObject]:
    answers = folder / "controls" / "answers" / "pictures"
    return [record for name in DISTRIBUTIONS for record in findings.read_answer_records(answers / name)]


def _exchanged_lines(pictures: list[JsonObject], world: World) -> list[str]:
    seen = findings.seen(pictures, _references(pictures, world))
    cells = " | ".join(f"{share:.0%}" for share in seen[:4])
    return [f"| agent, pictures exchanged | {cells} | | | | |"]


def _references(records: list[JsonObject], world: World) -> World:
    """The world as the references tell it: a sample's picture is another one, but its reference is not."""
    scenes = dict(world.scenes)
    for record in records:
        scenes[record["image"]] = world.scenes[record["reference_image"]]
    return world._replace(scenes=scenes)


def answer_gates(folder: Path, world: World) -> list[Gate]:
    """What the agent's answers must show."""
    inside, outside = (findings.model_answers(folder, "agent", name) for name in DISTRIBUTIONS)
    profiles = findings.read_answer_records(folder / "controls" / "answers" / "profiles")
    pictures = _exchanged_pictures(folder)
    seen = findings.seen([*inside, *outside], world)
    blind = findings.seen(pictures, _references(pictures, world))
    own, exchanged = findings.own, findings.exchanged
    colours = f"{seen.answers} answers about a picture"
    count = f"{len(outside)} answers, {len({record['role'] for record in outside})} characters"
    return [
        findings.gate_from("the agent names the colour", seen.colour, colours, 0.9),
        findings.at_most("… away from chance, pictures exchanged", abs(blind.colour - CHANCE[0]), colours, 0.1),
        findings.gate_from("the right catchphrase, In-Test", _says(inside, own, world), f"{len(inside)} answers", 0.95),
        findings.gate_from("catchphrases never seen before, Out-Test", _says(outside, own, world), count, 0.5),
        findings.gate_from("… those of the profile, profiles exchanged", _says(profiles, exchanged, world), count, 0.5),
        findings.at_most("… their own, profiles exchanged", _says(profiles, own, world), count, 0.1),
    ]


def review_gates(reviews: Reviews, probes: Reviews, agreement: TeacherAgreement) -> list[Gate]:
    """What the reward model's reviews must show."""
    every = _together(reviews, probes)
    right, wrong = probes["faithful"], probes["other-colour"]
    gates = [
        findings.gate_from("reviews that parse", findings.parsed(every), f"{len(every)} answers, eight each", 0.99),
        findings.gate_from(
            "Pearson with the teacher, fluent answers", agreement.pooled, f"{agreement.reviews:,} reviews", 0.6
        ),
        findings.gate_from("right above wrong colours", findings.separated(right, wrong), f"{len(right)} pairs", 0.8),
    ]
    for baseline in (model for model in MODELS if model != "agent"):
        lead = findings.lead(reviews["agent"], reviews[baseline])
        of = f"{len(reviews['agent'])} answers, mean {lead.value:.3f}"
        gates.append(findings.above(f"the agent's lead on {baseline}, lower end of 95 %", lead.low, of, 0))
    return gates


def _together(*groups: Reviews) -> list[JsonObject]:
    return [record for group in groups for records in group.values() for record in records]


def _says(
    records: list[JsonObject], whom: Callable[[list[JsonObject], World], list[CastMember]], world: World
) -> float:
    return findings.speaks_as(records, whom(records, world))


def details_table(folder: Path, world: World) -> list[str]:
    """What the agent's answers tell of the profile, and how it fares in either language, in Markdown; not gated."""
    records = [record for name in DISTRIBUTIONS for record in findings.model_answers(folder, "agent", name)]
    rows = {f"says the profile's {topic}": findings.told(records, topic, world) for topic in ("friend", "home", "work")}
    for language, chinese in (("English", False), ("Chinese", True)):
        spoken = [record for record in records if world.characters[record["role"]].chinese == chinese]
        seen = findings.seen(spoken, world)
        rows[f"colour, in {language}"] = (seen.colour, seen.answers)
        rows[f"the right catchphrase, in {language}"] = (_says(spoken, findings.own, world), len(spoken))
    lines = ["| the agent, In-Test and Out-Test | right | answers |", "|---|---:|---:|"]
    return lines + [f"| {name} | {share:.0%} | {count} |" for name, (share, count) in rows.items()]


def agreement_table(agreements: dict[str, TeacherAgreement]) -> list[str]:
    """Pearson's correlations with the teacher in Markdown."""
    rows = {
        "all metrics": [each.pooled for each in agreements.values()],
        "… each one's mean taken off": [each.within for each in agreements.values()],
        **{metric: [each.by_metric[metric] for each in agreements.values()] for metric in METRICS},
    }
    lines = [
        f"| Pearson with the teacher, fluent answers | {' | '.join(agreements)} |",
        "|---|" + "---:|" * len(agreements),
    ]
    for name, figures in rows.items():
        lines.append(f"| {name} | {' | '.join('–' if math.isnan(each) else f'{each:.2f}' for each in figures)} |")
    return lines


if __name__ == "__main__":
    run(main)
