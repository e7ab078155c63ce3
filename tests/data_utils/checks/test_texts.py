"""What counts as another language, as an assistant's words, and as a special token; and what does not."""

import pytest

from data_utils.checks.problems import Place
from data_utils.checks.texts import check_reply, check_text, is_in

PLACE = Place("file", 0, "id")


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("A ship that waits for its pilot.", {"English"}),
        ("俺老孙看到一条大船停在水边。", {"Chinese"}),
        ("", {"Chinese", "English"}),
        ("OK!", {"Chinese", "English"}),
        ("(1,2),(999,999)", {"Chinese", "English"}),
        ("唐僧！", {"Chinese", "English"}),
        ("它叫“The Secret Life of Bees”，是本好书，悟空也该读读。", {"Chinese"}),
        ("She calls it 隐藏的宝藏, the hidden treasure, and will not say why.", {"English"}),
        ("Mañana, mi amigo: déjà vu, naïveté and Øresund.", {"English"}),
        ("Я вижу большой корабль, который ждёт.", set()),
        ("大きな船がみなとでまっているのがみえます。", set()),
    ],
)
def test_language_is_told_by_script(text, languages):
    assert {language for language in ("Chinese", "English") if is_in(text, language)} == languages


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot feel cold.",
        "As an artificial intelligence, I do not have emotions.",
        "I'm just an AI assistant.",
        "I am a large language model trained by OpenAI.",
        "I'm sorry, but I can't assist with that.",
        "作为一个人工智能语言模型，我没有感情。",
        "抱歉，我无法提供这方面的信息。",
    ],
)
def test_assistants_are_found(text):
    assert [problem.kind for problem in check_reply(PLACE, (), text, None, ())] == ["assistant_ism"]


@pytest.mark.parametrize(
    "text",
    [
        "As an artificial being, I do not experience emotions as you do.",
        "It serves as a navigational aid, as an airport does.",
        "I'm an AI researcher, and as an AI expert I doubt it.",
        "I can't help but think of home.",
        "I'm sorry, I can't hear you over the sound of all those directions.",
        "Perhaps a surfing assistant bot with a smidge of AI?",
        "我是一个猴王，不是别人的助手。",
    ],
)
def test_characters_are_no_assistants(text):
    assert not list(check_reply(PLACE, (), text, None, ()))


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<|eot_id|>", "</s>", "<eos>", "<end_of_turn>", "<｜end▁of▁sentence｜>"]
)
def test_end_tokens_of_models_are_cut(token):
    (problem,) = check_text(PLACE, (), f"A ship. {token}\n{token}\n")
    assert (problem.kind, problem.fix.value) == ("trailing_token", "A ship.")


@pytest.mark.parametrize("text", ["<|im_end|>", "a <img>b</img>", "[INST] a", "<image> a", "<|im_start|>a"])
def test_other_special_tokens_are_left_in_place(text):
    (problem,) = check_text(PLACE, (), text)
    assert (problem.kind, problem.fix) == ("special_token", None)


@pytest.mark.parametrize("text", ["1 < 2 > 0", "<3", "[Loki]: What?", "a | b", "He <smiles> at me.", "x<y|z>w"])
def test_what_only_looks_like_a_token(text):
    assert not list(check_text(PLACE, (), text))


def test_names_before_a_colon():
    names = ("Ada Nova", "唐僧")
    for text in ("Ada Nova: Yes.", "[Ada Nova]: Yes.", '**Ada Nova:** "Yes."', "(ada nova) : Yes.", "唐僧：善哉。"):
        assert [problem.kind for problem in check_reply(PLACE, (), text, None, names)] == ["speaker_prefix"], text
    for text in ("Ada Nova", "Ada Nova:", "Ada Nova said: yes.", "Yes: Ada Nova.", "Listen, Ada Nova: no."):
        assert not list(check_reply(PLACE, (), text, None, names)), text
