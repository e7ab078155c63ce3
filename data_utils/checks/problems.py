"""The kinds of damage that `data_utils.check` knows, and what it says about one case of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from mmrole.base.errors import shown

ERROR, WARNING = "error", "warning"


class Kind(NamedTuple):
    """A kind of damage."""

    id: str
    level: str
    """`ERROR`: a script refuses the record, or works with something else than the author meant. `WARNING`: the scripts
    work, but it is hardly what the author wants."""
    fixable: bool
    """Whether `--fix` repairs it (where a row of the docs says which cases, these)."""
    meaning: str


KINDS = {
    kind.id: kind
    for kind in (
        # files
        Kind("unreadable", ERROR, False, "not UTF-8, not JSON, a key twice in an object, or endless nesting"),
        Kind("json_lines", ERROR, True, "one JSON object a line, where a list is expected"),
        Kind("unknown_form", ERROR, False, "none of the known forms"),
        Kind("misplaced", ERROR, False, "of another form than its folder is for, or dialogues where nobody looks"),
        Kind("no_records", ERROR, False, "a list or an object without entries"),
        Kind("results_form", ERROR, False, "a table of results without the published header and one row of numbers"),
        # records
        Kind("missing_field", ERROR, False, "a field that is needed is not there"),
        Kind("wrong_type", ERROR, False, "a field is a number, a list, null, … instead of what it must be"),
        Kind("empty_text", ERROR, False, "a text that must say something is empty or blank"),
        Kind("turn_names", ERROR, True, "turns named as other projects do: human/gpt, or role/content"),
        Kind("turn_order", ERROR, False, "speakers do not alternate, or there are too many or too few turns"),
        Kind("duplicate_record", ERROR, True, "the same record twice in a file"),
        Kind("duplicate_id", ERROR, False, "the id of another record that says something else"),
        Kind("duplicate_content", WARNING, False, "the same image and words as another record with another id"),
        # dialogues
        Kind("failed_generation", WARNING, True, "no utterance, or only a question: it gives no sample"),
        Kind("id_form", WARNING, False, "a dialogue's id is not `<Owner>_<type>_<COCO or script>_<n>`"),
        Kind("speaker_count", ERROR, False, "a dialogue of more or fewer than two speakers"),
        Kind("dialogue_type", ERROR, False, "a dialogue does not fit the type that its path names"),
        Kind("wrong_owner", WARNING, False, "a dialogue in the file of a character who is not its owner"),
        # characters
        Kind("role_spelling", ERROR, True, "a known name in other letters: `iron_man`; `user` for the human partner"),
        Kind("unknown_role", ERROR, False, "a character that `roles.json` does not name"),
        Kind("unknown_series", ERROR, False, "a series that `roles.json` does not name"),
        Kind("wrong_series", ERROR, False, "a known character with the series of another"),
        Kind("wrong_partner", ERROR, False, "a partner of another series, or the character itself"),
        Kind("role_twice", ERROR, False, "`roles.json` names a character twice"),
        Kind("missing_profile", ERROR, False, "a character of `roles.json` has no profile"),
        # samples
        Kind("prompt_mismatch", WARNING, False, "the prompt is not for the role, partner and language of the fields"),
        Kind("system_message", WARNING, True, "a test sample's system message is not the published one"),
        Kind("changed_sample", ERROR, False, "an answered sample differs from the test sample of its id"),
        Kind("missing_samples", ERROR, False, "samples of a test file are not answered, or there is no file for them"),
        Kind("test_leak", ERROR, False, "a training sample of a dialogue that the test files use"),
        Kind("too_long", WARNING, False, "more tokens than `--max_length`"),
        Kind("not_encoded", ERROR, False, "the model of `--tokenizer` does not take the sample's turns or its image"),
        # images
        Kind("image_case", ERROR, True, "an image folder in other letters: `Toy_story` for `Toy_Story`"),
        Kind("image_form", ERROR, True, "`images/` before an `image`, or missing in markup; backslashes; `./`"),
        Kind("image_outside", ERROR, False, "a URL, an absolute path, `..`, or control characters"),
        Kind("missing_image", ERROR, False, "no such image file"),
        Kind("undecodable_image", ERROR, False, "an image file that is damaged or no picture"),
        Kind("deep_image", WARNING, False, "more than 8 bits of grey a pixel: all above 255 becomes white"),
        Kind("picture_mismatch", ERROR, False, "the markup of a training sample does not name its `image` or `images`"),
        Kind("picture_form", ERROR, False, "a picture inside a text or a reply, `<image>` without its image, a video"),
        Kind("no_picture", WARNING, False, "a training sample of the agent without an image"),
        # texts
        Kind("wrong_language", WARNING, False, "a reply in another script than its series' language"),
        Kind("assistant_ism", WARNING, False, "a character who speaks as an AI assistant"),
        Kind("special_token", WARNING, False, "a chat model's special token or image markup inside a text"),
        Kind("trailing_token", WARNING, True, "a special token at the end of a text, where decoding left it"),
        Kind("control_character", WARNING, True, "invisible control characters, carriage returns, lone surrogates"),
        Kind("garbled_text", WARNING, False, "text decoded wrongly: U+FFFD, `â€™` for ’"),
        Kind("surrounding_space", WARNING, True, "blanks or line ends around an utterance of a dialogue"),
        # answers and reviews
        Kind("empty_answer", WARNING, False, "an empty answer; it gets no review, and the mean leaves it out"),
        Kind("no_answer", WARNING, False, "an answer that was refused or has failed; it gets no review, either"),
        Kind("answer_and_error", ERROR, False, "an answer beside an `answer_error`, of which only one can be true"),
        Kind("bare_name", WARNING, False, "an answer that is only a name"),
        Kind("speaker_prefix", WARNING, False, "an answer that begins with a name and a colon"),
        Kind("metric_spelling", ERROR, True, "a metric in other letters: `tone_consistency`"),
        Kind("missing_metric", ERROR, False, "a review without one of the eight metrics"),
        Kind("unknown_metric", ERROR, False, "a review of a metric that is none of the eight"),
        Kind("score_form", ERROR, True, "scores written as text"),
        Kind("unusable_score", WARNING, False, "no score, scores not from 0 to 10, or 0 for the reference"),
        Kind("score_mismatch", ERROR, False, "the stored scores are not those in the review's text"),
        Kind("no_score_pair", ERROR, False, "a review training sample whose review has no `[Scores]: (A, B)`"),
    )
}
"""All kinds by id, in the order of reports."""

REMOVED = object()
"""As the value of a `Fix`: what its path names is left out."""

Path = tuple[str | int, ...]
"""Where a value is in a JSON value: indices and keys from the top."""


class Fix(NamedTuple):
    """What a repair puts in place of a value."""

    path: Path
    """In the record, or in the file if that is one object."""
    value: Any


@dataclass(frozen=True, slots=True)
class Place:
    """What a problem is about: a file, and the record in it if it is about one."""

    file: str
    index: int | None = None
    """Of the record in the file, from 0; None for the file, or for an entry of an object."""
    id: str | None = None
    """The record's id, or the key of an object's entry."""

    def __str__(self) -> str:
        index = "" if self.index is None else f"[{self.index}]"
        return f"{self.file}{index}" + ("" if self.id is None else f" (id {shown(self.id)})")


class Problem(NamedTuple):
    """One case of a kind of damage."""

    kind: str
    """A key of `KINDS`."""
    place: Place
    text: str
    """What is wrong, in a line."""
    fix: Fix | None = None

    @property
    def is_error(self) -> bool:
        """Whether the kind is an error."""
        return KINDS[self.kind].level == ERROR
