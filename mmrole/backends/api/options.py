"""The flags of a server's model, and what they mean as typed options."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mmrole.backends.api.costs import Prices
from mmrole.base.arguments import NotedFlag, at_least
from mmrole.base.errors import UserError, shown
from mmrole.base.files import parse_json
from mmrole.base.json_values import JsonObject
from mmrole.data.requests import GenerationSettings

_HAVE_FLAGS = {
    "model": "--api_model",
    "max_tokens": "--max_new_tokens",
    "max_completion_tokens": "--max_new_tokens",
    "temperature": "--temperature and --no_random",
    "top_p": "--top_p",
    "seed": "--seed",
}
_NOT_FOR_EXTRA = ("messages", "stream", "stream_options", "n", "tools", "functions")
_OF_KEYS = re.compile("auth|key|token|secret|password|cookie|credential")
_KEY_FIELD = re.compile("api.?key|authorization|password|secret|credential")
_OF_SENDING = ("--max_cost", "--no_api_probe", "--api_concurrency", "--api_timeout")
_OWN_HEADERS = (
    *("host", "content-type", "content-length", "content-encoding", "transfer-encoding", "connection"),
    *("accept", "accept-encoding", "x-client-request-id"),
)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e]*)")


@dataclass(frozen=True)
class ApiPatience:
    """How often and how soon a request is sent again that has failed and may not do so again.

    Attributes:
        first: seconds before it is sent again; twice as many each time, and by chance down to half of it.
        longest: the most seconds of these.
        tries: how often it is sent at most where the server is busy or broken.
        costly_tries: the same where a try takes long, may have been paid for, or is likely to fail again: time-outs,
            replies that cannot be read, 500.
        longest_wait: the most seconds that are waited where the server says how long.
    """

    first: float = 0.5
    longest: float = 60.0
    tries: int = 10
    costly_tries: int = 3
    longest_wait: float = 600.0


class BatchFiles(NamedTuple):
    """How requests are written into files.

    Attributes:
        path: of the file; where there are several, each has its number before the suffix.
        most_requests: of a file.
        most_bytes: of a file. OpenAI takes 50,000 requests and 200 MB.
    """

    path: Path
    most_requests: int = 50_000
    most_bytes: int = 200_000_000


@dataclass(frozen=True)
class ApiOptions:
    """A server's model and how it is asked.

    Attributes:
        base: the address of the server's API, up to `/v1`.
        model: the model's name there.
        key_env: the environment variable with the key.
        headers: sent with each request, besides those of the API.
        extra: put into each request, besides the standard fields; a field that is None here is left out.
        settings: how tokens are chosen.
        image_pixels: a larger picture is made so small.
        concurrency: the most requests at once; None for what the server bears.
        timeout: seconds that one try may take.
        probe: whether to find out, before the first request, what the server takes and does not do.
        prices: what tokens cost.
        max_cost: the most that a run may cost, in the currency of the prices.
        patience: how often and how soon a request is sent again.
        sends: whether anything is sent; otherwise neither key nor client is needed.
        batch_write: where requests are written that are not sent.
        batch_read: files of replies to them.
        is_talk: whether a person waits for each reply; then no job can be gone on with.
    """

    base: str
    model: str
    key_env: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    extra: JsonObject = field(default_factory=dict)
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    image_pixels: int = 1_048_576
    concurrency: int | None = None
    timeout: float = 300.0
    probe: bool = True
    prices: Prices | None = None
    max_cost: float | None = None
    patience: ApiPatience = ApiPatience()
    sends: bool = True
    batch_write: BatchFiles | None = None
    batch_read: tuple[Path, ...] = ()
    is_talk: bool = False

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> ApiOptions | None:
        """The options that the flags of a script mean, by name; None where no server's model is asked for.

        Of a script without the flags of jobs, a talk is meant: nothing is found out before the first request.

        Raises:
            UserError: flags are missing, or do not go together.
        """
        given = dict.fromkeys(flags.get("api_flags", ()))
        if not given:
            return None
        missing = [flag for flag in ("--api_base", "--api_model") if flag not in given]
        if missing:
            names = " and ".join(given)
            raise UserError(
                f"{names}: of a server's model only; give {' and '.join(missing)} as well, or leave that out"
            )
        if not flags["api_model"].strip():
            raise UserError("--api_model is empty; name a model of the server")
        if not flags["api_model"].isprintable():
            raise UserError(
                f"--api_model {shown(flags['api_model'])} holds control characters; name a model of the server"
            )
        _check_sampling(flags, given)
        values = {
            "do_sample": not flags["no_random"],
            "temperature": flags["temperature"],
            "top_p": flags["top_p"],
            "seed": flags["seed"],
            "max_new_tokens": flags["max_new_tokens"],
        }
        settings = GenerationSettings(**{name: value for name, value in values.items() if value is not None})
        options = cls(
            flags["api_base"],
            flags["api_model"],
            flags["api_key_env"],
            tuple(flags["api_header"]),
            flags["api_extra"],
            settings,
            flags["api_image_pixels"],
            timeout=flags["api_timeout"],
            probe=False,
            is_talk=True,
        )
        return options._of_job(flags, given) if "batch_write" in flags else options

    def _of_job(self, flags: Mapping[str, Any], given: Mapping[str, Any]) -> ApiOptions:
        """With what the flags of a job say besides."""
        _check_job(flags, given)
        prices = None if flags["price_in"] is None else Prices(flags["price_in"], flags["price_out"])
        return replace(
            self,
            concurrency=flags["api_concurrency"],
            probe=not flags["no_api_probe"],
            prices=prices,
            max_cost=flags["max_cost"],
            sends=not (flags["dry_run"] or flags["batch_write"] or flags["batch_read"]),
            batch_write=_batch(flags),
            batch_read=tuple(flags["batch_read"]),
            is_talk=False,
        )


class ApiFlag(NotedFlag):
    """A flag that only a server's model obeys; noted in `api_flags`."""

    note = "api_flags"


