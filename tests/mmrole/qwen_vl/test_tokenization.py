"""The tokenizer against the original's ids, and what a user of transformers does with it."""

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmrole.qwen_vl import bpe
from mmrole.qwen_vl.errors import CheckpointError
from mmrole.qwen_vl.tokenization import QWenTokenizer

ORIGINAL_CONFIG = {
    "model_max_length": 8192,
    "tokenizer_class": "QWenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
}


def load(file: Path):
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def tokenizer(real_vocabulary) -> QWenTokenizer:
    return QWenTokenizer(real_vocabulary, model_max_length=8192)


@pytest.fixture
def padding_tokenizer(mini_vocabulary) -> QWenTokenizer:
    return QWenTokenizer(mini_vocabulary, pad_token="<|endoftext|>")


@pytest.fixture
def checkpoint(tmp_path, mini_vocabulary, golden) -> Path:
    """A directory in the original layout, without weights."""
    shutil.copy(mini_vocabulary, tmp_path)
    shutil.copy(golden / "ckpt_mini/config.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(ORIGINAL_CONFIG))
    return tmp_path


def outcome(call, *args, **kwargs):
    """What a call returns, or the name of what it raises."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__


def expected(value):
    return value["error"] if isinstance(value, dict) and "error" in value else value


# -- golden cases ------------------------------------------------------------------------------------------------------


def test_encode_and_decode_cases(tokenizer, golden_cases):
    cases = load(golden_cases / "tokenizer/encode_cases.json")
    assert len(cases) >= 330
    for case in cases:
        text, ids = case["text"], case["ids"]
        assert tokenizer(text).input_ids == ids, text
        assert tokenizer.encode(text) == tokenizer.encode_markup(text) == ids, text
        chat = outcome(tokenizer.encode, text, allowed_special=set(tokenizer.IMAGE_ST))
        assert chat == expected(case.get("ids_chat", ids)), text
        plain = expected(case.get("ids_no_special", case.get("ids_chat", ids)))
        assert outcome(tokenizer.encode, text, allowed_special=set()) == plain, text
        assert tokenizer.encode_ordinary(text) == tokenizer.encode(text, split_special_tokens=True) == plain, text
        decoded = text if case.get("roundtrip") else expected(case["decoded"])
        assert outcome(tokenizer.decode, ids) == decoded, text
        skipped = expected(case.get("decoded_skip_special", decoded))
        assert outcome(tokenizer.decode, ids, skip_special_tokens=True) == skipped, text


def test_encode_error_cases(tokenizer, golden_cases):
    for case in load(golden_cases / "tokenizer/encode_errors.json"):
        if case["call"] == "tokenizer(text)":
            found = outcome(lambda text: tokenizer(text).input_ids, case["text"])
        else:
            found = outcome(tokenizer.encode, case["text"], allowed_special=set(tokenizer.IMAGE_ST))
        assert found == case.get("ok", case.get("error")), case["text"]


def test_long_cases(tokenizer, golden_cases):
    for case in load(golden_cases / "tokenizer/long_cases.json"):
        ids = tokenizer(case["prefix"] + case["unit"] * case["count"] + case["suffix"]).input_ids
        assert len(ids) == case["n_ids"]
        assert (ids[:16], ids[-16:]) == (case["first"], case["last"])
        assert hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest() == case["sha256"]


def test_decode_cases(tokenizer, golden_cases):
    for case in load(golden_cases / "tokenizer/decode_cases.json"):
        found = outcome(tokenizer.decode, case["ids"], **case["kwargs"])
        assert found == case.get("ok", case.get("error")), case


def test_list_format_cases(tokenizer, golden_cases):
    golden = load(golden_cases / "tokenizer/list_format.json")
    for case in golden["from_list_format"]:
        assert outcome(tokenizer.from_list_format, case["list"]) == case.get("text", case.get("error"))
    for case in golden["to_list_format"]:
        assert outcome(tokenizer.to_list_format, case["text"]) == expected(case["to_list_format"])


def test_mini_vocabulary_cases(mini_vocabulary, golden_cases):
    golden = load(golden_cases / "tokenizer/mini_vocab_cases.json")
    tokenizer = QWenTokenizer(mini_vocabulary)
    assert len(tokenizer) == tokenizer.vocab_size == golden["n_vocab"]
    assert golden["special_tokens"].items() <= tokenizer.special_tokens.items()
    for case in golden["cases"]:
        assert tokenizer(case["text"]).input_ids == case["ids"]


def test_facts(tokenizer, golden_cases):
    facts = load(golden_cases / "tokenizer/facts.json")
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab()) == facts["len"]
    assert len(tokenizer.mergeable_ranks) == facts["n_merges"]
    assert tokenizer.special_tokens == facts["special_tokens"]
    ids = {
        "<|endoftext|>": tokenizer.eod_id,
        "<|im_start|>": tokenizer.im_start_id,
        "<|im_end|>": tokenizer.im_end_id,
        "<ref>": tokenizer.ref_start_id,
        "</ref>": tokenizer.ref_end_id,
        "<box>": tokenizer.box_start_id,
        "</box>": tokenizer.box_end_id,
        "<quad>": tokenizer.quad_start_id,
        "</quad>": tokenizer.quad_end_id,
        "<img>": tokenizer.img_start_id,
        "</img>": tokenizer.img_end_id,
        "<imgpad>": tokenizer.img_pad_id,
    }
    assert ids.items() <= facts["special_tokens"].items()
    assert tuple(ids)[3:] == tokenizer.IMAGE_ST
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (facts["model_max_length"], facts["padding_side"])
    assert tokenizer.pad_token is tokenizer.eos_token is tokenizer.bos_token is facts["pad_token_before"] is None
    assert sorted(tokenizer("a")) == facts["call_keys"]
    assert isinstance(tokenizer.tokenizer, tiktoken.Encoding)
    assert [tokenizer.decoder[id_] for id_ in (64, 151645)] == [b"a", "<|im_end|>"]
    assert tokenizer("Hello there my friend, hello", truncation=True, max_length=4).input_ids == facts["truncated"]
    assert tokenizer.convert_tokens_to_ids(["<img>", b"Hello", "no token", "<|im_end|>"]) == facts["ids_of"]
    with pytest.raises(ValueError, match="unknown ids"):
        tokenizer.convert_ids_to_tokens(151860)
    with pytest.raises(ValueError, match="regular tokens"):
        tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="unknown special tokens"):
        tokenizer.add_tokens(["<new>"], special_tokens=True)
    assert tokenizer.add_tokens(["<|extra_0|>"], special_tokens=True) == facts["add_special_known"]["ok"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(tokenizer, golden_cases, side):
    facts = load(golden_cases / "tokenizer/facts.json")
    tokenizer = copy.deepcopy(tokenizer)
    texts = ["a", "Hello there my friend", "x <img>a.png</img>"]
    with pytest.raises(ValueError, match="padding token"):
        tokenizer(texts, padding=True)
    tokenizer.pad_token_id = tokenizer.eod_id
    assert tokenizer.pad_token == facts["pad_token_after"]
    tokenizer.padding_side = side
    batch = tokenizer(texts, padding=True)
    golden = facts[f"padded_{side}"]
    assert batch.input_ids == golden["input_ids"]
    assert batch.attention_mask == golden["attention_mask"]
    tensors = tokenizer(texts, padding=True, return_tensors="pt")
    assert tensors.input_ids.tolist() == batch.input_ids
    assert not tensors.token_type_ids.any()


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_planted_code_is_not_run(checkpoint, trust_remote_code):
    marker = checkpoint / "executed"
    (checkpoint / "tokenization_qwen.py").write_text(f"open({str(marker)!r}, 'w')\nclass QWenTokenizer: pass\n")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    assert type(tokenizer) is QWenTokenizer
    assert not marker.exists()


def test_directory_saved_by_the_old_trainer(checkpoint):
    token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"pad_token": token}))
    config = {"clean_up_tokenization_spaces": True, "padding_side": "right", "model_max_length": 3072}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(ORIGINAL_CONFIG | config))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", tokenizer.eod_id)
    assert tokenizer.model_max_length == 3072
    assert tokenizer.decode(tokenizer("do n't .").input_ids) == "do n't ."


def test_saved_and_loaded_again(checkpoint, tmp_path_factory):
    saved = tmp_path_factory.mktemp("saved")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token_id = tokenizer.eod_id
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(saved)
    assert sorted(file.name for file in saved.iterdir()) == ["qwen.tiktoken", "tokenizer_config.json"]
    assert (saved / "qwen.tiktoken").read_bytes() == (checkpoint / "qwen.tiktoken").read_bytes()
    config = load(saved / "tokenizer_config.json")
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "QWenTokenizer"
    shutil.copy(checkpoint / "config.json", saved)
    again = AutoTokenizer.from_pretrained(saved)
    assert type(again) is QWenTokenizer
    assert (again.pad_token, again.padding_side, again.model_max_length) == ("<|endoftext|>", "left", 8192)
    assert again("a <img>p</img> b").input_ids == tokenizer("a <img>p</img> b").input_ids
    again.save_pretrained(saved)
    assert load(saved / "tokenizer_config.json") == config


def test_saves_the_real_vocabulary_as_it_is(tokenizer, real_vocabulary, tmp_path):
    tokenizer.save_vocabulary(str(tmp_path))
    assert (tmp_path / "qwen.tiktoken").read_bytes() == real_vocabulary.read_bytes()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_copies(padding_tokenizer, duplicate):
    twin = duplicate(padding_tokenizer)
    text = "Hello <img>p</img> <|im_end|>"
    assert twin(text).input_ids == padding_tokenizer(text).input_ids
    assert twin.pad_token_id == padding_tokenizer.pad_token_id == twin.eod_id


DAMAGE = {
    "line 500 is not a base64 token": lambda lines: [*lines[:499], b"no base64! 499", *lines[500:]],
    "line 501 .*rank 501 instead of 500": lambda lines: lines[:500] + lines[501:],
    "line 300 repeats a token": lambda lines: [*lines[:299], lines[298].split()[0] + b" 299", *lines[300:]],
    "first 256 tokens are not the single bytes": lambda lines: [
        b"%s %d" % (line.split()[0], rank) for rank, line in enumerate(reversed(lines))
    ],
    "line 1 is not": lambda lines: [b"{}"],
    "Git LFS pointer": lambda lines: [
        b"version https://git-lfs.github.com/spec/v1",
        b"oid sha256:b2b1",
        b"size 2561218",
    ],
    "1,999 tokens, .* image_start_id 2214": lambda lines: lines[:-1],
    "not the single bytes": lambda lines: [],
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_vocabulary(checkpoint, message):
    file = checkpoint / "qwen.tiktoken"
    file.write_bytes(b"".join(line + b"\n" for line in DAMAGE[message](file.read_bytes().splitlines())))
    with pytest.raises(CheckpointError, match=message) as error:
        AutoTokenizer.from_pretrained(checkpoint)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_vocabulary(checkpoint):
    (checkpoint / "qwen.tiktoken").unlink()
    with pytest.raises(CheckpointError, match=r"qwen\.tiktoken: missing"):
        AutoTokenizer.from_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=r"qwen\.tiktoken: cannot read"):
        QWenTokenizer(checkpoint / "qwen.tiktoken")


def test_vocabulary_larger_than_the_tables(checkpoint):
    config = load(checkpoint / "config.json")
    del config["visual"]["image_start_id"]
    (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 2216}))
    with pytest.raises(CheckpointError, match="ids up to 2216, but the model's tables have 2216 rows"):
        QWenTokenizer.from_pretrained(checkpoint)


NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        sys.exit(f"{event} {arguments}")

sys.addaudithook(refuse)
import mmrole.qwen_vl
from mmrole.qwen_vl.processing import QWenProcessor
processor = QWenProcessor.from_pretrained(sys.argv[1])
print(processor.decode(processor("Hello")["input_ids"][0]))
"""


def test_no_network_at_import_and_loading(checkpoint):
    command = [sys.executable, "-c", NO_NETWORK, str(checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "Hello\n"), result.stderr


def test_unknown_special_token_in_the_files(checkpoint):
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    with pytest.raises(ValueError, match=r"unknown special tokens .* \[PAD\]"):
        AutoTokenizer.from_pretrained(checkpoint)


# -- any text ----------------------------------------------------------------------------------------------------------

SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"  # \s of the pattern
ANY_TEXT = st.text() | st.text(alphabet=st.characters(exclude_categories=())) | st.text("ab'1 .!\n\r\u0301é中<>|/img")


@given(ANY_TEXT)
def test_encoding_then_decoding_gives_the_nfc_text(tokenizer, text):
    text = bpe.replace_surrogates(unicodedata.normalize("NFC", text))
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@given(st.lists(st.sampled_from([*bpe.SPECIAL_TOKENS, "/etc/passwd", "\ud800", "\x00", "a"])).map("".join))
def test_ordinary_encoding_gives_no_special_ids(tokenizer, text):
    assert all(id_ < tokenizer.eod_id for id_ in tokenizer.encode_ordinary(text))


@given(st.text(SPACES + "ab!1\x1c\u200b", max_size=60), st.integers(2, 8))
@example("  \n   a", 2)
def test_cutting_out_long_runs_changes_nothing(tokenizer, text, longest_run):
    text = unicodedata.normalize("NFC", text)
    parts = text.split("1")
    text = "<|im_end|>".join(parts)
    allowed = frozenset(tokenizer.special_tokens)
    assert bpe.encode(tokenizer.tokenizer, text, allowed, longest_run=longest_run) == tokenizer.tokenizer.encode(
        text, allowed_special=allowed
    )


@given(st.text("\u0301\u0316\u0f73\u0344e한\u1112\u1161ệ", max_size=40))
def test_canonical_order_before_nfc_changes_nothing(text):
    length = bpe.LONGEST_UNORDERED // max(len(text), 1) + 1
    assert bpe.normalize(text * length) == unicodedata.normalize("NFC", text * length)


@pytest.mark.parametrize(
    ("unit", "tokens"),
    [
        ("a", 125_000),
        (" ", 7_813),
        ("你好世界", 166_666),
        ("\n", 31_250),
        ("=", 15_625),
        ("\u0f73", None),  # marks that NFC takes apart and sorts: quadratic in Python's unicodedata
        ("\u0301\u0316", None),
    ],
)
def test_a_megabyte(tokenizer, unit, tokens):
    text = unit * (1_000_000 // len(unit.encode()))
    ids = tokenizer.encode_ordinary(text)
    assert tokens in (None, len(ids))
    assert tokenizer.decode(ids) == (text if tokens else bpe.normalize(text))


def test_a_megabyte_of_space_before_a_word(tokenizer):
    spaces, word = " " * 2**20, " word"
    ids = tokenizer("<|im_end|>" + spaces + word + spaces + "<|im_end|>").input_ids
    run = tokenizer.encode_ordinary(spaces)
    assert ids == [tokenizer.im_end_id, *run, *tokenizer.encode_ordinary(word), *run, tokenizer.im_end_id]
