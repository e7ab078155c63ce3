"""The final table of the demo: what its models have learned, and whether that is enough.

    python scripts/demo_table.py --folder demo

Written to FOLDER/demo_table.md as well. Exit status 1: a gate does not hold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from data_utils.dialogues import DISTRIBUTIONS, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
    from data_utils.errors import run
    from mmrole.demo import findings
    from mmrole.demo.findings import MODELS, Gate
    from mmrole.demo.world import World, read_world
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


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
    table = answers_table(arguments.folder, world)
    gates = measure(arguments.folder, world)
    text = "\n".join(["# What was learned", "", *table, "", *gates_table(gates)]) + "\n"
    (arguments.folder / "demo_table.md").write_text(text, encoding="utf-8")
    print(text)
    failed = [gate.name for gate in gates if not gate.holds]
    if arguments.no_gates or not failed:
        return 0
    print(f"error: not reached: {'; '.join(failed)}", file=sys.stderr)
    return 1


def answers_table(folder: Path, world: World) -> list[str]:
    """One row for each model, in Markdown."""
    header = "| model | colour | shape | place | count | in character (In-Test) | catchphrase (Out-Test) | score |"
    lines = [header, "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for model in MODELS:
        inside, outside = (findings.model_answers(folder, model, name) for name in DISTRIBUTIONS)
        seen = findings.seen([*inside, *outside], world)
        shares = [*seen[:4], findings.in_character(inside, world)]
        shares.append(findings.speaks_as(outside, findings.own(outside, world)))
        score = findings.mean_score(findings.model_reviews(folder, model))
        cells = [f"{share:.0%}" for share in shares]
        lines.append(f"| {model} | {' | '.join(cells)} | {score:.3f} |")
    pictures = [
        record
        for name in DISTRIBUTIONS
        for record in findings.read_answers(folder / "controls" / "answers" / "pictures" / name)
    ]
    return lines + _exchanged_lines(pictures, world)


def _exchanged_lines(pictures: list[dict], world: World) -> list[str]:
    seen = findings.seen(pictures, _references(pictures, world))
    cells = " | ".join(f"{share:.0%}" for share in seen[:4])
    return [f"| agent, pictures exchanged | {cells} | | | |"]


def _references(records: list[dict], world: World) -> World:
    """The world as the references tell it: a sample's picture is another one, but its reference is not."""
    scenes = dict(world.scenes)
    for record in records:
        scenes[record["image"]] = world.scenes[record["reference_image"]]
    return world._replace(scenes=scenes)


def measure(folder: Path, world: World) -> list[Gate]:
    """All gates with their figures."""
    agent = {name: findings.model_answers(folder, "agent", name) for name in DISTRIBUTIONS}
    answers, controls = folder / "controls" / "answers", folder / "controls" / "probe_reviews"
    pictures = [record for name in DISTRIBUTIONS for record in findings.read_answers(answers / "pictures" / name)]
    profiles = findings.read_answers(answers / "profiles")
    outside = agent[OUT_OF_DISTRIBUTION]
    probes = {name: findings.read_answers(controls / name) for name in ("faithful", "other-colour", "mixed")}
    reviews = {model: findings.model_reviews(folder, model) for model in MODELS}
    every = [record for records in (*probes.values(), *reviews.values()) for record in records]
    scores = {model: findings.mean_score(records) for model, records in reviews.items()}
    baselines = max(scores[model] for model in MODELS if model != "agent")
    seen = findings.seen([*agent[IN_DISTRIBUTION], *outside], world)
    blind = findings.seen(pictures, _references(pictures, world))
    return [
        findings.at_least("the agent names the colour", seen.colour, 0.9),
        findings.at_most("… away from chance, pictures exchanged", abs(blind.colour - findings.CHANCE), 0.1),
        findings.at_least(
            "the agent is in character, In-Test", findings.in_character(agent[IN_DISTRIBUTION], world), 0.95
        ),
        findings.at_least("new characters' catchphrases, Out-Test", _says(outside, findings.own, world), 0.7),
        findings.at_least(
            "… those of the profile, profiles exchanged", _says(profiles, findings.exchanged, world), 0.5
        ),
        findings.at_most("… their own, profiles exchanged", _says(profiles, findings.own, world), 0.1),
        findings.at_least("reviews that parse", findings.parsed(every), 0.99),
        findings.at_least("Pearson with the teacher, fluent answers", findings.agreement(every, world), 0.6),
        findings.at_least(
            "right above wrong colours", findings.separated(probes["faithful"], probes["other-colour"]), 0.8
        ),
        findings.at_least("the agent's score above the baselines'", scores["agent"] - baselines, 1e-6),
    ]


def _says(records, whom, world: World) -> float:
    return findings.speaks_as(records, whom(records, world))


def gates_table(gates: list[Gate]) -> list[str]:
    """The gates in Markdown."""
    lines = ["| | measured | wanted | |", "|---|---:|---:|---|"]
    return lines + [
        f"| {gate.name} | {gate.value:.3f} | {gate.wanted} | {'yes' if gate.holds else '**no**'} |" for gate in gates
    ]


if __name__ == "__main__":
    run(main)
