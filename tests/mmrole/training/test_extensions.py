"""What is said before DeepSpeed builds an extension: that it does, what it waits for, and what it lacks."""

import pytest

from mmrole.base.errors import UserError
from mmrole.training import extensions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    built = tmp_path / "py311_cpu" / "deepspeed_shm_comm"
    built.mkdir(parents=True)
    return built


def test_a_build_is_announced(folder, monkeypatch):
    monkeypatch.setenv("CXX", "true")  # any program
    assert extensions.before_build_on_cpu() == ["DeepSpeed builds an extension, once, in about a minute"]


def test_without_a_compiler_the_remedy_is_told(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no compiler no-such-compiler; apt install g\+\+"):
        extensions.before_build_on_cpu()


def test_a_lock_is_named_with_what_to_do(folder):
    (folder / "lock").touch()
    (note,) = extensions.before_build_on_cpu()
    assert note.startswith(f"{folder / 'lock'}: ")
    assert "delete this" in note
    assert extensions.locks() == [note]


def test_what_is_built_needs_no_word_and_no_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (folder / "deepspeed_shm_comm.so").touch()
    assert extensions.before_build_on_cpu() == []
