"""Describes a data set in the published layout: characters, images, dialogues, samples, lengths, and what trees save.

    python -m data_utils.describe --data_root . --test_from data/test --tokenizer model_weights/Qwen-VL-Chat \
        --output_dir data/statistics

The tables are printed; with --output_dir they are written as Markdown and CSV, with figures as PNG and SVG.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_utils.description.statistics import character_table, has_trees, image_table, measure, sample_table, tree_table
from mmrole.base.arguments import at_least
from mmrole.base.errors import UserError, listed, run
from mmrole.base.files import replacing
from mmrole.base.output_folder import filling, refuse_existing
from mmrole.base.tables import Table
from mmrole.data.dataset import IMAGE_FOLDER, Dataset, read_dataset
from mmrole.data.profiles import CATEGORIES
from mmrole.data.splits import draw_split, find_test_files, read_test_samples, split_by_ids

if TYPE_CHECKING:
    from data_utils.description.sample_tokens import SampleTokens

TABLES_FILE = "statistics.md"

_NOTE = "Tokens are those of training samples; {}. A tree holds one dialogue's samples."


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.describe",
        description="Describes a data set in the published layout: characters, images, dialogues, samples, lengths, "
        "and what prompt trees save.",
    )
    add = parser.add_argument
    add("--data_root", required=True, metavar="DIR", help="folder that holds dialogues/ and profiles/")
    add("--output_dir", metavar="OUT", help="write the tables (Markdown, CSV) and figures (PNG, SVG) there")
    add(
        "--test_from",
        nargs="+",
        metavar="DIR",
        help="folders or files with the ids of the test samples, as for build_dataset; without it they are drawn",
    )
    add("--seed", type=int, default=1234, help="of the draw of test samples (default: %(default)s)")
    add(
        "--tokenizer",
        metavar="PATH",
        help="checkpoint folder, of which no weights are read, or a file qwen.tiktoken, to count tokens with; without "
        "it lengths are in characters",
    )
    add(
        "--image_dir",
        metavar="DIR",
        help="image folder, for models with which the tokens of an image follow from its size (default: images/ in the "
        "data root)",
    )
    add("--no_images", action="store_true", help="with such a model: do not open image files, nor count their tokens")
    add(
        "--max_pixels",
        type=at_least(1),
        metavar="N",
        help="with such a model: most pixels of an image, as for training (default: the checkpoint's limit)",
    )
    add(
        "--max_len",
        type=at_least(1),
        default=3072,
        metavar="N",
        help="tokens that training pads samples to, to compare with (default: %(default)s)",
    )
    add(
        "--category",
        action="append",
        default=[],
        metavar="SERIES=CATEGORY",
        help=f"the category of a series whose name does not tell it: {', '.join(CATEGORIES)}; can be repeated",
    )
    add("--no_figures", action="store_true", help="write no figures (they need matplotlib)")
    add("--overwrite", action="store_true", help="replace what is in OUT")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, measures, prints and writes."""
    arguments = parse_arguments(argv)
    overrides = dict(_override(text) for text in arguments.category)
    output_dir = Path(arguments.output_dir) if arguments.output_dir else None
    figures = output_dir is not None and not arguments.no_figures
    if output_dir is not None:
        refuse_existing(output_dir, [TABLES_FILE], vars(arguments))
    if figures and importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed, which draws the figures: pip install matplotlib, or --no_figures")
    published = read_test_samples(find_test_files(arguments.test_from or []))
    dataset = read_dataset(arguments.data_root)
    encoder, note = _encoder(arguments, dataset)
    ids = [sample.id for sample in published]
    split = split_by_ids(dataset, ids) if arguments.test_from else draw_split(dataset, arguments.seed)
    groups = measure(dataset, split, encoder)
    if not any(group.samples for group in groups.values()):
        raise UserError(f"{arguments.data_root} has no samples to describe: every dialogue's generation failed")
    characters = character_table(dataset, overrides)
    tables = [characters, image_table(dataset), sample_table(groups, arguments.max_len)]
    notes = _notes(arguments, sum(placed.dialogue.failed for placed in dataset.dialogues), split.left_out, note)
    if has_trees(groups):
        tables.append(tree_table(groups, arguments.max_len))
    print("\n\n".join([*(table.text() for table in tables), "\n".join(notes)]))
    if output_dir is None:
        return
    with filling(output_dir, vars(arguments), last=TABLES_FILE) as folder:
        _write_tables(folder, tables, notes)
        if figures:
            from data_utils.description.figures import draw_data_figures  # loads matplotlib

            draw_data_figures(folder, groups, characters, arguments.max_len)
    print(f"written to {output_dir}")


