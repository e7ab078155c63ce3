"""Flags of the server that do not go together are refused in a line."""

import argparse

import pytest

from mmrole.base.errors import UserError
from mmrole.chat.server.options import ServerOptions, add_server_arguments, is_local

KEY = "0123456789abcdef"


def options(*flags: str) -> ServerOptions:
    parser = argparse.ArgumentParser()
    add_server_arguments(parser)
    return ServerOptions.of_flags(vars(parser.parse_args(flags)))


def test_by_default_this_machine_alone_can_ask():
    assert options() == ServerOptions("127.0.0.1", 8000, None, (), None, None, True, 256)
    assert [is_local(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "LocalHost", "0.0.0.0", "::", "a.b")] == [
        *(True, True, True, True, False, False, False)
    ]


def test_other_machines_need_a_key(monkeypatch):
    monkeypatch.setenv("DOOR", KEY)
    with pytest.raises(UserError, match=r"^--host 0\.0\.0\.0 lets other machines ask: give --server_key_env NAME"):
        options("--host", "0.0.0.0")
    served = options("--host", "0.0.0.0", "--server_key_env", "DOOR", "--allowed_hosts", "Box.lan", "b")
    assert (served.key, served.hosts) == (KEY, ("box.lan", "b"))


@pytest.mark.parametrize("value", ["", "short", "with a blank in it", "ключ-ключ-ключ"])
def test_what_is_no_key(monkeypatch, value):
    monkeypatch.setenv("DOOR", value)
    with pytest.raises(UserError, match=r"^--server_key_env: the variable of this name must hold a key") as refused:
        options("--server_key_env", "DOOR")
    assert value not in str(refused.value) or not value


def test_a_flag_about_characters_needs_one():
    with pytest.raises(UserError, match="--system_notes is about characters"):
        options("--system_notes", "refuse")
    assert options("--system_notes", "refuse", "--role", "Mira").takes_notes is False
