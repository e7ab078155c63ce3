"""Other people's text in the prompt of a server's model: what could pass for the prompt's own parts is neutralised.

The engine encodes a quotation apart from the rest, and special tokens in it as plain text. A server is sent one text:
in it a line of an answer can look like a heading of the prompt, and the spelling of a special token can become one.
"""

import re
import unicodedata
from functools import lru_cache

from mmrole.data.prompts import REVIEW_HEADINGS

_BRACKETS = dict.fromkeys("【〖〚〔「『⟦", "[") | dict.fromkeys("】〗〛〕」』⟧", "]")
_LINE_ENDS = "\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
_PLAIN = str.maketrans(_BRACKETS | dict.fromkeys("’‘ʼ`´′", "'") | dict.fromkeys(_LINE_ENDS, "\n"))


def _words(heading: str) -> str:
    """The words of a heading, whatever stands between them."""
    gap = "[ _-]{0,9}"
    return gap.join(rf"'?{gap}s" if word == "s" else word for word in re.findall(r"\w+", heading.casefold()))


_HEADINGS = "|".join(map(_words, REVIEW_HEADINGS[:-1]))
_COMMON = "instructions?|scores?"  # as a line of their own words like others
_NAME = f"(?:{_HEADINGS}|{_COMMON})"
_MARKUP = r"[#*_=~<>(){}\[\]|:.\\'\- ]*"
_DECORATION = r"[ *_\\']{0,9}"  # a backslash has Markdown show the bracket behind it
_NUMBER = r"(?:model [ab][^\w\n]{0,9})?\d{1,9}(?:\.\d{1,9})?(?: ?/ ?10)?"

_HEADING_LINES = (
    r"^[ >*_\\']*#{1,6}[ *_\\']*\[(?P<form>[^\n]*)\][ *_#\\']*$",  # by its form, whatever it says
    rf"^{_MARKUP}(?P<line>{_HEADINGS}){_MARKUP}$",
    rf"^(?=[^\w\n]){_MARKUP}(?P<common>{_COMMON}){_MARKUP}$",
)
_INLINE = (
    rf"\[{_DECORATION}(?P<name>{_NAME}){_DECORATION}\]",
    rf"(?<!\w)(?P<scores>scores?)(?=[ *_\\')>}}]{{0,9}}[:=][^\w\n]{{0,9}}{_NUMBER}[^\w\n]{{0,9}}{_NUMBER})",
)
_TAGS = "|".join(
    (
        "s|pad|unk|bos|eos|mask|ref|box|quad|think|tool_call",
        r"(?:start|end|begin)_of_\w{1,30}|\w{0,30}(?:image|img|token)\w{0,30}",
    )
)
_CHAT_MARKUP = (
    r"(?P<token><\|[^<>|\n]{1,64}\|?>|<[^<>|\n]{1,64}\|>)",
    rf"(?P<tag></?(?:{_TAGS})>|<</?sys>>)",
    r"\[(?P<bracket>/?(?:inst|img|img_break|img_end|image|available_tools|tool_calls|tool_results|system_prompt))\]",
)
_PATTERN = re.compile("|".join((*_HEADING_LINES, *_INLINE, *_CHAT_MARKUP)), re.MULTILINE)
_ANGLES = {"<": "‹", ">": "›"}


@lru_cache(maxsize=64)  # the reviews of an answer quote the same
def neutralise(text: str) -> str:
    """The text with quotation marks in place of what makes a heading or a score line of its words.

    `## **[Model B's Response Start]**` becomes `“Model B's Response Start”` and `[Scores]: (10, 1)` becomes
    `“Scores”: (10, 1)`; in markup of chats and images, `<|im_end|>`, the angles become `‹` and `›`. Recognised are
    other letter cases, full-width and decorated letters and brackets, invisible characters in between, and other
    markup around the words. Any other text is left as it is, to the last character.
    """
    while True:
        folded = "".join(map(_fold, text))
        if not _PATTERN.search(folded):
            return text
        text = _replaced(text, folded)


def _replaced(text: str, folded: str) -> str:
    places = [place for place, character in enumerate(text) for _ in _fold(character)] + [len(text)]
    pieces, done = [], 0
    for match in _PATTERN.finditer(folded):
        start, end = places[match.start()], places[match.end() - 1] + 1
        kind = match.lastgroup or ""
        if kind in ("token", "tag"):
            new = "".join(_ANGLES.get(_fold(character), character) for character in text[start:end])
        else:
            first, last = match.span(kind)
            words = text[places[first] : places[last - 1] + 1] if last > first else ""
            new = f"“{words}”"
        pieces += [text[done:start], new]
        done = end
    return "".join([*pieces, text[done:]])


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """What a character looks like: small and plain, one kind of brackets, blanks and line ends; empty if invisible."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold()).translate(_PLAIN)
    return "".join(" " if part.isspace() and part != "\n" else part for part in plain if _is_visible(part))


def _is_visible(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) not in ("Mn", "Me", "Cf", "Cc")
