"""Makes small byte-level BPE vocabularies, for checkpoints that are not downloaded."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from mmrole.qwen_vl.bpe import PAT_STR, normalize


def byte_vocabulary() -> dict[bytes, int]:
    """The 256 single bytes and their ranks, in the order of GPT-2 and of `qwen.tiktoken` (rank 0 is "!")."""
    return {byte: rank for rank, (_, byte) in enumerate(sorted(_byte_of_symbol().items()))}


def train_vocabulary(texts: Iterable[str], size: int) -> dict[bytes, int]:
    """Trains a byte-level BPE vocabulary with the tokenizer's own normalisation and pieces (spec §5.2).

    Reproducible: the same texts and size give the same ranks.

    Args:
        texts: training texts; pairs that occur only once in them are not merged.
        size: wanted number of tokens, the 256 single bytes included.

    Returns:
        Token bytes to rank. Fewer than `size` where the texts offer no more pairs to merge.

    Raises:
        ValueError: if size is below 256.
    """
    if size < 256:
        raise ValueError(f"a byte-level vocabulary has at least 256 tokens, not {size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PAT_STR), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(normalize, texts), trainer)
    byte_of_symbol = _byte_of_symbol()
    return {
        b"".join(byte_of_symbol[symbol] for symbol in token): rank
        for token, rank in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    }


def _byte_of_symbol() -> dict[str, bytes]:
    # GPT-2's printable stand-ins: a printable Latin-1 byte is itself, the others follow from U+0100 in byte order.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(byte): bytes([byte]) for byte in printable}
    return symbols | {chr(0x100 + n): bytes([byte]) for n, byte in enumerate(others)}
