"""Whether prompt trees are exact with a model, found out before it is used, on a few layers with its own weights.

Two short chats that show an image are read as a tree, and each alone by transformers' own forward, with its attention,
masks and positions, in float32 on the CPU. Their logits must be the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from mmrole.base.errors import UserError
from mmrole.data.messages import one_turn
from mmrole.models.families import Encoded, Pixels
from mmrole.models.vlm import facts, parts
from mmrole.models.vlm.attention import NAME
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.processor import transformers_quiet
from mmrole.models.vlm.reduced_config import reduced
from mmrole.models.vlm.tree_model import VlmTreeModel
from mmrole.models.vlm.weights import load_pretrained, undivided
from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree
from mmrole.prompt_tree.attention import BlockwiseAttention
from mmrole.prompt_tree.image_keys import ImagePlace, feature_rows, image_keys
from mmrole.prompt_tree.mask import Visibility

TOLERANCE = 1e-4
"""Largest difference of two logits that are the same, in shares of the largest logit.

Rounding of float32 comes to about 1e-6. A model that attends otherwise than trees say is off by a tenth and more; so is
a tree without its mask, which must differ by `CLEAR`, or the comparison would prove nothing.
"""
CLEAR = 1e-2

_SYSTEM = "You are Mira, who keeps the lighthouse of a small island."
_QUESTIONS = (
    ("What do you see there, Mira?", "How does it feel to be all alone out here in winter?"),
    ("Who painted this, and why?", "Would you rather be at sea tonight, with the others?"),
)


class _Trial(NamedTuple):
    """Two chats with a picture: each alone, as a tree, and what transformers' forward says of each."""

    chats: list[Encoded]
    pixels: Pixels
    tree: PromptTree
    own: list[Tensor]
    """Logits [tail, vocabulary] of what comes behind the image."""


def prove(family: Vlm, directory: Path) -> str | None:
    """Why prompt trees are not exact with the model of a directory, in a few words; None if they are.

    Args:
        family: of the model.
        directory: with its weights.

    Raises:
        UserError: its weights cannot be loaded, or even single sequences are not read as transformers does.
    """
    config = reduced(family.config)
    with _undisturbed(), torch.inference_mode():
        module = load_pretrained(directory, config=config, dtype=torch.float32).eval()
        first, second = _QUESTIONS
        trial = _trial(module, family, first)
        reason = _why_no_trees(module, family, config, trial)
        # Rounding may have sent a token to other experts, where two of them are equally good.
        if reason is not None and _why_no_trees(module, family, config, _trial(module, family, second)) is None:
            return None
        if reason is not None:
            _check_alone(module, family, directory, trial)
        return reason


def _why_no_trees(module: PreTrainedModel, family: Vlm, config: Any, trial: _Trial) -> str | None:
    if facts.keys_depend_on_length(config):
        return "its positions depend on the length of the prompt"
    language = cast("PreTrainedModel", parts.language_model(module))
    language.set_attn_implementation(NAME)
    try:
        model, windows = VlmTreeModel(module, family), facts.windows(config)
        gap = _gap_of_tree(model, trial, windows)
        if gap > TOLERANCE:
            return f"logits differ by {gap:.0e} of the largest"
        blind = _gap_of_tree(model, trial, windows, masked=False)
        return None if blind > CLEAR else "they do not depend on what a branch sees"
    except Exception as error:  # an architecture may refuse in any way what a tree asks of it
        return _words(error)[:120]
    finally:
        language.set_attn_implementation("sdpa")


def _trial(module: PreTrainedModel, family: Vlm, questions: tuple[str, str]) -> _Trial:
    picture = _picture()
    chats = [family.encode(one_turn(_SYSTEM, picture, question)) for question in questions]
    sequences = []
    for chat in chats:
        places = [ImagePlace(image.spans, 0) for image in chat.images]
        sequences.append(TokenSequence(chat.input_ids, image_keys(len(chat.input_ids), places)))
    pixels = family.preprocess([picture])
    try:
        own = [_own_logits(module, chat, family.config.image_token_id, pixels) for chat in chats]
    except Exception as error:  # an image processor may make of an image what a model does not take
        reason = _words(error)[:200]
        raise UserError(
            f"{family.directory}: transformers' model does not take what its tokenizer and image processor make of a "
            f"chat ({reason}); copy the checkpoint again, if it is one of those that docs/models.md lists"
        ) from None
    if not all(logits.isfinite().all() for logits in own):
        raise UserError(
            f"{family.directory}: the model computes NaN or infinity; download or copy the checkpoint again"
        )
    return _Trial(chats, pixels, build_tree(sequences), own)


