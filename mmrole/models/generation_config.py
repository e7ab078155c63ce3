"""generation_config.json: the settings that are obeyed, those that cannot change a reply, those that are refused.

docs/generation.md lists them; `tests/mmrole/models/test_generation_config.py` holds both to transformers' own list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrole.base.errors import UserError, shown
from mmrole.base.files import read_json
from mmrole.data.requests import GenerationSettings
from mmrole.models.checkpoints import Checkpoint

FILE_NAME = "generation_config.json"

# What generate() takes where the file is silent; for the length, which would be 20, MMRole's.
_SILENT = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 512,
}
_SAMPLING = ("temperature", "top_k", "top_p")

OBEYED = (*_SILENT, "eos_token_id", "max_length")
"""Settings that replies follow; the stop tokens and the total length in part (see `check_stop_tokens`)."""

REFUSED_UNLESS_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "stop_strings": ([],),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "use_mtp": (False,),
    "cache_implementation": ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid"),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "speculation_type": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "diversity_penalty": (0,),
    "constraints": ([],),
    "force_words_ids": ([],),
    "chat_format": ("chatml",),
}
"""Settings that would change replies and are not followed, with the values that ask for nothing."""

REFUSED_WHEN_SAMPLING: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
"""The same, of sampling alone."""

WITHOUT_EFFECT = frozenset(
    {
        *("early_stopping", "length_penalty"),  # of beams
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),  # of assistants
        *("is_assistant", "max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind"),
        *("use_cache", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory", "return_legacy_cache"),
        *("compile_config", "disable_compile", "continuous_batching_config"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *("pad_token_id", "bos_token_id", "decoder_start_token_id"),  # a prompt is never padded, nor begun for it
        "renormalize_logits",  # what is drawn is the same
        "max_window_size",  # of the original's chat(): the turns that it forgets
        *("transformers_version", "_from_model_config", "generation_kwargs"),
    }
)
"""Settings that cannot change a reply here, whatever they are."""


def generation_settings(
    checkpoint: Checkpoint, *, no_random: bool, seed: int, max_new_tokens: int | None
) -> GenerationSettings:
    """What the checkpoint's generation_config.json says, as `generate()` reads it, and what the flags change.

    Without the file the settings are those of MMRole's inference. Settings of the sampling that greedy decoding does
    not use are left at their defaults, so that equal settings are equal.

    Raises:
        UserError: a value in the file is of the wrong type or out of range, or asks for what is not done here.
    """
    file, given = _read(checkpoint)
    sampled = not no_random and (given is None or given.get("do_sample"))
    return _settings(file, given, {"do_sample": sampled, "max_new_tokens": max_new_tokens, "seed": seed})


def sampling_settings(checkpoint: Checkpoint, *, seed: int, max_new_tokens: int | None) -> GenerationSettings:
    """As `generation_settings`, but sampling in any case: with temperature, top-k and top-p of the file.

    A file that says not to sample means nothing by its temperature, top-k and top-p: then they are MMRole's.

    Raises:
        UserError: as `generation_settings`.
    """
    file, given = _read(checkpoint)
    if given is not None and given.get("do_sample") is False:
        own = GenerationSettings()
        given = {**given, **{key: getattr(own, key) for key in _SAMPLING}, **dict.fromkeys(REFUSED_WHEN_SAMPLING)}
    return _settings(file, given, {"do_sample": True, "max_new_tokens": max_new_tokens, "seed": seed})


def check_stop_tokens(checkpoint: Checkpoint, stop_ids: frozenset[int]) -> None:
    """Raises UserError if generation_config.json names tokens, at which a reply should end, besides the chat format's.

    Args:
        checkpoint: with the file, or without.
        stop_ids: where replies end.
    """
    file, given = _read(checkpoint)
    named = None if given is None else given.get("eos_token_id")
    for token in named if isinstance(named, list) else [] if named is None else [named]:
        if type(token) is not int or token not in stop_ids:
            raise UserError(
                f"{file}: eos_token_id names {shown(token)}; replies end at the tokens {sorted(stop_ids)} of the chat "
                "format and at no other; correct the file"
            )


def check_token_ids(file: Path, named: Any) -> None:
    """Raises UserError unless this is a token id, as a file may have it, or several, or none."""
    for token in named if isinstance(named, list) else [] if named is None else [named]:
        if type(token) is not int or not 0 <= token < 2**31:
            raise UserError(
                f"{file}: eos_token_id must be a token id, or a list of them, not {shown(named)}; correct it"
            )


def _read(checkpoint: Checkpoint) -> tuple[Path, Mapping[str, Any] | None]:
    """The file, and its settings if there is one."""
    file = checkpoint.file(FILE_NAME)
    return file, read_json(file, dict) if file.is_file() else None


def _settings(file: Path, given: Mapping[str, Any] | None, decided: Mapping[str, Any]) -> GenerationSettings:
    """The settings of a file, where there is one, and those decided elsewhere, where they are not None."""
    values: dict[str, Any] = {}
    if given is not None:
        values = {key: value if given.get(key) is None else given[key] for key, value in _SILENT.items()}
    values |= {key: value for key, value in decided.items() if value is not None}
    if given is not None:
        _refuse_others(
            file, given, sampled=bool(values["do_sample"]), length_known=decided["max_new_tokens"] is not None
        )
    if not values["do_sample"]:
        values = {key: value for key, value in values.items() if key not in (*_SAMPLING, "seed")}
    for key, value in values.items():
        _check_type(file, key, value)
    try:
        return GenerationSettings(**values)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def _refuse_others(file: Path, given: Mapping[str, Any], *, sampled: bool, length_known: bool) -> None:
    """Refuses, by name, what the file asks for and is not done."""
    refused = REFUSED_UNLESS_NEUTRAL | (REFUSED_WHEN_SAMPLING if sampled else {})
    for key, value in given.items():
        if value is None or key in WITHOUT_EFFECT:
            continue
        if key in refused and value not in refused[key]:
            raise UserError(f"{file}: {key} {shown(value)} is not supported; remove it from the file")
        if not (key in OBEYED or key in REFUSED_UNLESS_NEUTRAL or key in REFUSED_WHEN_SAMPLING):
            raise UserError(f"{file}: {shown(key)} is no setting that is known here; remove it from the file")
    if given.get("max_length") is not None and given.get("max_new_tokens") is None and not length_known:
        raise UserError(
            f"{file}: max_length counts the prompt as well, which is not supported; write max_new_tokens in place "
            "of it, or give --max_new_tokens"
        )


def _check_type(file: Path, key: str, value: Any) -> None:
    expected = type(_SILENT.get(key, 0))
    sound = type(value) is expected or (expected is float and type(value) is int and abs(value) < 2**63)
    if not sound or (expected is float and not math.isfinite(value)):
        raise UserError(f"{file}: {key} must be a {expected.__name__}, not {shown(value)}; correct the file")
