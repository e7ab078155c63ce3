"""Checks of texts: language, assistant-isms, special tokens, and characters that do not belong into a text."""

import re
from collections.abc import Collection, Iterator

from data_utils.checks.problems import Fix, Path, Place, Problem
from mmrole.base.errors import shown
from mmrole.data.prompts import language

_LETTERS_OF_A_HAN_CHARACTER = 3  # about as much text
_JUDGED_LETTERS = 12  # fewer can be a name, or a cry

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]")
_LETTER = re.compile(r"[^\W\d_]")

_COLON = re.compile("[:：]")
_AROUND_A_NAME = " \t\n()[]{}（）【】\"'“”*:：.。"

# \r, most of C0 and C1, halves of surrogate pairs, the byte order mark.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")
_LINE_END = re.compile(r"\r\n?")

# U+FFFD, and UTF-8 that was read as Latin-1 or GBK.
_GARBLED = re.compile("\ufffd|â€|Ã[\x80-\xbf]|Â[\x80-\xbf]|ï¿½|锟斤拷")

_END_TOKEN = r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</s>|<eos>|<pad>|<end_of_turn>"
_TRAILING = re.compile(rf"(?:{_END_TOKEN})\Z")
_SPECIAL = re.compile(
    rf"{_END_TOKEN}|</?(?:img|imgpad|ref|box|quad)>|<(?:s|unk|bos|image|im_patch|start_of_turn)>|\[/?INST\]|<</?SYS>>"
)

# Not the people who work on it: an AI researcher, expert, enthusiast, student, professional.
_AI = (
    r"(?:(?:AI|artificial intelligence)(?![ -]\w+(?:er|or|ist|ian|ert|ast|ent|nal)s?\b)"
    r"|(?:large )?language model|chat ?bot|(?:AI|virtual|digital|helpful) assistant)"
)
_ASSISTANT = re.compile(
    rf"\bas an? (?:\w+ )?{_AI}\b"
    rf"|\bI(?:['’]m| am) (?:just |only |merely |simply )?an? (?:\w+ )?{_AI}\b"
    r"|\b(?:trained|developed|created) by (?:OpenAI|Anthropic|Google|Meta|Alibaba|DeepSeek)\b|\bChatGPT\b"
    r"|\bI(?:['’]m| am) sorry, but I (?:can(?:no|['’])t|(?:['’]m| am) unable to) (?:assist|help|fulfil|comply|provide)"
    r"|\bI can(?:no|['’])t (?:assist|help|comply) with (?:that|this|your) request"
    r"|\bmy (?:training data|knowledge cut-?off)\b"
    r"|作为(?:一个|一名|一款)?(?:AI|人工智能|大?语言模型|虚拟助手)"
    r"|我(?:只是|是)(?:一个|一名|一款)?(?:AI|人工智能|大?语言模型|虚拟助手|通义千问)"
    r"|(?:抱歉|对不起)，?(?:但)?我(?:无法|不能)(?:提供|协助|满足|回答)",
    re.IGNORECASE,
)


def check_text(place: Place, path: Path, text: str) -> Iterator[Problem]:
    """What is wrong with any text.

    Args:
        place: the record.
        path: where the text is in it.
        text: not blank, unless it may be.
    """
    name = path_name(path)
    if not text.isascii() and (match := _GARBLED.search(text)):
        yield Problem("garbled_text", place, f"{name}: {excerpt(text, match)}")
    if not text.isprintable() and (match := _CONTROL.search(text)):
        cleaned = _CONTROL.sub("", _LINE_END.sub("\n", text))
        if cleaned.strip():
            yield Problem("control_character", place, f"{name}: {excerpt(text, match)}", Fix(path, cleaned))
        elif text.strip():
            yield Problem("empty_text", place, f"{name} has control characters only: {shown(text)}")
    if "<" in text or "[" in text:
        yield from _check_tokens(place, path, text)


def check_reply(place: Place, path: Path, text: str, series: str | None, names: Collection[str]) -> Iterator[Problem]:
    """What is wrong with the words of a character.

    Args:
        place: the record.
        path: where the words are in it.
        text: the words.
        series: that of the character; None if it is not known.
        names: those of the character and the partner.
    """
    head = _COLON.split(text, maxsplit=1)[0]
    if len(head) < len(text.rstrip()) - 1 and bare(head) in {name.casefold() for name in names}:
        yield Problem("speaker_prefix", place, f"{path_name(path)}: {shown(text)}")
    if match := _ASSISTANT.search(text):
        yield Problem("assistant_ism", place, f"{path_name(path)}: {excerpt(text, match)}")
    if series is not None and not is_in(text, language(series)):
        yield Problem("wrong_language", place, f"{path_name(path)} is not in {language(series)}: {shown(text)}")


def bare(text: str) -> str:
    """A text in lower case without brackets, quotes and punctuation around it, to compare with names."""
    return text.strip(_AROUND_A_NAME).casefold()


def check_ends(place: Place, path: Path, text: str) -> Iterator[Problem]:
    """Whether there is space around a text."""
    if text != text.strip():
        ends = text if len(text) <= 40 else f"{text[:20]} … {text[-20:]}"
        yield Problem("surrounding_space", place, f"{path_name(path)}: {shown(ends)}", Fix(path, text.strip()))


def is_in(text: str, wanted: str) -> bool:
    """Whether a text can be taken for "Chinese" or "English", by its script; too few letters can be either.

    A text is in Chinese if at least half of it is Chinese characters, in English if at least half of it is Latin
    letters, where a Chinese character counts for three letters. So names and titles may be in another script.
    """
    if wanted == "English" and text.isascii():
        return True
    han, latin, letters = (len(script.findall(text)) for script in (_HAN, _LATIN, _LETTER))
    size = letters + han * (_LETTERS_OF_A_HAN_CHARACTER - 1)
    own = han * _LETTERS_OF_A_HAN_CHARACTER if wanted == "Chinese" else latin
    return size < _JUDGED_LETTERS or 2 * own >= size


def path_name(path: Path) -> str:
    """A path as messages show it: `conversations[1].value`."""
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return name.removeprefix(".")


def excerpt(text: str, match: re.Match) -> str:
    """What was found, with a few words around it."""
    return shown(text[max(0, match.start() - 25) : match.end() + 25])


def _check_tokens(place: Place, path: Path, text: str) -> Iterator[Problem]:
    rest = text.rstrip()
    while match := _TRAILING.search(rest):
        rest = rest[: match.start()].rstrip()
    if rest and rest != text.rstrip():
        found = shown(text[max(0, len(rest) - 25) :])
        yield Problem("trailing_token", place, f"{path_name(path)}: {found}", Fix(path, rest))
    else:
        rest = text
    if match := _SPECIAL.search(rest):
        yield Problem("special_token", place, f"{path_name(path)}: {excerpt(rest, match)}")
