"""The chat page is served to this machine only, whatever the environment says: asked over HTTP, in a real process."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio, which chat.py --web needs, is not installed", allow_module_level=True)

PUBLIC = {
    "GRADIO_SHARE": "True",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_SERVER_PORT": "no number",
    "GRADIO_ROOT_PATH": "/elsewhere",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_MCP_SERVER": "True",
    "GRADIO_SSR_MODE": "True",
    "GRADIO_ANALYTICS_ENABLED": "True",
    "GRADIO_NUM_WORKERS": "many",
    "GRADIO_DEBUG": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch

    from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
    from mmrole.qwen_vl.vocabulary import byte_vocabulary

    folder = tmp_path_factory.mktemp("page")
    config = random_config(256, num_hidden_layers=1, visual_layers=1, image_size=224)
    write_checkpoint(folder / "model", random_model(config, seed=1, dtype=torch.float32), byte_vocabulary())
    profiles = folder / "profiles/in-distribution"
    profiles.mkdir(parents=True)
    (profiles / "roles.json").write_text(json.dumps({"Lantern Bay": ["Mira"]}))
    (profiles / "profiles.json").write_text(json.dumps({"Mira": "A pilot."}))
    (folder / "tmp").mkdir()
    return folder


@pytest.fixture(scope="module")
def page(folder, repository):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, repository / "chat.py", "--model_path", "model", "--web", "--port", str(port)]
    environment = os.environ | PUBLIC | {"TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == f"http://127.0.0.1:{port} (Ctrl-C ends)\n", process.communicate()[1]
    yield port
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (143, "")
    assert "Traceback" not in stderr
    assert not list((folder / "tmp").glob("mmrole-page-*"))


def test_a_servers_model_has_a_page(folder, repository):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ["--api_base", "http://127.0.0.1:1/v1", "--api_model", "calm-1"]
    command = [sys.executable, repository / "chat.py", "--web", "--port", str(port), *server]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == f"http://127.0.0.1:{port} (Ctrl-C ends)\n", process.communicate()[1]
    assert ask(port)[0].status == 200
    process.terminate()
    assert "Traceback" not in process.communicate(timeout=60)[1]


def ask(port, path="/", method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer, answer.read()


def upload(port, size, **headers):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = head + bytes(size) + b"\r\n--x--\r\n"
    headers = {"Content_Type": "multipart/form-data; boundary=x", "Content_Length": str(len(body))} | headers
    return ask(port, "/gradio_api/upload", "POST", body, **headers)


def test_it_answers_this_machine(page):
    answer, text = ask(page)
    assert answer.status == 200
    assert b"elsewhere" not in text
    for host in (f"localhost:{page}", "localhost:8000", "127.0.0.1"):  # the others are those of a tunnel
        assert ask(page, Host=host)[0].status == 200
        assert ask(page, Host=host, Origin=f"http://{host}")[0].status == 200


def test_it_listens_on_this_machine_only(page):
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [fields[1] for fields in listening if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == page]
    assert ours == [f"0100007F:{page:04X}"]


@pytest.mark.parametrize(
    "headers",
    [
        *(
            {"Host": host}
            for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "[", "", "10.0.0.1")
        ),
        *(
            {"Origin": origin}
            for origin in ("http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1")
        ),
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_foreign_hosts_and_origins_are_refused(page, headers, path):
    for method in ("GET", "POST", "OPTIONS"):
        answer, _ = ask(page, path, method, **headers, Access_Control_Request_Method="POST", Content_Length="0")
        assert answer.status == 403
        assert not any(name.lower().startswith("access-control") for name, _ in answer.getheaders())
    assert upload(page, 10, **headers)[0].status == 403


def test_uploads_are_small_and_private(page, folder):
    answer, text = upload(page, 1000)
    assert answer.status == 200
    [path] = json.loads(text)
    [private] = (folder / "tmp").glob("mmrole-page-*")
    assert path.startswith(str(private))
    assert private.stat().st_mode & 0o077 == 0
    assert upload(page, (20 << 20) + 1000)[0].status == 413
    with pytest.raises((ConnectionError, http.client.HTTPException, AssertionError)):
        assert upload(page, 30 << 20)[0].status == 200


@pytest.mark.parametrize("path", ["/etc/hostname", "profiles/in-distribution/roles.json"])
def test_files_of_this_machine_are_not_served(page, folder, path):
    place = folder / path
    for route in ("/gradio_api/file=", "/file="):
        assert ask(page, f"{route}{place}")[0].status in (403, 404)
