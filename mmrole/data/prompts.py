"""The two prompts of MMRole, role-play and review, and the picture markup of its training files: written and read back,
byte for byte.

The published agent and reward model were trained on exactly these strings: they are a wire format, not prose.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

ROLE_PLAY_SYSTEM = (
    "You are a dedicated role-playing assistant designed to immerse yourself fully in the character you are portraying."
)
REVIEW_SYSTEM = (
    "You are an objective and precise evaluator, specializing in rigorously assessing the role-playing and multimodal "
    "understanding abilities of various models."
)

HUMAN_PARTNER = "a curious human"
"""`other_role` of a sample whose partner is not a character."""

HUMAN_SPEAKER = "human"
"""The human partner's name in a dialogue and in a prompt's history."""

CHINESE_SERIES = frozenset({"西游记", "成龙历险记", "中国唐代"})
"""Series whose characters answer in Chinese; all others answer in English."""

HYPOTHETICAL_SERIES = "Hypothetical Characters"
"""The series of invented people, who are introduced in other words than characters of a work or an age."""

DIMENSIONS = {
    "fundamental conversational skills": ("Instruction Adherence", "Fluency", "Coherency"),
    "multimodal understanding abilities": ("Image-Text Relevance", "Response Accuracy"),
    "role-playing qualities": ("Personality Consistency", "Knowledge Consistency", "Tone Consistency"),
}
"""The metrics of MMRole-Eval by what they measure (paper, section 4)."""

METRICS = tuple(metric for metrics in DIMENSIONS.values() for metric in metrics)
"""The eight metrics in published order."""

_ASPECTS = {
    "Instruction Adherence": "Do the responses accurately adhere to the task instruction, directly role-playing as "
    "{role} and only including words that {role} should say, without any additional explanatory prefixes or suffixes?",
    "Fluency": "Are the responses grammatically correct and smoothly articulated?",
    "Coherency": "Do the responses maintain a coherent thread of dialogue without contradicting earlier parts of the "
    "conversation or previously established facts?",
    "Image-Text Relevance": "Are the responses closely related to the visual content of the image?",
    "Response Accuracy": "Do the responses accurately answer {partner}'s words or appropriately initiate a "
    "conversation based on the image?",
    "Personality Consistency": "Do the responses accurately and sufficiently reflect the personality of {role}?",
    "Knowledge Consistency": "Are the responses consistent with the factual knowledge that {role} should possess, "
    "including experiences, abilities, and relationships?",
    "Tone Consistency": "Do the responses maintain a consistent tone that aligns with {role}'s typical manner of "
    "speaking and catchphrases, rather than resembling the style of AI assistants?",
}

_PICTURE = re.compile(r"Picture \d+: <img>(.*?)</img>\n")
_HISTORY = re.compile(r"\n\n\nThe conversation history between .+? and .+? is as follows:\n")
_REQUEST = re.compile(r"\n\n\nPlease respond to the following words of .+? about the image in .+? using the [^\n]+?:\n")
_INITIATIVE = re.compile(r"\n\n\nPlease initiate the conversation with [^\n]+\Z")
_HEADING = re.compile(r"^## \*\*\[(.*)\]\*\*$", re.MULTILINE)
_METRIC_LINE = re.compile(r"\nPlease evaluate the following aspect of each model's response:\n([^:\n]+): ")
_QUESTION = "## **[Question Start]**"

REVIEW_HEADINGS = (
    *("Question Start", "Question End", "Model A's Response Start", "Model A's Response End"),
    *("Model B's Response Start", "Model B's Response End", "Instruction"),
)
"""What stands in the headings of a review prompt, `## **[…]**`, in order."""


class PromptDialogue(NamedTuple):
    """The conversation that a role-play prompt holds."""

    history: list[tuple[str, str]]
    """(speaker, words), oldest first."""
    last: str | None
    """The partner's words to answer; None if the character is to open the conversation."""


class ReviewPrompt(NamedTuple):
    """A review prompt in parts, so that what an answer contains cannot reach beyond its own span."""

    before: str
    first: str
    """Shown as Model A's answer."""
    between: str
    second: str
    """Shown as Model B's answer."""
    after: str

    @property
    def text(self) -> str:
        """The whole user turn."""
        return "".join(self)


