"""Addresses and keys."""

import pytest

from mmrole.backends.api.access import Access, find_access
from mmrole.base.errors import UserError

KEY = "sk-0123456789abcdef"
ENVIRONMENT = {"OPENAI_API_KEY": KEY, "MINE": f" {KEY}x\n", "ODD": "sk 1", "OPENAI_BASE_URL": "http://elsewhere/v1"}


def test_the_key_of_openai_is_for_openai_alone():
    assert find_access("https://api.openai.com/v1/", None, ENVIRONMENT) == Access("https://api.openai.com/v1", KEY)
    assert find_access("https://eu.api.openai.com/v1", None, ENVIRONMENT).key == KEY
    for url in ("http://localhost:8000/v1", "https://api.openai.com.evil.org/v1", "https://evil-api.openai.com/v1"):
        assert find_access(url, None, ENVIRONMENT) == Access(url)


def test_another_key_is_named():
    assert find_access("http://localhost/v1", "MINE", ENVIRONMENT).key == KEY + "x"
    assert find_access("http://localhost/v1", "OPENAI_API_KEY", ENVIRONMENT).key == KEY


@pytest.mark.parametrize(
    ("url", "name", "said"),
    [
        (
            "https://api.openai.com/v1",
            "NONE",
            "the variable of --api_key_env is empty; export it, and give its name, not",
        ),
        ("https://api.openai.com/v1", KEY, "the variable of --api_key_env is empty"),
        ("http://localhost/v1", "ODD", "--api_key_env holds blanks or other characters that no key has"),
        ("http://api.openai.com/v1", None, "would send the key unencrypted; write https"),
        ("http://eu.API.openai.com/v1", None, "would send the key unencrypted; write https"),
        ("localhost:8000/v1", None, "is no address of a server; give it as in https://api.openai.com/v1 or"),
        ("ftp://localhost", None, "is no address"),
        ("http://", None, "is no address"),
        ("http://[::1/v1", None, "is no address"),
        ("http://localhost:99999/v1", None, "is no address"),
        ("http://lo\ncalhost/v1", None, "is no address"),
        ("http://me:secret@localhost/v1", None, "holds a name or a password, which others could read"),
        ("http://localhost/v1?key=secret", None, "must end with a path, without ? and #"),
        ("http://localhost/v1/chat/completions", None, "must end before /chat/completions"),
    ],
)
def test_what_is_refused(url, name, said):
    with pytest.raises(UserError) as caught:
        find_access(url, name, ENVIRONMENT)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(caught.value.lines) == 1


def test_without_a_key_for_openai():
    with pytest.raises(UserError, match=r"^there is no key for https://api.openai.com/v1: the environment variable"):
        find_access("https://api.openai.com/v1", None, {})


def test_a_key_that_goes_unencrypted_to_another_machine():
    for url in ("http://192.168.0.7:8000/v1", "http://gpu-box/v1", "http://localhost.evil.org/v1"):
        assert Access(url, KEY).exposes_key
        assert not Access(url).exposes_key
    for url in ("https://gpu-box/v1", "http://localhost:8000/v1", "http://127.0.0.3/v1", "http://[::1]:80/v1"):
        assert not Access(url, KEY).exposes_key


def test_a_key_is_shown_to_nobody():
    access = Access("http://localhost", KEY)
    assert KEY not in repr(access)
    assert access.without_key(f"Incorrect key: {KEY}.") == "Incorrect key: (the key)."
    assert Access("http://localhost", "EMPTY").without_key("EMPTY") == "EMPTY"
