"""A server's model as a backend."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from mmrole.backends.api.access import Access, find_access, find_url
from mmrole.backends.api.batch_files import BatchResults, write_batches
from mmrole.backends.api.bodies import setting_fields
from mmrole.backends.api.costs import describe_estimate
from mmrole.backends.api.options import ApiOptions
from mmrole.backends.backend import ALONE, Generator, Note, ProcessPlace
from mmrole.backends.scripted import ScriptedGenerator
from mmrole.base.errors import UserError, in_one_line
from mmrole.data.requests import ChatRequest, GenerationSettings


@dataclass(frozen=True)
class ApiBackend:
    """A server's model.

    Attributes:
        options: how it is asked.
        access: where it is.
        resampling: whether requests may ask for sampling where the settings are greedy.
    """

    options: ApiOptions
    access: Access
    resampling: bool = False

    def __str__(self) -> str:
        return f"{self.options.model} at {self.access.url}"

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes a reply and is known before there is one. The rest is its `Origin`."""
        options = self.options
        settings = setting_fields(options.settings)
        settings["max_new_tokens"] = settings.pop("max_tokens")
        made_with: dict[str, Any] = {
            "model": options.model,
            "do_sample": options.settings.do_sample,
            **settings,
            "api_image_pixels": options.image_pixels,
        }
        if options.extra:
            made_with["api_extra"] = options.extra
        if options.headers:
            made_with["api_header"] = [f"{name}: {value}" for name, value in options.headers]
        if self.resampling and not options.settings.do_sample:
            made_with["retry_sampling"] = setting_fields(self._sampling)
        return made_with

    def fit(self, requests: Sequence[ChatRequest]) -> tuple[list[ChatRequest], list[Note]]:
        """The requests with the settings of the flags. How much fits is the server's business."""
        return [replace(request, settings=self._settings(request)) for request in requests], []

    @contextmanager
    def open(self) -> Iterator[Generator]:
        """Opens the client; nothing is sent before the first request."""
        if self.options.batch_read:
            results = BatchResults(self.options.batch_read, self.options, self.fingerprint())
            yield ScriptedGenerator(results.reply)
            return
        from mmrole.backends.api.asking import Asking
        from mmrole.backends.api.generator import ApiGenerator

        generator = ApiGenerator(self.options, lambda: Asking(self.options, self.access, _say), _say)
        try:
            yield generator
        finally:
            generator.close()

    def rehearse(self, requests: Sequence[ChatRequest]) -> str:
        """Writes batch files where they are asked for, or says what requests will take and cost; in a line."""
        batch = self.options.batch_write
        if batch is not None:
            return write_batches(requests, batch, self.options, self.fingerprint())
        return describe_estimate(requests, self.options.prices, self.options.image_pixels)

    @property
    def _sampling(self) -> GenerationSettings:
        return replace(self.options.settings, do_sample=True)

    def _settings(self, request: ChatRequest) -> GenerationSettings:
        asked = request.settings
        if isinstance(asked, GenerationSettings):
            return asked
        return asked.filled(self.options.settings, self._sampling)


def find_api(options: ApiOptions, *, place: ProcessPlace = ALONE, resampling: bool = False) -> ApiBackend:
    """A server's model. Nothing is sent.

    Args:
        options: which it is, and how it is asked.
        place: the process in which it runs.
        resampling: whether requests may ask for sampling where the settings are greedy.

    Raises:
        UserError: the address is none, there is no key or no client, or there are several processes.
    """
    if place.world_size > 1:
        raise UserError("--api_base asks from one process, many requests at once; start the script without torchrun")
    if not options.sends:
        return ApiBackend(options, Access(find_url(options.base)), resampling)
    access = find_access(options.base, options.key_env, os.environ)
    if importlib.util.find_spec("openai") is None:
        raise UserError("the package openai is not installed; run: pip install -e '.[api]'")
    if access.exposes_key:
        _say(f"warning: the key goes to {access.url} unencrypted, for others to read; https would keep it secret")
    return ApiBackend(options, access, resampling)


def _say(line: str) -> None:
    """Prints a line, above the bar if there is one."""
    tqdm.write(in_one_line(line))
    sys.stdout.flush()
