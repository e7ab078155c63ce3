"""Whether kernels can be compiled for a GPU: not without Triton, a C compiler and Python's headers."""

import sysconfig

import pytest

from mmrole.base.triton_support import can_compile, has_triton, missing_for_launchers


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with headers and without a compiler; its path."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    can_compile.cache_clear()
    yield tmp_path
    can_compile.cache_clear()


def make_program(place):
    place.touch()
    place.chmod(0o755)


def test_a_compiler_and_headers_are_needed(machine):
    assert missing_for_launchers() == "there is no C compiler gcc"
    assert not can_compile()
    make_program(machine / "gcc")
    can_compile.cache_clear()
    assert missing_for_launchers() is None
    assert can_compile() == has_triton()
    (machine / "Python.h").unlink()
    assert missing_for_launchers() == "Python's headers are not installed (Python.h)"


def test_a_compiler_can_be_named(machine, monkeypatch):
    make_program(machine / "gcc")
    monkeypatch.setenv("CC", "other")
    assert missing_for_launchers() == "there is no C compiler other"
    make_program(machine / "other")
    assert missing_for_launchers() is None


@pytest.mark.skipif(not has_triton(), reason="is about Triton")
def test_triton_can_be_imported_where_it_is_found():
    import triton

    assert triton.__version__
