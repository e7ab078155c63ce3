"""What is said and returned when a process of several ends."""

import os
import socket
import subprocess
import sys

import pytest

from mmrole.base.launch import main

PROGRAM = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    {end}
time.sleep(60 if {waits} else 0)
"""


def launch(folder, end, *, waits=True, flags=("--standalone",)):
    """Two processes; the second ends so, the first waits for longer than the test."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(end=end, waits=waits))
    command = [sys.executable, "-m", "mmrole.base.launch", "--nproc_per_node", "2", *flags, str(program)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=50, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_all_is_well(tmp_path):
    done = launch(tmp_path, "pass", waits=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_is_what_the_process_said(tmp_path):
    done = launch(tmp_path, "sys.exit(print('error: no data', file=sys.stderr) or 2)")
    assert (done.returncode, done.stderr) == (2, "error: no data\n")


def test_a_killed_process_is_named(tmp_path):
    done = launch(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert (done.returncode, done.stderr) == (137, "error: process 1 was ended by SIGKILL\n")


def test_a_bug_keeps_its_traceback(tmp_path):
    done = launch(tmp_path, "1 / 0")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    "flags",
    [
        *(("--nproc_per_node", value) for value in ("x", "0", "-1", "1.5")),
        *(("--nnodes", value) for value in ("x", "0", "2:1")),
        *(("--node_rank", "1"), ("--master_port", "65536"), ("--master_port", "-1")),
    ],
)
def test_numbers_that_are_none(flags, capsys):
    assert main([*flags, "program.py"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {' '.join(flags)}: ")
    assert said.count("\n") == 1


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        flags = ("--master_addr", "127.0.0.1", "--master_port", str(port))
        done = launch(tmp_path, "pass", flags=flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("is MASTER_PORT free, and MASTER_ADDR right?\n")
    assert done.stderr.count("\n") == 1
