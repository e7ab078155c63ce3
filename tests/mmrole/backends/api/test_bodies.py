"""The body of a request."""

from PIL import Image

from mmrole.backends.api.bodies import body_of, setting_fields
from mmrole.backends.api.data_urls import data_url
from mmrole.backends.api.options import ApiOptions
from mmrole.data.messages import LabelledImage, Message, Quotation, one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings

OPTIONS = ApiOptions("http://localhost/v1", "m", extra={"top_k": 20})
SAMPLED, GREEDY = GenerationSettings(), GenerationSettings(do_sample=False, max_new_tokens=9)


def test_settings_are_standard_fields():
    assert setting_fields(SAMPLED) == {"max_tokens": 512, "temperature": 1.0, "top_p": 0.3, "seed": 1234}
    assert setting_fields(GREEDY) == {"max_tokens": 9, "temperature": 0, "seed": 1234}


def test_what_a_server_refuses_is_left_out_or_sent_under_its_other_name():
    assert setting_fields(GREEDY, ["temperature"]) == {"max_tokens": 9, "seed": 1234}
    assert setting_fields(GREEDY, ["max_tokens"]) == {"max_completion_tokens": 9, "temperature": 0, "seed": 1234}
    assert setting_fields(GREEDY, ["max_tokens", "max_completion_tokens", "seed"]) == {"temperature": 0}
    request = ChatRequest("a", one_turn("Play.", "Who?"), GREEDY)
    assert "top_k" not in body_of(request, OPTIONS, ["top_k"])


def test_the_published_prompt_is_a_system_message_and_a_turn_of_image_and_text(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)
    request = ChatRequest("a", one_turn("Play.", path, "Who ", Quotation("\nis\ud800 it?")), GREEDY)
    assert body_of(request, OPTIONS) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Play."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": data_url(path, 1 << 20)}},
                    {"type": "text", "text": "Who \nis? it?"},
                ],
            },
        ],
        "max_tokens": 9,
        "temperature": 0,
        "seed": 1234,
        "top_k": 20,
    }


def test_without_an_image_and_with_several_turns():
    messages = (Message("user", ("Who", " are you?")), Message("assistant", ("Mira.",)), Message("user", ("And?",)))
    assert body_of(ChatRequest("a", messages, GREEDY), OPTIONS)["messages"] == [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "Mira."},
        {"role": "user", "content": "And?"},
    ]


def test_an_image_with_a_label():
    picture = Image.new("RGB", (3, 2))
    message = Message("user", ("Look. ", LabelledImage(picture, "Here: "), "What is it?"))
    (sent,) = body_of(ChatRequest("a", (message,), GREEDY), OPTIONS)["messages"]
    assert [part.get("text") for part in sent["content"]] == ["Look. Here: ", None, "What is it?"]
