"""Environment variables of torchrun that make no sense are refused in a line."""

import pytest

from mmrole.base.errors import UserError
from mmrole.base.process_environment import check_process_environment

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """Sets these variables, and no others of torchrun's."""

    def put(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["", "x", "1.5", "-2", "9999999", "1\n2", "\u0661"])
def test_what_is_no_number_is_refused(environment, name, value):
    environment(**{name: value})
    with pytest.raises(UserError) as refused:
        check_process_environment()
    assert str(refused.value).startswith(f"{name}={value!r} ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values", [{"RANK": "2", "WORLD_SIZE": "2"}, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, {"WORLD_SIZE": "0"}]
)
def test_numbers_that_contradict_each_other_are_refused(environment, values):
    environment(**values)
    with pytest.raises(UserError):
        check_process_environment()


def test_what_torchrun_sets_is_accepted(environment):
    environment()
    check_process_environment()
    environment(WORLD_SIZE="8", RANK="7", LOCAL_WORLD_SIZE="4", LOCAL_RANK="3", MASTER_PORT="29500")
    check_process_environment()
    environment(LOCAL_RANK="-1")
    check_process_environment()
