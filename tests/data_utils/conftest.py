"""Fixtures of the data tools' tests: processes that can be killed, and disks that are full."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Gives a script its disk: the variable `folder`, and make_room(), after which there is space again.
LIMITED = """
import resource, signal, sys
from pathlib import Path
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
def make_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
FULL = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "ballast").write_bytes(b"x" * 200_000)
def make_room():
    (folder / "ballast").unlink()
"""


@pytest.fixture(params=["file size limit", "full disk"])
def on_small_disk(
    request: pytest.FixtureRequest, tmp_path: Path, repository: Path
) -> Callable[[str], subprocess.CompletedProcess]:
    """Runs Python code where about 50 kB can be written: under a limit on file sizes, and on a tmpfs of 256 kB."""
    if request.param == "file size limit":
        prefix, setup = [], LIMITED
    else:
        mount = 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"'
        prefix, setup = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)], FULL
        if subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("a small file system cannot be mounted here")

    def run(code: str) -> subprocess.CompletedProcess:
        command = [*prefix, sys.executable, "-c", setup + code, str(tmp_path)]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True)

    return run
