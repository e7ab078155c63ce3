"""Shared fixtures and options: `--long` runs the slow tests; published reference material is found at ../shared."""

import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import hypothesis
import pytest
from fixtures.vlms.chosen import FALLING_BACK, WITH_LONG, tiny_vlm

ROOT = Path(__file__).resolve().parent.parent

# Files that take longest, in this order: of two workers one would work on them alone at the end.
LONGEST = (
    "scripts/test_demo.py",
    "scripts/test_demo_real.py",
    "finetune/test_resume.py",
    "finetune/test_recipes.py",
    "inference/test_inference_durability.py",
    "finetune/test_finetune.py",
    "test_types.py",
    "test_chat.py",
    "eval/test_RM_review.py",
    "mmrole/engine/test_engine.py",
    "test_serve_models.py",
    "test_serve_load.py",
)

# How long an example takes is no property of the code.
hypothesis.settings.register_profile("mmrole", deadline=None)
hypothesis.settings.load_profile("mmrole")


# A background job of a shell without job control ignores Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long (minutes each)")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps what is kept for the user out of the tests: they have a cache folder of their own.

    All but this project's part of it are links to the user's: what pip and DeepSpeed keep takes minutes to come by.
    """
    if hasattr(config, "workerinput"):  # of xdist, whose processes have the environment of the first
        return
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    (users / "torch_extensions").mkdir(parents=True, exist_ok=True)
    own = tempfile.TemporaryDirectory(prefix="mmrole-tests-")
    config.add_cleanup(own.cleanup)
    for entry in users.iterdir():
        if entry.name != "mmrole":
            (Path(own.name) / entry.name).symlink_to(entry)
    os.environ["XDG_CACHE_HOME"] = own.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, and leaves the long tests out, unless they are asked for."""
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long; run with --long"))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Names the kinds of vision-language models that are left out."""
    if config.getoption("--long"):
        return None
    return f"without --long, tiny vision-language models left out: {', '.join((*WITH_LONG, *FALLING_BACK))}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared with the reference material; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is absent")
    return folder


@pytest.fixture(scope="session")
def real_vocabulary() -> Path:
    """The vocabulary file of Qwen-VL-Chat, `qwen.tiktoken`, as the package dashscope carries it."""
    try:  # the distribution's list of files locates it without importing the package
        entry = next(file for file in files("dashscope") or [] if file.name == "qwen.tiktoken")
    except (PackageNotFoundError, StopIteration):
        pytest.skip("the package dashscope 2.0.2, which carries qwen.tiktoken, is not installed")
    return Path(entry.locate())


@pytest.fixture(scope="session")
def mini_vocabulary(real_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary of tests/golden/ckpt_mini: the first 2,000 lines of the real one."""
    file = tmp_path_factory.mktemp("mini_vocabulary") / "qwen.tiktoken"
    file.write_bytes(b"".join(real_vocabulary.read_bytes().splitlines(keepends=True)[:2000]))
    return file


@pytest.fixture(scope="session")
def golden(repository: Path) -> Path:
    """The golden data in the repository."""
    return repository / "tests/golden"


@pytest.fixture(scope="session", params=["copies", "complete"])
def golden_cases(request: pytest.FixtureRequest) -> Path:
    """The golden data in the repository, then, where it is present, ../shared/golden with the cases left out here."""
    if request.param == "copies":
        return request.getfixturevalue("golden")
    return request.getfixturevalue("shared") / "golden"


@pytest.fixture(scope="session")
def same_course() -> Callable[[Sequence[float], Sequence[float]], None]:
    """Compares the losses of the steps of a training run with expected ones.

    Optimizer steps amplify rounding, which differs from processor to processor, while the loss falls: the tolerance of
    later steps is a share of the first loss.
    """

    def compare(losses: Sequence[float], expected: Sequence[float]) -> None:
        assert losses == pytest.approx(expected, rel=1e-4, abs=1e-5 * expected[0])

    return compare