def language(series: str) -> str:
    """The language that the characters of a series answer in, as the prompt names it."""
    return "Chinese" if series in CHINESE_SERIES else "English"


def role_play_prompt(
    *,
    role: str,
    series: str,
    other_role: str,
    profiles: Mapping[str, str],
    history: Sequence[tuple[str, str]] = (),
    last_utterance: str | None,
    role_info: str = "",
    place_info: str = "",
    scene_info: str = "",
) -> str:
    """The user turn that asks `role` for an utterance.

    Args:
        role: the character who answers.
        series: the series of `role`, and of the partner if that is a character.
        other_role: the partner: another character, or `HUMAN_PARTNER`.
        profiles: the descriptions of the characters by name, as in `profiles.json`.
        history: (speaker, utterance) of everything before the last utterance, oldest first; the human partner's
            name there is `HUMAN_SPEAKER`.
        last_utterance: the partner's words to respond to; None where `role` opens the conversation.
        role_info: who is in the image, as the dialogue has it; empty if unknown.
        place_info: where it is.
        scene_info: what is going on.

    Raises:
        KeyError: a character without a profile.
    """
    human = other_role == HUMAN_PARTNER
    partner = _partner(other_role)
    if human:
        introduction = HUMAN_PARTNER
    elif series == HYPOTHETICAL_SERIES:
        introduction = f"{other_role}, another person who is one of the {HYPOTHETICAL_SERIES},"
    else:
        introduction = f"{other_role} from {series}"
    opening = (
        f"Please step into the shoes of {_introduced(role, series)}. Imagine you are talking with {introduction} about "
        "the given image. This requires a deep understanding of the character's background, including their "
        "personality, experiences, abilities, and relationships."
    )
    blocks = [opening, _description(role, profiles)]
    if not human:
        blocks.append(_description(other_role, profiles))
    # The full stop after the place is published behaviour, even where the place already ends with one.
    auxiliary = [
        *([f" - Character information: {role_info}"] if role_info.strip() else []),
        *([f" - Place information: {place_info.strip()}."] if place_info.strip() else []),
        *([f" - Scene information: {scene_info.strip()}"] if scene_info.strip() else []),
    ]
    if auxiliary:
        blocks.append("\n".join(["The auxiliary information of the image is as follows:", *auxiliary]))
    if history:
        lines = [f"[{speaker}]: {utterance}" for speaker, utterance in history]
        blocks.append("\n".join([f"The conversation history between {role} and {partner} is as follows:", *lines]))
    manner = f"in {language(series)} using the distinctive tone, manner and vocabulary of {role}"
    if last_utterance is None:
        request = (
            f"Please initiate the conversation with {partner} {manner}, "
            "raising questions or commenting about the image."
        )
    else:
        request = f"Please respond to the following words of {partner} about the image {manner}:\n{last_utterance}"
    return "\n\n\n".join([*blocks, request])


def review_prompt(
    *, question: str, evaluated_answer: str, reference: str, role: str, series: str, other_role: str, metric: str
) -> ReviewPrompt:
    """The user turn that asks the reward model for its review of one answer under one metric.

    Args:
        question: the user turn that was answered.
        evaluated_answer: the answer to score, shown as Model A's.
        reference: the ground-truth answer, shown as Model B's.
        role: the character who answered.
        series: the series of `role`.
        other_role: the partner: another character, or `HUMAN_PARTNER`.
        metric: one of `METRICS`.
    """
    partner = HUMAN_PARTNER if other_role == HUMAN_PARTNER else _tasked(other_role, series)
    aspect = _ASPECTS[metric].format(role=role, partner=_partner(other_role))
    before = f"{_QUESTION}\n\n{question}\n\n## **[Question End]**\n\n\n## **[Model A's Response Start]**\n\n"
    between = "\n\n## **[Model A's Response End]**\n\n\n## **[Model B's Response Start]**\n\n"
    after = (
        "\n\n## **[Model B's Response End]**\n\n\n"
        "## **[Instruction]**\n\n"
        "The task instruction of the two models is to directly role-play as "
        f"{_tasked(role, series)} and talk with {partner} about the given image using the distinctive tone, manner "
        f"and vocabulary of {role}.\n\n"
        f"Please evaluate the following aspect of each model's response:\n{metric}: {aspect}\n\n"
        "Please provide a brief qualitative evaluation for the relative performance of the two models, followed by "
        "paired quantitative scores from 1 to 10, where 1 indicates poor performance and 10 indicates excellent "
        "performance.\n\n"
        "The output should be in the following format:\n"
        "{Qualitative Evaluation}, [Scores]: ({the score of Model A}, {the score of Model B})\n\n"
        "Please ensure that your evaluations are unbiased and that the order in which the responses were presented "
        "does not affect your judgment."
    )
    return ReviewPrompt(before, evaluated_answer, between, reference, after)


