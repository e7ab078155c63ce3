"""Templates that are particular about what they are given: the frame is the one that transformers makes of texts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.vlms import templates, vocabularies
from transformers import PreTrainedTokenizerFast

from mmrole.base.errors import UserError
from mmrole.models.vlm.chat_template import ChatTemplate, FramePart, TurnShape, shape_of

Template = Callable[[str | dict[str, str]], ChatTemplate]


@pytest.fixture(scope="module")
def template() -> Template:
    """A tokenizer's template with a text, or several by their names."""
    own = vocabularies.byte_level(vocabularies.QWEN, ("<|im_start|>", "<|im_end|>"))

    def made(text: str | dict[str, str]) -> ChatTemplate:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|im_end|>")
        tokenizer.chat_template = text
        return ChatTemplate(tokenizer, Path("model"))

    return made


def turns(*said: tuple[str, str | None]) -> tuple[TurnShape, ...]:
    """Messages of one part; None is an image, behind which the text "x" follows."""
    return tuple(TurnShape(role, (None, shape_of("x")) if text is None else (shape_of(text),)) for role, text in said)


def rendered(frame: tuple[FramePart, ...], *texts: str) -> str:
    return "".join(texts[part.number] if part.number >= 0 else part.text for part in frame)


def test_what_a_template_would_print_as_a_list_is_handed_over_as_a_string(template):
    made = template(templates.PRINTING)
    chat = turns(("system", "a"), ("user", None), ("assistant", "b"), ("user", "c\n"))
    assert rendered(made.frame(chat, True), "Be kind.", "Who?", "Ann.", "And he?") == (
        "<sop><|system|>\nBe kind.<|user|>\n<|image|>\nWho?<|assistant|>\nAnn.<|user|>\nAnd he?\n<|assistant|>\n"
    )


def test_nothing_is_printed_of_texts_that_are_empty(template):
    frame = template(templates.PRINTING).frame(turns(("system", ""), ("user", "a")), True)
    assert rendered(frame, "", "Who?") == "<sop><|system|>\n<|user|>\nWho?<|assistant|>\n"


def test_answers_are_learned_from_templates_that_want_strings(template):
    chat = turns(("system", "a"), ("user", None), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    frame = template(templates.PRINTING).frame(chat, False)
    assert [part.number for part in frame if part.learned] == [2, 4]


def test_today_is_always_the_same_day(template):
    made = template(templates.DATED)
    frame = made.frame(turns(("user", "a")), True)
    assert rendered(frame, "Hm?") == "[SYSTEM]Today is 01 January 2025.[/SYSTEM]Hm?[END]"
    assert rendered(made.frame(turns(("system", "a"), ("user", "b")), True), "A", "B") == "[SYSTEM]A[/SYSTEM]B[END]"


def test_of_several_templates_the_default_is_taken(template):
    named = {"default": "{{ messages[0]['content'][0]['text'] }}!", "rag": "?"}
    assert rendered(template(named).frame(turns(("user", "a")), True), "Hm") == "Hm!"
    with pytest.raises(UserError, match="model: This model has multiple chat templates with no default"):
        template({"tool_use": "!", "rag": "?"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "{{ raise_exception('no ' + messages[0]['role']) }}",
            "its chat template refuses the roles user: no user",
        ),
        ("{{ messages[0]['content'] + 1 }}", "its chat template refuses the roles user: can only concatenate"),
        ("{{ messages[0]['role'] }}", "its chat template leaves out or repeats a message's text"),
        ("{% for part in messages[0]['content'] * 2 %}{{ part['text'] }}{% endfor %}", "leaves out or repeats"),
    ],
    ids=["refuses", "fails", "leaves out", "repeats"],
)
def test_other_templates_get_one_line(template, text, line):
    with pytest.raises(UserError, match=line) as raised:
        template(text).frame(turns(("user", "a")), True)
    assert "\n" not in str(raised.value)
