"""What lies in a model directory besides what is read: refused where it would have to be obeyed.

docs/qwen_vl.md lists the files; `tests/mmrole/models/test_model_files.py` holds it to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmrole.base.errors import UserError, shown
from mmrole.base.files import read_json

# Beside these lie quantized weights, whatever config.json says.
QUANTIZED = ("quantize_config.json", "quant_config.json")
WITH_ADDED_TOKENS = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")


def check_model_files(directory: Path, tokens: frozenset[str]) -> None:
    """Looks at the files of a directory that say something about its weights or its vocabulary.

    Args:
        directory: of a model or an adapter.
        tokens: the special tokens that the vocabulary has.

    Raises:
        UserError: the weights are quantized, a token is added that the vocabulary has not, or a file is damaged.
    """
    for name in QUANTIZED:
        if (directory / name).is_file():
            raise UserError(
                f"{directory / name}: quantized checkpoints are not supported; give the model that was quantized, "
                "such as Qwen-VL-Chat itself"
            )
    for name in WITH_ADDED_TOKENS:
        if (directory / name).is_file():
            for token in _added_tokens(directory / name):
                if not isinstance(token, str) or token not in tokens:
                    raise UserError(
                        f"{directory / name} adds the token {shown(token)}, which qwen.tiktoken has not: it can be "
                        "in no prompt; remove it from the file if the model was not trained with it"
                    )


def _added_tokens(file: Path) -> Iterator[object]:
    """The tokens that a file adds to the vocabulary."""
    fields = read_json(file, dict)
    if file.name == "added_tokens.json":
        yield from fields
        return
    for added in (fields.get("added_tokens_decoder"), fields.get("additional_special_tokens")):
        for token in added.values() if isinstance(added, dict) else added if isinstance(added, list) else ():
            yield token.get("content") if isinstance(token, dict) else token