def _own_logits(module: PreTrainedModel, chat: Encoded, image_token: int, pixels: Pixels) -> Tensor:
    """Of transformers' forward, for what comes behind the image."""
    input_ids = torch.from_numpy(chat.input_ids).long()[None]
    known = inspect.signature(module.forward).parameters.keys()
    known = known | inspect.signature(cast("Any", module).model.forward).parameters.keys()
    types = (input_ids == image_token).long()
    behind = input_ids.shape[1] - chat.images[-1].stop
    given: dict[str, Any] = {**pixels, "token_type_ids": types, "mm_token_type_ids": types, "logits_to_keep": behind}
    outputs = cast("Callable[..., Any]", module)(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        use_cache=False,
        **{name: value for name, value in given.items() if name in known},
    )
    return outputs.logits[0, -behind:]


def _gap_of_tree(model: VlmTreeModel, trial: _Trial, windows: list[int], masked: bool = True) -> float:
    """How far logits of the tree are from those of the chats alone, in shares of the largest."""
    tree, family = trial.tree, model.family
    last, first, depths = Visibility.of(tree, family.images_both_ways, windows)
    if not masked:
        last = torch.full_like(last, len(tree) - 1)
    grid = trial.chats[0].images[0].grid
    hidden_states = model.hidden_states(
        torch.from_numpy(tree.input_ids),
        torch.from_numpy(family.positions(tree, {0: grid})),
        torch.ones(1, dtype=torch.int64),
        BlockwiseAttention(last, first=first, depths=depths),
        _features(model, trial.pixels, tree.image_keys),
    )
    return max(
        _gap(model.logits(hidden_states[torch.from_numpy(tree.path(place))[-len(own) :]]), own)
        for place, own in enumerate(trial.own)
    )


def _check_alone(module: PreTrainedModel, family: Vlm, directory: Path, trial: _Trial) -> None:
    """Raises UserError if a chat read alone, its end token by token, has other logits than transformers' forward."""
    model, own = VlmTreeModel(module, family), trial.own[0]
    chat = trial.chats[0]
    keys = image_keys(len(chat.input_ids), [ImagePlace(image.spans, 0) for image in chat.images])
    tree = build_tree([TokenSequence(chat.input_ids, keys)])
    input_ids = torch.from_numpy(tree.input_ids)
    positions = torch.from_numpy(family.positions(tree, {0: chat.images[0].grid}))
    images = _features(model, trial.pixels, tree.image_keys)
    cache, border = model.new_cache(), len(tree) - len(own) + 1
    try:
        read = [model.read_on(input_ids[:border], positions[:, :border], cache, images)[-1:]]
        for place in range(border, len(tree)):
            read.append(model.read_on(input_ids[place : place + 1], positions[:, place : place + 1], cache))
        gap = _gap(model.logits(torch.cat(read)), own)
        fault = f"logits differ by {gap:.0e} of the largest" if gap > TOLERANCE else None
    except Exception as error:  # as above
        fault = _words(error)[:120]
    if fault is not None:
        name = family.config.model_type
        raise UserError(
            f"{directory}: model_type {name!r} is not read here as transformers does ({fault}); "
            "docs/models.md lists those that were tried"
        )


def _features(model: VlmTreeModel, pixels: Pixels, keys: np.ndarray) -> tuple[Tensor, Tensor]:
    (features,) = model.image_features([pixels])
    rows = torch.from_numpy(feature_rows(keys, {0: len(features)}))
    places = (rows >= 0).nonzero()[:, 0]
    return places, features[rows[places]]


def _gap(logits: Tensor, own: Tensor) -> float:
    """NaN where one of them is none counts as far."""
    gap = ((logits - own).abs().max() / own.abs().max()).item()
    return gap if gap == gap else float("inf")


def _words(error: Exception) -> str:
    """What has failed, in one line.

    Raises:
        UserError: there was no memory, which says nothing about the model.
    """
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        raise UserError(
            "there is not enough memory to try whether prompt trees are exact with this model: it takes some of its "
            "layers in float32 on the CPU; free some, and run the same command again"
        ) from None
    return " ".join(f"{type(error).__name__}: {error}".split())


def _picture() -> Image.Image:
    """A small one on which no two places are alike."""
    ramp = Image.linear_gradient("L").resize((72, 48))
    return Image.merge("RGB", [ramp, ramp.rotate(180), ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without progress bars and reports of weights that are left out, and without a trace in the random numbers."""
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with transformers_quiet(), undivided(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if bar:
            logging.enable_progress_bar()
