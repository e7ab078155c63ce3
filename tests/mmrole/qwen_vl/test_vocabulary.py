"""Vocabularies trained here are real ones for tiktoken: every token is reached, and every text comes back."""

import unicodedata
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrole.qwen_vl import bpe
from mmrole.qwen_vl.vocabulary import byte_vocabulary, train_vocabulary

TEXT = """Harry looked at the photograph again. "It isn't moving," he said, and Hermione sighed.
"It's a Muggle photograph, Harry. They don't move." She turned it over: 12 June 1997.
哈利又看了看照片。"它不会动。"他说。赫敏叹了口气："这是麻瓜的照片，哈利。麻瓜的照片不会动。"
"""


def merge_below(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """BPE of a token by the merges of lower rank alone, by definition: always the lowest pair, leftmost first."""
    parts = [bytes([byte]) for byte in token]
    while pairs := [
        (found, index)
        for index, (left, right) in enumerate(pairwise(parts))
        if (found := ranks.get(left + right, rank)) < rank
    ]:
        _, index = min(pairs)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def assert_is_bpe(ranks: dict[bytes, int]) -> None:
    assert list(ranks.values()) == list(range(len(ranks)))
    assert list(ranks)[:256] == list(byte_vocabulary())
    for token, rank in ranks.items():
        if rank >= 256:
            assert len(merge_below(token, rank, ranks)) == 2, token


def test_single_bytes_are_in_the_order_of_the_real_vocabulary(real_vocabulary):
    assert list(byte_vocabulary().items()) == list(bpe.read_ranks(real_vocabulary).items())[:256]


def test_every_token_is_one_merge_of_lower_tokens(tmp_path):
    ranks = train_vocabulary([TEXT], 400)
    assert 300 < len(ranks) <= 400
    assert_is_bpe(ranks)
    assert {b" photograph", "照片".encode()} <= ranks.keys()
    bpe.write_ranks(tmp_path / "qwen.tiktoken", ranks)
    assert bpe.read_ranks(tmp_path / "qwen.tiktoken") == ranks
    encoding = tiktoken.Encoding("trained", pat_str=bpe.PAT_STR, mergeable_ranks=ranks, special_tokens={})
    ids = bpe.encode(encoding, TEXT)
    assert encoding.decode(ids) == TEXT
    assert len(ids) < 0.6 * len(TEXT.encode())


def test_the_size_is_kept():
    assert len(train_vocabulary([TEXT], 300)) == 300
    assert train_vocabulary([], 300) == train_vocabulary(["abc"], 256) == byte_vocabulary()
    with pytest.raises(ValueError, match="256"):
        train_vocabulary([TEXT], 255)


@given(texts=st.lists(st.text("ab ’éé\u0301\n照", max_size=60), max_size=4), other=st.text(max_size=30))
@settings(max_examples=50)
def test_any_text_comes_back(texts, other):
    ranks = train_vocabulary(texts, 330)
    assert_is_bpe(ranks)
    encoding = tiktoken.Encoding("trained", pat_str=bpe.PAT_STR, mergeable_ranks=ranks, special_tokens={})
    for text in [*texts, other]:
        assert encoding.decode(bpe.encode(encoding, text)) == unicodedata.normalize("NFC", text)
