"""Checks the published weights against what was published of them: one page of differences.

    python scripts/verify_release.py

The reward model reviews published answers, greedily, and its reviews are compared with the published ones; the agent
answers the same samples, greedily, and its answers are compared with the published ones. OUTPUT_DIR/differences.md is
written last. Killed or interrupted, the same command goes on where it was.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from mmrole.backends.options import DTYPES, at_least
    from mmrole.base.errors import UserError, run
    from mmrole.base.files import replacing
    from mmrole.scoring.agreement import match, measure_agreement, read_reviews
    from mmrole.scoring.release import AnswerCheck, ReviewCheck, read_answer_pairs, release_page
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parent.parent
SPLITS = {"in-test": "In-Test", "out-test": "Out-Test"}
PAGE = "differences.md"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("model").add_argument
    add(
        "--reward_model_path",
        type=Path,
        default=Path("model_weights/MMRole-Eval_RM"),
        help="checkpoint of the reward model (default: %(default)s)",
    )
    add(
        "--agent_path",
        type=Path,
        default=Path("model_weights/MMRole-Agent"),
        help="checkpoint of the agent (default: %(default)s)",
    )
    add("--only", choices=("agent", "reward_model"), help="check one of them (default: both)")
    add("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 or float16 on a GPU, float32 on the CPU")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")

    add = parser.add_argument_group("input and output").add_argument
    add("--image_dir", type=Path, default=Path("images"), help="folder of the images (default: %(default)s)")
    add(
        "--published_dir",
        type=Path,
        default=Path("eval"),
        help="folder with the published {in,out}-test_answers/MODEL and {in,out}-test_reviews/MODEL; what is there is "
        "checked (default: %(default)s)",
    )
    add(
        "--models",
        nargs="+",
        default=["mmrole-agent"],
        metavar="MODEL",
        help="whose published answers the reward model reviews (default: mmrole-agent)",
    )
    add("--agent", default="mmrole-agent", metavar="MODEL", help="the agent's folder there (default: %(default)s)")
    add(
        "--output_dir",
        type=Path,
        default=Path("release_check"),
        help="folder for new reviews and answers and the page (default: %(default)s)",
    )
    add("--limit", type=at_least(1), metavar="N", help="only the first N records of each file, to try things out")
    add("--skip_missing_images", action="store_true", help="leave out records without their image file, and list them")
    add("--max_new_tokens", type=at_least(1), metavar="N", help="most tokens of a reply (default: of the checkpoint)")
    options = parser.parse_args(argv)
    for name in (*options.models, options.agent):
        if Path(name).name != name or name in ("", ".."):
            parser.error(f"{name!r} is no model; give the name of its folder in --published_dir's folders, not a path")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both models, compares, and writes the page; returns the exit status."""
    options = parse_arguments(argv)
    reviews = [] if options.only == "agent" else _found(options, "reviews", options.models)
    answers = [] if options.only == "reward_model" else _found(options, "answers", [options.agent])
    page = options.output_dir / PAGE
    text = release_page(
        _settings(options),
        [_check_reviews(options, split, model) for split, model in reviews],
        [_check_answers(options, split, model) for split, model in answers],
    )
    with replacing(page) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    print(f"wrote {page}")
    return 0


def _found(options: argparse.Namespace, what: str, models: Sequence[str]) -> list[tuple[str, str]]:
    """(split, model) of what was published and can be checked: all of it is looked for before any model runs.

    Raises:
        UserError: of a model there is nothing, or reviews without the answers.
    """
    found = []
    for model in models:
        splits = [split for split in SPLITS if _folder(options.published_dir, split, what, model).is_dir()]
        if not splits:
            place = _folder(options.published_dir, "in-test", what, model)
            raise UserError(
                f"no published {what} of {model} (as {place}); give another --published_dir, or other models"
            )
        for split in splits:
            folder = _folder(options.published_dir, split, "answers", model)
            if not folder.is_dir():
                raise UserError(f"{folder}, whose reviews are to be compared, does not exist; put the answers there")
            found.append((split, model))
    return found


def _check_reviews(options: argparse.Namespace, split: str, model: str) -> ReviewCheck:
    output = _folder(options.output_dir, split, "reviews", model)
    # Retries would sample.
    _generate(options, ["eval/RM_review.py", "--retries", "0"], options.reward_model_path, split, model, output)
    now, published = read_reviews([output]), read_reviews([_folder(options.published_dir, split, "reviews", model)])
    matched = match(now, published)
    return ReviewCheck(f"{model}, {SPLITS[split]}", matched, measure_agreement(matched))


def _check_answers(options: argparse.Namespace, split: str, model: str) -> AnswerCheck:
    published = _folder(options.published_dir, split, "answers", model)
    output = _folder(options.output_dir, split, "answers", model)
    _generate(options, ["inference.py"], options.agent_path, split, model, output)
    return AnswerCheck(SPLITS[split], *read_answer_pairs(published, output))


def _generate(
    options: argparse.Namespace, program: Sequence[str], checkpoint: Path, split: str, model: str, output_dir: Path
) -> None:
    """Runs a script, greedily, on the published answers, which are test samples as well, in a process of its own.

    Raises:
        UserError: the script failed; it has said why.
    """
    arguments = {
        "--model_path": checkpoint,
        "--image_dir": options.image_dir,
        "--input_dir": _folder(options.published_dir, split, "answers", model),
        "--output_dir": output_dir,
        "--dtype": options.dtype,
        "--device": options.device,
        "--limit": options.limit,
        "--max_new_tokens": options.max_new_tokens,
    }
    script, *flags = program
    command = [sys.executable, str(ROOT / script), *flags, "--no_random"]
    command += [str(part) for name, value in arguments.items() if value is not None for part in (name, value)]
    command += ["--skip_missing_images"] if options.skip_missing_images else []
    print(f"{script}: {SPLITS[split]} answers of {model} with {checkpoint}", flush=True)
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the script has got it too, and keeps what is finished
            process.wait()
            raise
    if status:
        raise UserError(f"{script} ended with status {status}; mend what it says above and run the same command again")


def _folder(base: Path, split: str, what: str, model: str) -> Path:
    return base / f"{split}_{what}" / model


def _settings(options: argparse.Namespace) -> list[str]:
    """What the page says of how it was made."""
    checkpoints = {"reward_model": options.reward_model_path, "agent": options.agent_path}
    lines = [f"{name.replace('_', ' ')}: {path}" for name, path in checkpoints.items() if options.only in (None, name)]
    lines += [f"published outputs: {options.published_dir}", f"greedy decoding, dtype {options.dtype}"]
    if options.limit is not None:
        lines.append(f"only the first {options.limit} records of each file")
    if options.max_new_tokens is not None:
        lines.append(f"at most {options.max_new_tokens} tokens a reply")
    if options.skip_missing_images:
        lines.append("without the records whose image file is missing")
    return lines


if __name__ == "__main__":
    run(main)
