from __future__ import annotations

from pathlib import Path

import pytest

from sage_sandbox.grants.notes import describe
from sage_sandbox.policy import Grant, GrantKind


def _note(kind: GrantKind, value: str) -> str:
    return describe(Grant(kind, value), Grant(kind, value))


def test_a_plain_read_needs_no_words(project: Path) -> None:
    assert _note("read", str(project)) == ""
    assert _note("loopback", "") == ""


@pytest.mark.parametrize("name", [".env", "server.key", ".git/config"])
def test_a_hidden_file_that_is_named_is_pointed_out(project: Path, name: str) -> None:
    assert _note("read", str(project / name)) == "hidden unless named: likely a secret"


def test_a_write_says_when_it_is_kept_and_what_runs_later(project: Path) -> None:
    assert _note("write", str(project / "docs")) == "kept only if the operation succeeds"
    assert _note("write", str(project)) == "kept only if the operation succeeds; runs later: Makefile"
    assert _note("write", str(project / "Makefile")).endswith("runs later: Makefile")


def test_a_write_through_says_that_names_are_not_protected(project: Path) -> None:
    assert (
        _note("write-through", str(project / "docs")) == "written at once; names such as .git are not protected in it"
    )


def test_many_names_that_run_later_are_counted(project: Path) -> None:
    for number in range(5):
        (project / f"docs/test_{number}.py").touch()

    assert _note("write", str(project / "docs")).endswith("runs later: test_0.py, test_1.py, test_2.py and 2 more")


def test_a_folder_that_cannot_be_listed_is_not_described(project: Path) -> None:
    assert _note("write", str(project / "gone")) == "kept only if the operation succeeds"


def test_a_net_grant_means_that_data_may_leave() -> None:
    assert _note("net", "api.example.org:443") == "data may leave to api.example.org:443"
    assert _note("net", "*.example.org:443").startswith("data may leave to every host beneath example.org:443")
    for literal in ("localhost:80", "10.0.0.1:80", "[::1]:80"):
        assert "also of this machine or a private network" in _note("net", literal)


def test_a_variable_that_looks_like_a_credential_is_pointed_out() -> None:
    assert _note("env", "ANTHROPIC_API_KEY") == "its value looks like a credential"
    assert _note("env", "CI") == ""


def test_a_model_says_where_the_prompt_goes() -> None:
    assert _note("model", "anthropic/m") == "the prompt leaves to anthropic, and costs what that charges"
