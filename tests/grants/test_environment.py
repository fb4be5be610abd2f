from __future__ import annotations

import pytest

from sage_sandbox.errors import UsageError
from sage_sandbox.grants.environment import check_name, looks_like_credential


@pytest.mark.parametrize("name", ["CI", "_x", "ANTHROPIC_API_KEY", "PATHS", "HOMEPAGE", "GITHUB_TOKEN"])
def test_an_ordinary_name_may_be_handed_in(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "1A", "A=B", "A B", "Ä", "A\n", "A-B", "BASH_FUNC_x%%"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not the name of an environment variable"):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "TMPDIR",
        "LD_PRELOAD",
        "PYTHONPATH",
        "GIT_SSH",
        "SAGE_STATE_KEY",
        "SAGE_STATE_KEY_FILE",
        "SAGE_OUT",
    ],
)
def test_what_steers_the_programs_inside_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="never handed in"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["ANTHROPIC_API_KEY", "github_token", "DB_PASSWORD", "PGPASSWORD", "APIKEY", "AUTH", "X_SECRET_ID"]
)
def test_names_of_credentials_are_known(name: str) -> None:
    assert looks_like_credential(name)


@pytest.mark.parametrize("name", ["CI", "KEYBOARD", "LANG", "TERM"])
def test_other_names_are_not_taken_for_credentials(name: str) -> None:
    assert not looks_like_credential(name)