class _ApiHeader(ApiFlag):
    """A flag that may be given several times."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before: Sequence[tuple[str, str]] = getattr(namespace, self.dest)
        super().__call__(parser, namespace, (*before, values), option_string)


def add_api_arguments(parser: argparse.ArgumentParser, *, job: bool = True) -> None:
    """Adds the flags of a server's model.

    Args:
        parser: of the script.
        job: whether it asks many requests; in a talk some flags are about nothing.
    """
    group = parser.add_argument_group("a server's model (docs/servers.md)")

    def add(name: str, **options: Any) -> None:
        group.add_argument(name, **{"action": ApiFlag, **options})

    add("--api_base", metavar="URL", help="answer with a server's model: address of its API, as in https://…/v1")
    add("--api_model", metavar="NAME", help="the model's name there")
    add("--api_key_env", metavar="NAME", help="environment variable with the key (OpenAI itself: OPENAI_API_KEY)")
    add("--temperature", type=at_least(0, float), metavar="T", help="of the sampling (default: 1)")
    add("--top_p", type=at_least(0, float, 1), metavar="P", help="of the sampling (default: 0.3)")
    add(
        "--api_extra",
        type=_extra,
        default={},
        metavar="JSON",
        help="object of further fields of each request; null leaves a field out",
    )
    add(
        "--api_header",
        action=_ApiHeader,
        type=_header,
        default=(),
        metavar="'NAME: VALUE'",
        help="further header of each request, not for keys; may be given several times",
    )
    add(
        "--api_image_pixels",
        type=at_least(1),
        default=1_048_576,
        metavar="N",
        help="pictures of more pixels are sent smaller (default: %(default)s)",
    )
    add(
        "--api_timeout",
        type=at_least(0.1, float),
        default=300.0,
        metavar="SECONDS",
        help="for a request, sent once (default: %(default)s)",
    )
    if not job:
        return
    add(
        "--api_concurrency",
        type=at_least(1),
        metavar="N",
        help="most requests at once; changes speed, not replies (default: what the server bears)",
    )
    add("--no_api_probe", nargs=0, default=False, help="do not find out what the server takes and does not do")
    add("--price_in", type=at_least(0, float), metavar="X", help="price of a million tokens of prompts")
    add("--price_out", type=at_least(0, float), metavar="X", help="price of a million tokens of replies")
    add("--max_cost", type=at_least(0, float), metavar="X", help="stop before this run costs more; needs both prices")
    add("--batch_write", type=Path, metavar="FILE", help="write what is to be asked as batch JSON Lines; send nothing")
    add("--batch_requests", type=at_least(1), default=50_000, metavar="N", help="most of a file (default: %(default)s)")
    add("--batch_bytes", type=at_least(1), default=200_000_000, metavar="N", help="the same (default: %(default)s)")
    add("--batch_read", type=Path, nargs="+", default=(), metavar="FILE", help="take replies from results of batches")
    add("--dry_run", nargs=0, default=False, help="say what would be asked and what it would cost, and send nothing")


def _check_sampling(flags: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises UserError where flags of the sampling contradict each other."""
    if flags["no_random"]:
        for flag in ("--temperature", "--top_p"):
            if flag in given:
                raise UserError(f"--no_random takes the most probable token; leave out {flag}, or --no_random")
    if flags["temperature"] == 0:
        raise UserError("--temperature 0 is --no_random; give that")
    if flags["top_p"] == 0:
        raise UserError("--top_p must be above 0; for the most probable token give --no_random")