def _encoder(arguments: argparse.Namespace, dataset: Dataset) -> "tuple[SampleTokens | None, str]":
    """What counts tokens, if there is a tokenizer, and a note on how it counts.

    Raises:
        UserError: it cannot be used, a flag has no effect with it, or images are not there.
    """
    of_images = [flag for flag in ("image_dir", "no_images", "max_pixels") if getattr(arguments, flag)]
    if not arguments.tokenizer:
        if of_images:
            raise UserError(f"--{of_images[0]} without --tokenizer: no tokens are counted")
        return None, "Tokens are not counted, and trees not measured, without --tokenizer."
    from data_utils.description.sample_tokens import SampleTokens  # loads transformers
    from data_utils.vocabularies import image_file, images_matter, load_family

    family = load_family(arguments.tokenizer, arguments.max_pixels)
    if not images_matter(family):
        if of_images:
            raise UserError(f"--{of_images[0]}: an image of Qwen-VL has 256 positions, whatever its size; leave it out")
        return SampleTokens(family, Path), _NOTE.format("an image counts as 256")
    if arguments.no_images:
        return SampleTokens(family, lambda image: None), _NOTE.format("those of images are not counted (--no_images)")
    folder = Path(arguments.image_dir or Path(arguments.data_root) / IMAGE_FOLDER)
    images = sorted({dialogue.image for dialogue, _ in dataset.dialogues if not dialogue.failed})
    files = {image: image_file(folder, image) for image in images}
    missing = [image for image, file in files.items() if file is None]
    if missing:
        raise UserError(
            f"{folder}: {len(missing):,} of {len(images):,} images cannot be read, and their tokens follow from their "
            f"size: {listed(missing, 3)}; give --image_dir, or --no_images to count none"
        )
    return SampleTokens(family, files.get), _NOTE.format("those of an image follow from its size")


def _override(text: str) -> tuple[str, str]:
    series, _, name = text.rpartition("=")
    if name not in CATEGORIES or not series:
        raise UserError(f"--category must be SERIES=CATEGORY with one of {', '.join(CATEGORIES)}, not {text!r}")
    return series, name


def _notes(arguments: argparse.Namespace, n_failed: int, left_out: dict[str, list[str]], note: str) -> list[str]:
    notes = [f"{n_failed:,} dialogues whose generation failed are left out."]
    if arguments.test_from:
        notes += [f"{len(ids)} test samples are left out: {reason}." for reason, ids in left_out.items()]
    else:
        notes.append(f"Test samples are drawn with seed {arguments.seed}; --test_from takes published ones.")
    return [*notes, note]


def _write_tables(folder: Path, tables: list[Table], notes: list[str]) -> None:
    for table in tables:
        with replacing(folder / f"{table.name}.csv") as file:
            file.write(table.csv().encode())
    page = "\n\n".join(
        ["# Statistics", *(table.markdown() for table in tables), "\n".join(f"- {note}" for note in notes)]
    )
    with replacing(folder / TABLES_FILE) as file:
        file.write(f"{page}\n".encode())


if __name__ == "__main__":
    run(main)
