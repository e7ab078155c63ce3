"""Times eval/report.py on made-up reviews of many models, and measures its memory.

    python scripts/bench_report.py --models 10 20 40 100

Every model has reviews of the same 294 answers, as many as a published model has, with texts of the published lengths.
Some reviews have no scores, so that models differ in the samples that they share. Prints seconds of one core, peak
memory and the size of the page for each number of models.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmrole.data.dialogues import TYPES
from mmrole.data.prompts import HUMAN_PARTNER, HUMAN_SPEAKER, METRICS, role_play_prompt

PER_FILE = {"in-test": 72, "out-test": 26}
"""Answers of one type of dialogue, of which there are three: 294 in all."""

SERIES = 12
CHARACTERS = 72
ANSWER, REVIEW = 60, 29
"""Mean lengths of texts, in `WORDS`: 540 and 260 characters."""

WORDS = ("the lamp", "of Grey Point", "burns", "for every boat", "that is", "late", "and no storm", "has put it out")
ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Makes reviews, runs the report on them, and prints a row for each number of models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=int, nargs="+", default=[10, 20, 40, 100], metavar="N", help="numbers of models to time")
    add("--missing", type=float, default=0.002, help="share of the reviews without scores (default: %(default)s)")
    add("--keep", type=Path, metavar="DIR", help="put reviews and reports here, and leave them")
    arguments = parser.parse_args(argv)
    print("models  seconds  peak memory  page")
    for number in arguments.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.keep or Path(temporary)) / str(number)
            write_reviews(folder, number, arguments.missing)
            seconds, memory = run_report(folder)
            size = (folder / "report/index.html").stat().st_size
            print(f"{number:6}  {seconds:7.1f}  {memory / 1e6:8,.0f} MB  {size / 1e6:,.1f} MB", flush=True)
    return 0


def write_reviews(folder: Path, n_models: int, missing: float = 0.0) -> None:
    """Writes answers and reviews of `n_models` models in the published layout, the same ones each time."""
    for number in range(n_models):
        rng = random.Random(number)
        quality = 0.7 + 0.4 * number / n_models
        for split, count in PER_FILE.items():
            for kind in TYPES:
                records = [_record(rng, kind, split, index, quality, missing) for index in range(count)]
                answers = [{key: value for key, value in record.items() if key != "rm_review"} for record in records]
                for what, content in (("answers", answers), ("reviews", records)):
                    path = folder / f"{split}_{what}" / f"model-{number:03}" / f"{kind}_test.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(content), "utf-8")


def run_report(folder: Path) -> tuple[float, int]:
    """Processor seconds and peak bytes of the report on the reviews in a folder, with one thread."""
    places = [str(folder / f"{split}_reviews") for split in PER_FILE]
    command = [sys.executable, str(ROOT / "eval/report.py"), "--reviews", *places, "--overwrite"]
    command += ["--output_dir", str(folder / "report"), "--image_dir", str(folder / "images")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with open(folder / "report.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit((folder / "report.log").read_text("utf-8"))
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def _record(rng: random.Random, kind: str, split: str, index: int, quality: float, missing: float) -> dict:
    role, other = f"Keeper {index % CHARACTERS}", HUMAN_PARTNER
    question = role_play_prompt(
        role=role,
        series=f"Harbour Tales {index % SERIES}",
        other_role=other,
        profiles={role: f"{role} keeps a lighthouse."},
        history=[(HUMAN_SPEAKER, "Who are you?"), (role, "The keeper.")],
        last_utterance=f"What is that, keeper, number {index}?",
    )
    return {
        "id": f"{role}_{kind}_{index}",
        "system": "",
        "image": f"Harbour_Tales/{split}/{kind}/{index * 19 // 20:03}.jpg",
        "conversations": [
            {"from": "user", "value": question},
            {"from": "assistant", "value": _text(random.Random(index), ANSWER), "answer": _text(rng, ANSWER)},
        ],
        "role": role,
        "script": f"Harbour Tales {index % SERIES}",
        "other_role": other,
        "rm_review": {metric: _review(rng, quality, missing) for metric in METRICS},
    }


def _review(rng: random.Random, quality: float, missing: float) -> dict:
    if rng.random() < missing:
        return {"review": _text(rng, REVIEW), "score": None, "reason": "no [Scores]: marker"}
    pair = [float(round(min(10, max(0, rng.gauss(9 * quality, 1))))), float(rng.randint(8, 10))]
    return {"review": f"{_text(rng, REVIEW)} [Scores]: ({pair[0]:g}, {pair[1]:g})", "score": pair}


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(words // 2, words * 3 // 2)))


if __name__ == "__main__":
    sys.exit(main())