def read_role_play_prompt(prompt: str, role: str, other_role: str) -> PromptDialogue:
    """Undoes `role_play_prompt`: the conversation in it.

    A prompt of another form is taken as it is: without history, and the whole of it as the last words.
    """
    if match := _INITIATIVE.search(prompt):
        last, before = None, prompt[: match.start()]
    elif match := _REQUEST.search(prompt):
        last, before = prompt[match.end() :], prompt[: match.start()]
    else:
        return PromptDialogue([], prompt)
    start = _HISTORY.search(before)
    if start is None:
        return PromptDialogue([], last)
    partner = HUMAN_SPEAKER if other_role == HUMAN_PARTNER else other_role
    speakers = "|".join(re.escape(name) for name in {role: None, partner: None})
    _, *parts = re.split(rf"(?:^|\n)\[({speakers})\]: ", before[start.end() :])
    return PromptDialogue(list(zip(parts[::2], parts[1::2], strict=True)), last)


def read_review_prompt(text: str) -> ReviewPrompt | None:
    """Undoes `review_prompt`: its parts.

    None where it is no such prompt, or where lines in the question or in an answer are headings like its own, so that
    it could be read in several ways.
    """
    headings = [match for match in _HEADING.finditer(text) if match[1] in REVIEW_HEADINGS]
    if [match[1] for match in headings] != list(REVIEW_HEADINGS):
        return None
    ends = []
    for start, end in (headings[2:4], headings[4:6]):
        ends += [start.end() + len("\n\n"), end.start() - len("\n\n")]
    if sorted(ends) != ends:
        return None
    return ReviewPrompt(*(text[start:end] for start, end in pairwise([0, *ends, len(text)])))


def split_instruction(text: str) -> tuple[str, str] | None:
    """What a user turn of `review_prompt` shows before its instruction, whatever that says, and the metric.

    None where no metric of `METRICS` is asked for.
    """
    shown, _, instruction = text.rpartition("\n## **[Instruction]**\n")
    aspect = _METRIC_LINE.search(instruction)
    return (shown, aspect[1]) if aspect and aspect[1] in METRICS else None


def is_review_prompt(text: str) -> bool:
    """Whether a user turn is one of `review_prompt`, pictures before it or not."""
    return _QUESTION in text


def picture_markup(images: Sequence[str]) -> str:
    """What a training file writes before the text of a user turn: `Picture 1: <img>PATH</img>` lines.

    `images` are paths relative to the repository root (`images/…`).
    """
    return "".join(f"Picture {number}: <img>{image}</img>\n" for number, image in enumerate(images, start=1))


def split_pictures(value: str) -> tuple[list[str], str]:
    """Undoes `picture_markup`: the image paths of a training file's user turn, and its text.

    Only a leading run of picture lines is markup. Anything after it is text, whatever it looks like.
    """
    images = []
    start = 0
    while match := _PICTURE.match(value, start):
        images.append(match[1])
        start = match.end()
    return images, value[start:]


def _partner(other_role: str) -> str:
    return "the curious human" if other_role == HUMAN_PARTNER else other_role


def _introduced(role: str, series: str) -> str:
    if series == HYPOTHETICAL_SERIES:
        return f"{role}, a person who is one of the {HYPOTHETICAL_SERIES}"
    return f"{role} from {series}"


def _tasked(role: str, series: str) -> str:
    # In a review's task the clause is closed by a comma, in the opening of a role-play prompt it is not.
    return _introduced(role, series) + ("," if series == HYPOTHETICAL_SERIES else "")


def _description(role: str, profiles: Mapping[str, str]) -> str:
    return f"The description of {role} is as follows:\n{profiles[role].strip()}"
