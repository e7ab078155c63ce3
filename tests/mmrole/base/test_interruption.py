"""Ctrl-C in real processes, at any moment: one line and status 130, never a traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest

MODULES = ["check", "describe", "build_dataset", "build_rm_data", "download"]
SCRIPTS = [
    *("inference.py", "chat.py", "finetune/finetune.py"),
    *("eval/RM_review.py", "eval/RM_result.py", "eval/report.py", "eval/agreement.py"),
    *("scripts/merge_lora.py", "scripts/verify_release.py", "scripts/demo_world.py", "scripts/demo_table.py"),
]
COMMANDS = [
    *([name, "--help"] for name in SCRIPTS),
    *(["-m", f"data_utils.{name}", "--help"] for name in MODULES),
    *([f"scripts/bench_{name}.py"] for name in ("answers", "review", "training")),
    ["scripts/compare_losses.py", "--data_path", "x", "--image_dir", "x", "--vocabulary", "x"],
    ["scripts/make_tiny_checkpoint.py", "--output_dir", "x"],
    ["-m", "mmrole.base.launch", "--help"],
]


def interrupted(status: int, stderr: str) -> bool:
    return (status, stderr.strip()) == (130, "interrupted")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_in_the_imports(command, repository, tmp_path):
    """The signal comes as the script imports its first module of the project, whatever that is."""
    (tmp_path / "sitecustomize.py").write_text(AT_FIRST_IMPORT)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{repository}"}
    done = subprocess.run([sys.executable, *command], cwd=repository, env=environment, capture_output=True, text=True)
    assert interrupted(done.returncode, done.stderr), done.stderr[-2000:]


AT_FIRST_IMPORT = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("data_utils", "mmrole") and "mmrole.base.interruption" in sys.modules:
            if name != "mmrole.base.errors":
                sys.meta_path.remove(self)
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
"""


@pytest.mark.parametrize("wait", [0.4, 1.0, 2.0])
def test_at_some_moment(wait, repository):
    """Where it comes depends on the machine; the outcome does not."""
    process = subprocess.Popen(
        [sys.executable, "chat.py", "--role", "nobody"],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode in (130, 2, -signal.SIGINT)  # the last: after the interpreter has ended
    assert stderr.count("\n") == 1, stderr


@pytest.mark.parametrize(
    "error", ["ImportError('numpy failed to import')", "SystemError('initialization raised')", "KeyboardInterrupt"]
)
@pytest.mark.parametrize("where", ["{}", "from mmrole.base.errors import run\nrun(fail)"])
def test_what_an_import_makes_of_it(error, where, repository):
    code = (
        f"import data_utils\ndef fail():\n    try: raise KeyboardInterrupt\n    except BaseException: raise {error}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + where.replace("{}", "fail()")], cwd=repository, capture_output=True, text=True
    )
    assert interrupted(done.returncode, done.stderr), done.stderr


def test_a_bug_is_shown(repository):
    done = subprocess.run(
        [sys.executable, "-c", "import data_utils; 1 / 0"], cwd=repository, capture_output=True, text=True
    )
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (1, True)


@pytest.mark.parametrize("first", ["raise KeyboardInterrupt", "return 0"])
def test_again_while_the_interpreter_ends(first, repository):
    """Threads are waited for, and exit functions run, after the script is done."""
    code = f"""
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from mmrole.base.errors import run
pool = ThreadPoolExecutor(1)
atexit.register(time.sleep, 60)
def main():
    pool.submit(time.sleep, 60)
    threading.Timer(0.5, lambda: print("ending", flush=True)).start()
    {first}
run(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=50)
    assert process.returncode == 130
    assert stderr in ("interrupted\n", "")
