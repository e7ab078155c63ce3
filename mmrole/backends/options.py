"""The flags that choose what answers, named and explained once, and the way from flags to a backend."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmrole.backends.api.options import ApiOptions
from mmrole.backends.backend import ALONE, Backend, ProcessPlace
from mmrole.base.arguments import NotedFlag, at_least
from mmrole.base.errors import UserError
from mmrole.models.loading import ModelOptions

DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")


_OF_ANY_MODEL = ("--no_random", "--seed", "--max_new_tokens")
"""Flags of a model that one behind a server obeys as well."""


class ModelFlag(NotedFlag):
    """A flag that only a model obeys; noted in `model_flags`."""

    note = "model_flags"


@dataclass(frozen=True)
class BackendOptions:
    """What answers: a model, one behind a server, or replies that are given.

    Attributes:
        model: the checkpoint and how it is run.
        max_batch_tokens: positions in memory at once; None for what fits.
        replies: a file of replies in place of a model.
        api: a server's model in place of a checkpoint.
    """

    model: ModelOptions
    max_batch_tokens: int | None = None
    replies: Path | None = None
    api: ApiOptions | None = None

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> BackendOptions:
        """The options that the flags of a script mean, by name; `vars` of what argparse makes.

        Raises:
            UserError: flags are given that do not go together.
        """
        replies, given = flags["replies"], (*flags.get("model_flags", ()), *flags.get("api_flags", ()))
        if replies is not None and given:
            raise UserError(f"--replies answers in place of a model; leave out {' and '.join(dict.fromkeys(given))}")
        api = ApiOptions.of_flags(flags)
        loading = [flag for flag in flags.get("model_flags", ()) if flag not in _OF_ANY_MODEL]
        if api is not None and loading:
            raise UserError(f"--api_base has a server's model answer; leave out {' and '.join(dict.fromkeys(loading))}")
        model = ModelOptions(**{field.name: flags[field.name] for field in fields(ModelOptions) if field.name in flags})
        return cls(model, flags.get("max_batch_tokens"), replies, api)


def add_model_arguments(parser: argparse.ArgumentParser, *, model_path: str | None) -> None:
    """Adds the flags that say which model answers, or what in its place.

    Args:
        parser: of the script.
        model_path: the script's default; None where no model is a choice, too.
    """
    add = parser.add_argument_group("model").add_argument
    default = "" if model_path is None else " (default: %(default)s)"
    path = None if model_path is None else Path(model_path)
    add("--model_path", action=ModelFlag, type=Path, default=path, help=f"checkpoint directory{default}")
    add_loading_arguments(add)
    add(
        "--replies",
        type=Path,
        metavar="FILE",
        help='no model: replies from this file, JSON Lines of {"id": "…", "text": "…"} (docs/generation.md)',
    )


def add_loading_arguments(add: Callable[..., object]) -> None:
    """Adds the flags that say how the checkpoint of `--model_path` is loaded; `add` is `add_argument` of a group."""
    add(
        "--use_lora",
        action=ModelFlag,
        nargs=0,
        default=False,
        help="--model_path is a LoRA adapter, whose configuration names its base",
    )
    add(
        "--dtype",
        action=ModelFlag,
        choices=DTYPES,
        default="auto",
        help="auto: bfloat16 or float16 on a GPU, float32 on the CPU",
    )
    add(
        "--device",
        action=ModelFlag,
        default="auto",
        help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)",
    )
    add(
        "--max_pixels",
        action=ModelFlag,
        type=at_least(1),
        metavar="N",
        help="most pixels of an image, to which larger ones are shrunk, for models that take images in their own size; "
        "by default the checkpoint's limit",
    )


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how a model generates."""
    add = parser.add_argument_group("generation (what is not given comes from generation_config.json)").add_argument
    add("--no_random", action=ModelFlag, nargs=0, default=False, help="greedy: always the most probable token")
    add("--seed", action=ModelFlag, type=int, default=1234, help="seed of the sampling (default: %(default)s)")
    add("--max_new_tokens", action=ModelFlag, type=at_least(1), metavar="N", help="most tokens of a reply")
    add(
        "--max_batch_tokens",
        action=ModelFlag,
        type=at_least(1),
        metavar="N",
        help="positions in memory at once; changes speed, not replies (default: what fits into the free memory)",
    )


def find_backend(options: BackendOptions, *, place: ProcessPlace = ALONE, resampling: bool = False) -> Backend:
    """What answers.

    Args:
        options: which it is.
        place: the process in which it runs.
        resampling: whether requests may ask for sampling where the settings are greedy.

    Raises:
        UserError: there is no such checkpoint, device or file of replies, or it is faulty; no server, or no key for it.
    """
    if options.replies is not None:
        from mmrole.backends.scripted import replies_of_file

        return replies_of_file(options.replies)
    if options.api is not None:
        from mmrole.backends.api.api_backend import find_api

        return find_api(options.api, place=place, resampling=resampling)
    from mmrole.backends.engine import find_engine

    return find_engine(options.model, options.max_batch_tokens, place=place, resampling=resampling)