def _check_job(flags: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """The same of flags of a job."""
    if (flags["price_in"] is None) != (flags["price_out"] is None):
        raise UserError("--price_in and --price_out are needed together; a price can be 0")
    kinds = [flag for flag in ("--dry_run", "--batch_write", "--batch_read") if flag in given]
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(kinds)} do not go together; give one of them")
    for flag in ("--batch_requests", "--batch_bytes"):
        if flag in given and "--batch_write" not in given:
            raise UserError(f"{flag} is of --batch_write; leave it out, or give that")
    useless = [flag for flag in _OF_SENDING if flag in given]
    if useless and kinds and kinds != ["--dry_run"]:
        raise UserError(f"{kinds[0]} sends nothing; leave out {' and '.join(useless)}")
    if flags["max_cost"] is not None and flags["price_in"] is None:
        raise UserError("--max_cost needs --price_in and --price_out")


def _batch(flags: Mapping[str, Any]) -> BatchFiles | None:
    if flags["batch_write"] is None:
        return None
    return BatchFiles(flags["batch_write"], flags["batch_requests"], flags["batch_bytes"])


def _extra(text: str) -> JsonObject:
    """The value of `--api_extra`."""
    try:
        value = parse_json(text)
    except (json.JSONDecodeError, RecursionError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""{shown(text)} is no JSON object, such as '{{"top_k": 20}}'""")
    for name in value:
        if name in _HAVE_FLAGS and (value[name] is not None or name == "model"):
            raise argparse.ArgumentTypeError(f"{name} is said by {_HAVE_FLAGS[name]}")
        if name in _NOT_FOR_EXTRA:
            raise argparse.ArgumentTypeError(f"{name} is not for this flag: a job needs one whole reply")
        if _KEY_FIELD.search(name.lower()):
            raise argparse.ArgumentTypeError(f"{name} is for keys, which others could read here; use --api_key_env")
    return value


def _header(text: str) -> tuple[str, str]:
    """The value of `--api_header`."""
    found = _HEADER.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError("it is not of the form 'NAME: VALUE', in ASCII")
    name, value = found.groups()
    if _OF_KEYS.search(name.lower()):
        raise argparse.ArgumentTypeError(f"{name} is for keys, which others could read here; use --api_key_env")
    if name.lower() in _OWN_HEADERS:
        raise argparse.ArgumentTypeError(f"{name} is set by the client")
    return name, value.strip()
