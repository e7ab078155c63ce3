"""Fetches the data set, the COCO images that it needs and the weights: `python -m data_utils.download all`."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_utils.download import coco, hub, repository
from data_utils.download.hub import REPOSITORIES, Repository
from data_utils.download.outcome import Outcome, size_text
from data_utils.download.web import Pace, Patience
from mmrole.base.arguments import at_least
from mmrole.base.errors import UserError, listed, run

ALL = ("data", "images", "agent", "rm", "base")
RATE = 20.0
EPILOG = """\
targets:
  data    the data set (dialogues, profiles, stills, training and test files) into the published layout
  images  the COCO train2017 images that the dialogues and data name, and no others
  agent   the weights of MMRole-Agent; rm: of the MMRole-Eval reward model; base: of Qwen-VL-Chat
  all     all of these

HF_ENDPOINT names another hub, HF_TOKEN an access token, HF_HOME the hub's cache, and HF_HUB_OFFLINE=1 takes everything
from that cache. Exit status: 0 all is there, 1 some files failed, 2 wrong usage, no network or no room.
docs/download.md has the details.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = _parse(argv)
    targets = ALL if arguments.target == "all" else (arguments.target,)
    _images_options(arguments, targets)
    revisions = _revisions(arguments.revision, targets)
    complete = True
    for target in targets:
        if target == "images":
            outcome = _images(arguments)
        else:
            source = REPOSITORIES[target]
            outcome = _hub(target, source._replace(revision=revisions.get(target, source.revision)), arguments)
        complete &= outcome.complete
    return 0 if complete else 1


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.download",
        description="Fetches the data set, the COCO images that it needs and the weights. Run again, it goes on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("target", choices=[*ALL, "all"], help="what to fetch, see below")
    add("--data_root", type=Path, default=Path(), metavar="DIR", help="root of the layout (default: this folder)")
    add("--dry_run", action="store_true", help="only say what would be fetched and how large it is")
    add("--overwrite", action="store_true", help="replace files that differ from the published ones")
    add("--verify", action="store_true", help="read again what is there: compute checksums, decode images")
    add(
        "--revision",
        action="append",
        default=[],
        metavar="[TARGET=]REVISION",
        help="commit, tag or branch on the hub (default: main); with all, name the target: agent=COMMIT",
    )
    add("--workers", type=at_least(1), default=8, metavar="N", help="files at the same time (default: 8)")
    add("--retries", type=at_least(0), default=5, metavar="N", help="further tries for a file (default: 5)")
    add(
        "--retry_wait",
        type=at_least(0, float),
        default=1.0,
        metavar="S",
        help="seconds before the first, doubled each time",
    )
    add(
        "--timeout",
        type=at_least(0.01, float),
        default=20.0,
        metavar="S",
        help="seconds of silence until a connection is dead (default: 20; files of the hub: HF_HUB_DOWNLOAD_TIMEOUT)",
    )
    add = parser.add_argument_group("images").add_argument
    add(
        "--names_from",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="JSON files, or folders of them, that name the images (default: dialogues, data and RM_data)",
    )
    add("--coco_url", metavar="URL", help=f"where single files are served (default: {coco.COCO_URL})")
    add("--coco_zip", type=Path, metavar="FILE", help="take the images from COCO's archive, train2017.zip, on disk")
    add("--rate", type=at_least(0, float), metavar="N", help=f"requests a second, 0: no limit (default: {RATE})")
    return parser.parse_args(argv)


def _images_options(arguments: argparse.Namespace, targets: tuple[str, ...]) -> None:
    """Refuses options of the images where no images are fetched, and fills in defaults."""
    given = [name for name in ("names_from", "coco_url", "coco_zip", "rate") if getattr(arguments, name) is not None]
    if given and "images" not in targets:
        raise UserError(f"--{given[0]} is for the target images, not for {arguments.target}")
    if arguments.coco_zip is not None and {"coco_url", "rate"} & set(given):
        raise UserError("--coco_zip takes the images from a file; leave out --coco_url and --rate")
    arguments.coco_url = (arguments.coco_url or coco.COCO_URL).rstrip("/")
    if not arguments.coco_url.startswith(("http://", "https://")):
        raise UserError(f"--coco_url {arguments.coco_url} is no web address; it starts with http:// or https://")
    arguments.rate = RATE if arguments.rate is None else arguments.rate


