from __future__ import annotations

import inspect
import pickle

import pytest

from sage_sandbox import errors
from sage_sandbox.errors import (
    DefinitionError,
    ExitCode,
    NotGranted,
    Problem,
    SageError,
    SandboxUnavailable,
    WorkerLost,
)

PROBLEM = Problem("a.yaml", 3, 5, "phases[0].id", "is empty")
CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SageError)]
MADE = [
    *(kind("it is wrong", "mend it") for kind in CLASSES),
    DefinitionError("it is wrong", "mend it", (PROBLEM,)),
    SandboxUnavailable("it is wrong", "mend it", "landlock"),
    NotGranted("it is wrong", "mend it", ("--allow read:.",)),
    WorkerLost("it is wrong", "mend it", 3),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_through_a_process_pool(error: SageError) -> None:
    back = pickle.loads(pickle.dumps(error))

    assert type(error) is type(back)
    assert vars(error) == vars(back)
    assert error.args == back.args


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_says_its_message_and_keeps_its_hint_apart(error: SageError) -> None:
    assert str(error) == error.message == "it is wrong"
    assert error.hint == "mend it"


@pytest.mark.parametrize("kind", CLASSES)
def test_a_hint_may_be_left_out(kind: type[SageError]) -> None:
    assert kind("it is wrong").hint == ""


def test_errors_carry_what_they_are_about() -> None:
    assert (PROBLEM,) == DefinitionError("m", problems=(PROBLEM,)).problems
    assert SandboxUnavailable("m", feature="landlock").feature == "landlock"
    assert NotGranted("m", missing=("--allow loopback",)).missing == ("--allow loopback",)
    assert WorkerLost("m", slot=2).slot == 2


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (2, "DefinitionError"),
        (2, "UsageError"),
        (14, "SandboxUnavailable"),
        (15, "NotGranted"),
        (130, "Interrupted"),
        (1, "SageError"),
    ],
)
def test_each_error_has_the_exit_code_of_the_table(expected: int, name: str) -> None:
    assert expected == getattr(errors, name).exit_code


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert {0, 1, 2, 3, 14, 15, 124, 130, 137} <= {int(code) for code in ExitCode}


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in CLASSES)


@pytest.mark.parametrize(
    ("expected", "problem"),
    [
        ("a.yaml:3:5: phases[0].id: is empty", PROBLEM),
        ("a.yaml:3: x", Problem("a.yaml", 3, 0, "", "x")),
        ("a.yaml: name: x", Problem("a.yaml", 0, 0, "name", "x")),
        ("x", Problem("", 0, 0, "", "x")),
    ],
)
def test_a_problem_says_where_as_far_as_that_is_known(expected: str, problem: Problem) -> None:
    assert expected == str(problem)
