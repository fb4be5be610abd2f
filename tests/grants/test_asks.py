from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_sandbox.escaping import escape
from sage_sandbox.grants.asks import all_asks, as_option, as_typed, asks_of, policy_of, quote
from sage_sandbox.policy import Grant, Policy, parse_grant
from sage_sandbox.workflow.definition import Workflow


def test_a_policy_is_a_list_of_asks() -> None:
    policy = Policy(
        ("a", "b", "a"),
        ("c",),
        ("d",),
        ("e:443",),
        loopback=True,
        tool=("f/*",),
        model=("h/m",),
        env=("G",),
        unprotected=(".git",),
    )

    asks = asks_of(policy)

    assert [str(ask) for ask in asks] == [
        "read:a", "read:b", "write:c", "write-through:d", "loopback", "net:e:443", "tool:f/*", "model:h/m", "env:G",
    ]  # fmt: skip
    assert asks_of(Policy()) == ()


def test_the_asks_of_a_workflow_are_listed_once(make_workflow: Callable[..., Workflow]) -> None:
    workflow = make_workflow(Policy(("a",)), Policy(("b", "a")), Policy())

    assert (Grant("read", "a"), Grant("read", "b")) == all_asks(workflow)


def test_grants_become_a_policy() -> None:
    grants = [
        Grant("read", "/a"),
        Grant("write", "/b"),
        Grant("write-through", "/c"),
        Grant("loopback"),
        Grant("tool", "s/t"),
        Grant("env", "CI"),
    ]

    policy = policy_of(grants, [".git"])

    assert Policy(("/a",), ("/b",), ("/c",), loopback=True, tool=("s/t",), env=("CI",), unprotected=(".git",)) == policy
    assert Policy() == policy_of([])


def test_a_lifted_name_is_nothing_to_an_operation_that_does_not_write() -> None:
    assert Policy(read=("/a",)) == policy_of([Grant("read", "/a")], [".git"])


def test_a_tilde_in_a_template_does_not_become_home_when_typed() -> None:
    assert Grant("read", "./~/x") == as_typed(Grant("read", "~/x"))
    assert Grant("read", "x~") == as_typed(Grant("read", "x~"))


@pytest.mark.parametrize(
    ("expected", "grant"),
    [
        ("--allow read:src", Grant("read", "src")),
        ("--allow 'read:my docs'", Grant("read", "my docs")),
        ("--allow 'write!:.git'", Grant("write", ".git", forced=True)),
        ("--allow loopback", Grant("loopback")),
        ("--allow 'read:$(x)'", Grant("read", "$(x)")),
        (r"--allow $'read:a\x1b[2J\'\\b'", Grant("read", "a\x1b[2J'\\b")),
        (r"--allow $'read:\xe2\x80\xae'", Grant("read", "\u202e")),
        (r"--allow $'read:\xff'", Grant("read", "\udcff")),
    ],
)
def test_an_option_is_ready_for_a_shell(expected: str, grant: Grant) -> None:
    assert expected == as_option(grant)


def test_what_no_shell_can_say_is_still_shown() -> None:
    assert quote("\ud800") == r"$'\xed\xa0\x80'"


TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)


@given(TEXT)
def test_an_option_shows_nothing_that_a_terminal_acts_on(text: str) -> None:
    option = as_option(Grant("read", text))

    assert option == escape(option)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
@settings(max_examples=25)
@given(TEXT)
def test_a_shell_reads_back_what_was_quoted(text: str) -> None:
    script = f"printf '%s' {quote(f'read:{text}')}"

    said = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout

    assert Grant("read", text) == parse_grant(said.decode())
