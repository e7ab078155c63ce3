"""Checks of test samples, answers and training samples of the agent."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

from data_utils.checks.names import check_names
from data_utils.checks.pictures import ImageUse, check_pictures
from data_utils.checks.problems import Fix, Path, Place, Problem
from data_utils.checks.surroundings import Source, Surroundings, partner_name
from data_utils.checks.texts import bare, check_reply, check_text
from mmrole.base.errors import UserError, shown
from mmrole.data.pictures import Picture, PicturedConversation, read_conversation
from mmrole.data.prompts import ROLE_PLAY_SYSTEM, language, role_play_prompt
from mmrole.data.records import Answer, Sample, TrainingRecord

QUESTION, REFERENCE, ANSWER = (("conversations", *path) for path in ((0, "value"), (1, "value"), (1, "answer")))
"""Where the texts of a test sample are."""

NamedSample = TypeVar("NamedSample", Sample, TrainingRecord)

_COMPARED: dict[str, Path] = {
    "image": ("image",),
    "role": ("role",),
    "script": ("script",),
    "other_role": ("other_role",),
    "question": QUESTION,
    "reference": REFERENCE,
}


def check_sample(record: Sample, place: Place, source: Source) -> Iterator[Problem]:
    """What is wrong with a test sample or an answer, image and copies apart."""
    yield from check_names(place, record.role, record.script, record.other_role, source.around)
    record = with_right_names(record, source.around)
    yield from _prompt(place, record.question, record.role, record.script, record.other_role)
    if record.system != ROLE_PLAY_SYSTEM:
        text = f"system is {shown(record.system)}; every published sample has {shown(ROLE_PLAY_SYSTEM)}"
        yield Problem("system_message", place, text, Fix(("system",), ROLE_PLAY_SYSTEM))
    yield from check_text(place, QUESTION, record.question)
    yield from check_text(place, REFERENCE, record.reference)
    yield from check_reply(place, REFERENCE, record.reference, record.script, (record.role, record.other_role))
    reply = record.reference
    if isinstance(record, Answer):
        reply = record.answer
        yield from _answer(record, place)
        yield from _changes(record, place, source)
    asked = (record.question,)
    if record.image is not None:
        asked = Picture(record.image, "Picture 1: "), "\n" + record.question
    chat = [("system", (record.system,)), ("user", asked), ("assistant", (reply,))]
    yield from check_length(chat, place, source)


def check_training_sample(record: TrainingRecord, place: Place, source: Source) -> Iterator[Problem | ImageUse]:
    """What is wrong with a training sample of the agent, copies apart."""
    yield from check_names(place, record.role, record.script, record.other_role, source.around)
    record = with_right_names(record, source.around)
    conversation = read_conversation(record)
    if record.role and record.script and record.other_role and len(record.turns) == 2:
        yield from _prompt(place, conversation.turns[0].text, record.role, record.script, record.other_role)
    if not conversation.pictures and not conversation.faults:
        text = "there is neither markup (Picture 1: <img>…</img>) nor the field image or images"
        yield Problem("no_picture", place, text)
    names = (record.role or "", record.other_role or "")
    for number, turn in enumerate(record.turns):
        if turn.speaker == "assistant":
            yield from check_reply(place, ("conversations", number, "value"), turn.value, record.script, names)
    yield from _leak(record, place, source)
    yield from check_conversation(record, conversation, place, source)


def check_conversation(
    record: TrainingRecord, conversation: PicturedConversation, place: Place, source: Source
) -> Iterator[Problem | ImageUse]:
    """What is wrong with the pictures, the characters and the length of a training sample of any kind."""
    for number, (turn, read) in enumerate(zip(record.turns, conversation.turns, strict=True)):
        path: Path = ("conversations", number, "value")
        for start, end in read.spans:
            before, after = turn.value[:start], turn.value[end:]
            for problem in check_text(place, path, turn.value[start:end]):
                yield problem._replace(fix=problem.fix and Fix(path, before + problem.fix.value + after))
    yield from check_pictures(record, conversation, place, source)
    system = record.system if source.lengths is None else source.lengths.training_system or record.system
    opening = [] if system is None else [("system", (system,))]
    yield from check_length([*opening, *((turn.speaker, turn.content) for turn in conversation.turns)], place, source)


def with_right_names(record: NamedSample, around: Surroundings) -> NamedSample:
    """The record with its names as `roles.json` spells them, so that a spelling is reported once."""
    role, script, partner = record.role, record.script, record.other_role
    return dataclasses.replace(
        record,
        role=role and around.name(role),
        script=script and around.series_name(script),
        other_role=partner and partner_name(partner, around),
    )


def check_length(
    chat: Sequence[tuple[str, Sequence[str | Picture]]], place: Place, source: Source
) -> Iterator[Problem]:
    """Whether a chat of (speaker, texts and pictures) has more tokens than it may, if there is a limit."""
    if source.lengths is None:
        return
    try:
        tokens = source.lengths.tokens(chat, source.image_dir)
    except UserError as error:
        yield Problem("not_encoded", place, str(error))
        return
    if tokens > source.lengths.most:
        yield Problem("too_long", place, f"{tokens} tokens; at most {source.lengths.most} are wanted")


def missing_samples(ids: Collection[str], place: Place, source: Source) -> Iterator[Problem]:
    """Samples of the test files that a file of answers or reviews belongs to, and does not have."""
    for file, samples in source.around.test_files.items():
        missing = [id_ for id_ in samples if id_ not in ids]
        if 0 < len(missing) < len(samples):
            first = ", ".join(map(shown, missing[:3])) + (", …" if len(missing) > 3 else "")
            yield Problem("missing_samples", place, f"{len(missing)} of {len(samples)} samples of {file}: {first}")


def _prompt(place: Place, question: str, role: str, script: str, other_role: str) -> Iterator[Problem]:
    profiles = {role: "", other_role: ""}
    wanted = role_play_prompt(role=role, series=script, other_role=other_role, profiles=profiles, last_utterance=None)
    opening = wanted.split("\n\n\n", 1)[0]
    manner = f"in {language(script)} using the distinctive tone, manner and vocabulary of {role}"
    if not question.startswith(opening):
        yield Problem("prompt_mismatch", place, f"the prompt does not begin with {shown(opening)}")
    elif manner not in question[len(opening) :]:
        yield Problem("prompt_mismatch", place, f"the prompt does not ask for a reply {manner}")


def _answer(record: Answer, place: Place) -> Iterator[Problem]:
    if record.answer_error is not None:
        yield Problem("no_answer", place, f"there is no answer; {shown(record.answer_error)}")
        return
    if not record.answer.strip():
        yield Problem("empty_answer", place, f"the answer is {'blank' if record.answer else 'empty'}")
        return
    names = (record.role, record.other_role)
    yield from check_text(place, ANSWER, record.answer)
    yield from check_reply(place, ANSWER, record.answer, record.script, names)
    if bare(record.answer) in {name.casefold() for name in names}:
        yield Problem("bare_name", place, f"the answer is {shown(record.answer)}")


def _changes(record: Answer, place: Place, source: Source) -> Iterator[Problem]:
    test = source.around.test_samples.get(record.id)
    if test is None:
        return
    changed = [name for name, path in _COMPARED.items() if _value(test, path) != getattr(record, name)]
    if changed:
        yield Problem("changed_sample", place, f"not those of the test sample: {', '.join(changed)}")


def _value(value: Any, path: Path) -> Any:
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        return None
    return value


def _leak(record: TrainingRecord, place: Place, source: Source) -> Iterator[Problem]:
    dialogue = (record.id or "").rpartition("_")[0]
    if dialogue in source.around.test_dialogues:
        yield Problem("test_leak", place, f"test samples are cut from the dialogue {shown(dialogue)}")