def _revisions(given: list[str], targets: tuple[str, ...]) -> dict[str, str]:
    """The revision by target."""
    repositories = [target for target in targets if target in REPOSITORIES]
    revisions = {}
    for text in given:
        target, _, revision = text.rpartition("=")
        if not target and len(repositories) == 1:
            target = repositories[0]
        if target not in repositories or not revision:
            names = " or ".join(f"--revision {name}=REVISION" for name in repositories)
            raise UserError(f"--revision {text} fits none of the targets; write {names or 'none: images have none'}")
        revisions[target] = revision
    return revisions


def _hub(target: str, source: Repository, arguments: argparse.Namespace) -> Outcome:
    patience = Patience(arguments.retries, arguments.retry_wait, arguments.timeout)
    hub.silence_client()
    plan = repository.make_plan(source, arguments.data_root, patience, arguments.verify)
    outcome = Outcome(target)
    if arguments.dry_run:
        print(repository.describe_plan(target, plan, arguments.overwrite), flush=True)
        return outcome
    print(repository.headline(target, plan), flush=True)
    with _summed_up(outcome):
        repository.carry_out(plan, outcome, patience, arguments.workers, arguments.overwrite)
    return outcome


def _images(arguments: argparse.Namespace) -> Outcome:
    image_dir, outcome = arguments.data_root / "images", Outcome("images")
    try:
        names = coco.needed_images(arguments.data_root, arguments.names_from or ())
    except coco.NoNamesError as error:
        if not (arguments.dry_run and arguments.target == "all"):
            raise
        print(f"images: {error}; the published data needs {coco.PUBLISHED}", flush=True)
        return outcome
    missing = coco.select_missing(names, image_dir, arguments.verify)
    outcome.present = len(names) - len(missing)
    pace = Pace(arguments.rate)
    if arguments.dry_run:
        print(_images_plan(arguments, names, missing, pace), flush=True)
        return outcome
    with _summed_up(outcome):
        if missing:
            with _reader(arguments, missing, pace) as read:
                coco.fetch_images(missing, image_dir, read, outcome, pace, arguments.workers)
    return outcome


@contextmanager
def _reader(arguments: argparse.Namespace, missing: list[str], pace: Pace) -> Iterator[Callable[[str], bytes]]:
    if arguments.coco_zip is not None:
        with coco.from_zip(arguments.coco_zip) as read:
            yield read
    else:
        coco.check_reachable(arguments.coco_url, missing[0], arguments.timeout)
        patience = Patience(arguments.retries, arguments.retry_wait, arguments.timeout)
        yield coco.from_web(arguments.coco_url, patience, pace)


def _images_plan(arguments: argparse.Namespace, names: list[str], missing: list[str], pace: Pace) -> str:
    folder = arguments.data_root / "images" / coco.FOLDER
    lines = [f"images: {len(names):,} COCO images are named, {len(names) - len(missing):,} of them in {folder}"]
    if arguments.coco_zip is not None:
        sizes = coco.zip_sizes(arguments.coco_zip)
        there = [name for name in missing if name in sizes]
        size = size_text(sum(sizes[name] for name in there))
        lines.append(f"  to take from {arguments.coco_zip}: {len(there):,} files, {size}")
        if absent := [name for name in missing if name not in sizes]:
            lines.append(f"  not in it: {len(absent):,} files: {listed(absent, 10)}")
    elif missing:
        size = coco.estimate_size(missing, arguments.coco_url, arguments.timeout, pace)
        lines.append(f"  to fetch from {arguments.coco_url}: {len(missing):,} files, {size}")
    return "\n".join(lines)


@contextmanager
def _summed_up(outcome: Outcome) -> Iterator[None]:
    """Prints the summary, also when the download ends early with something done."""
    try:
        yield
    except BaseException:
        if outcome.fetched or outcome.failed:
            print(outcome.summary(), flush=True)
        raise
    print(outcome.summary(), flush=True)


if __name__ == "__main__":
    run(main)
