"""The way to a server: addresses, proxies, keys. The server is a real one, on this machine."""

import json

import pytest
from fixtures.office import IDS, KEY
from fixtures.servers import Say, calm, completion, error, serving

from mmrole.backends.api.api_backend import find_api
from mmrole.backends.api.options import ApiOptions
from mmrole.base.errors import UserError
from mmrole.jobs import job


def test_no_server(office):
    with serving() as gone:
        url = gone.url
    with pytest.raises(
        UserError, match=r"no connection: .*; correct --api_base, or start the server; what is finished"
    ):
        office.run(base=url)


PROXIES = [
    (
        {"HTTP_PROXY": "http://me:secret@127.0.0.1:x"},
        r"a proxy or certificates that cannot be used \(Invalid port: 'x'\)",
    ),
    (
        {"ALL_PROXY": "socks://me:secret@127.0.0.1:1"},
        r"cannot be used \(.*socks://.*\); correct HTTPS_PROXY, HTTP_PROXY and",
    ),
    ({"SSL_CERT_FILE": "/nowhere.pem"}, r"cannot be used \(.*No such file.*\); correct .* or SSL_CERT_FILE"),
    (
        {"HTTP_PROXY": "http://me:secret@127.0.0.1:1"},
        r"no connection: .*, or correct the environment's proxy \(NO_PROXY",
    ),
]


@pytest.mark.parametrize(("environment", "said"), PROXIES)
def test_an_environment_that_leads_nowhere_is_named_and_its_password_is_not(office, monkeypatch, environment, said):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said) as raised:
        office.run()
    assert "secret" not in str(raised.value)
    assert not office.server.log


def test_a_key_that_others_could_read_is_warned_of(server, monkeypatch, capsys):
    monkeypatch.setenv("MINE", KEY)
    for url in ("http://gpu-box/v1", server.url):
        find_api(ApiOptions(url, "m", key_env="MINE"))
    assert capsys.readouterr().out == (
        "warning: the key goes to http://gpu-box/v1 unencrypted, for others to read; https would keep it secret\n"
    )


def test_no_proxy_leaves_the_proxy_out(office, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert office.run() == 0


def test_a_redirect_is_not_followed_and_takes_no_key_along(office, monkeypatch):
    monkeypatch.setenv("MINE", KEY)
    with serving() as other:
        office.server.behaviour = lambda ask: Say({}, 307, {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(UserError, match=r"it redirects to http://127.* which is not followed; correct --api_base"):
            office.run(key_env="MINE")
        assert other.log == []
    assert office.server.log[0].headers["authorization"] == f"Bearer {KEY}"


def test_the_key_is_nowhere(office, monkeypatch, capfd):
    """The server repeats it wherever it can."""
    monkeypatch.setenv("MINE", KEY)
    said = {
        IDS[0]: completion(f"Your key is {KEY}.", model="calm-1"),
        IDS[1]: completion("", refusal=f"not with {KEY}"),
        IDS[2]: error(400, f"wrong {KEY}"),
        IDS[3]: Say(KEY.encode()),
        IDS[4]: Say(json.dumps(completion("Aye.")).replace("Aye", "".join(f"\\u{ord(c):04x}" for c in KEY)).encode()),
    }
    office.server.behaviour = lambda ask: said.get(ask.id) or calm(ask)
    assert office.run(key_env="MINE") == job.FAILED
    written = [path.read_text() for path in office.desk.folder.rglob("*.json*") if path.is_file()]
    assert len(written) >= 4
    out = capfd.readouterr()
    assert not any(KEY in text for text in [*written, out.out, out.err])
    assert office.answers()[IDS[0]] == "Your key is (the key)."
