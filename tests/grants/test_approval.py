from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sage_sandbox.errors import NotGranted
from sage_sandbox.grants.approval import approve, recalled
from sage_sandbox.grants.asking import Answer, Question
from sage_sandbox.grants.memory import Change, Memory
from sage_sandbox.grants.places import Place, Places
from sage_sandbox.policy import Grant, Policy, parse_grant
from sage_sandbox.workflow.definition import Workflow

Make = Callable[..., Workflow]
ASKS = Policy(read=("src",), write=("docs",))


class Person:
    """Somebody who always answers the same, and remembers the questions."""

    def __init__(self, answer: Answer) -> None:
        self.answer: Answer = answer
        self.questions: list[Question] = []

    def __call__(self, question: Question) -> Answer:
        self.questions.append(question)
        return self.answer


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "memory")


@pytest.fixture
def go(project: Path, places: Places, memory: Memory, make_workflow: Make):
    """Approve a workflow of these asks."""

    def go(asks: Policy, *texts: str, person: Person | None = None, places: Places = places, **more: object):
        grants = [parse_grant(text) for text in texts]
        return approve(make_workflow(asks, **more), grants, project, memory=memory, ask=person, places=places)

    return go


def _given(project: Path) -> Policy:
    return Policy(read=(f"{project}/src",), write=(f"{project}/docs",))


def test_what_is_granted_is_not_asked(go, project: Path) -> None:
    person = Person("no")

    seen = go(ASKS, "read:src", "write:docs", person=person)

    assert _given(project) == seen.policies["survey", "op-1"]
    assert person.questions == []


def test_what_is_missing_is_an_error_with_a_list_when_nobody_can_be_asked(go) -> None:
    with pytest.raises(NotGranted) as caught:
        go(ASKS, "read:src")

    assert caught.value.missing == ("--allow write:docs",)


def test_the_question_shows_what_is_missing(go) -> None:
    person = Person("run")

    go(ASKS, "read:src", person=person)

    assert 1 == len(person.questions)
    assert [True, False] == [row.granted for row in person.questions[0].review.rows]
    assert [Grant("write", "docs")] == list(person.questions[0].review.missing)
    assert person.questions[0].workflow == "report"


def test_a_yes_is_for_this_run_only(go, project: Path) -> None:
    assert _given(project) == go(ASKS, person=Person("run")).policies["survey", "op-1"]
    with pytest.raises(NotGranted):
        go(ASKS)


def test_always_is_remembered(go, project: Path) -> None:
    assert go(ASKS, person=Person("remember")).complete
    assert _given(project) == go(ASKS).policies["survey", "op-1"]


def test_only_what_was_asked_is_remembered(go) -> None:
    go(ASKS, "read:src", person=Person("remember"))

    with pytest.raises(NotGranted) as caught:
        go(ASKS)

    assert caught.value.missing == ("--allow read:src",)


def test_a_no_is_an_error_with_a_list(go) -> None:
    with pytest.raises(NotGranted) as caught:
        go(ASKS, person=Person("no"))

    assert caught.value.missing == ("--allow read:src", "--allow write:docs")


def test_a_changed_template_asks_again_and_says_what_changed(go) -> None:
    go(ASKS, person=Person("remember"))
    person = Person("run")

    go(replace(ASKS, loopback=True, write=()), person=person, digest="d2")

    assert Change(("loopback",), ("write:docs",)) == person.questions[0].change


def test_what_no_plain_yes_can_allow_is_not_asked(go, home: Path) -> None:
    person = Person("remember")

    with pytest.raises(NotGranted) as caught:
        go(Policy(read=(f"{home}/.ssh",)), person=person)

    assert caught.value.missing == (f"--allow 'read!:{home}/.ssh'",)
    assert person.questions == []


def test_a_lifted_name_is_never_remembered(go) -> None:
    asks = Policy(write=("conftest.py",), loopback=True)
    go(asks, "write!:conftest.py", person=Person("remember"))

    with pytest.raises(NotGranted) as caught:
        go(asks)

    assert caught.value.missing == ("--allow 'write!:conftest.py'",)


def test_a_remembered_path_that_has_become_a_link_is_asked_again(go, project: Path) -> None:
    asks = Policy(read=("src",))
    go(asks, person=Person("remember"))
    (project / "src").rename(project / "old")
    (project / "src").symlink_to("docs")

    with pytest.raises(NotGranted):
        go(asks)


def test_a_remembered_path_that_is_gone_is_a_problem_and_not_a_wrong_option(go, project: Path) -> None:
    asks = Policy(read=("src/deep",))
    go(asks, person=Person("remember"))
    (project / "src/deep").rmdir()

    with pytest.raises(NotGranted, match="no such file or folder"):
        go(asks)


def test_a_remembered_path_that_programs_come_from_by_now_is_not_granted(
    go, project: Path, places: Places, memory: Memory, make_workflow: Make
) -> None:
    asks = Policy(write=("docs",))
    go(asks, person=Person("remember"))
    now = replace(places, steering=(Place(f"{project}/docs", "a folder on PATH"),))

    assert recalled(make_workflow(asks), project, memory=memory) == (Grant("write", f"{project}/docs"),)
    assert recalled(make_workflow(asks), project, memory=memory, places=now) == ()
    with pytest.raises(NotGranted, match="a folder on PATH: never granted"):
        go(asks, places=now)


def test_what_was_shown_is_granted_and_not_what_the_name_leads_to_afterwards(go, project: Path) -> None:
    def swap(_: Question) -> Answer:
        (project / "src").rename(project / "old")
        (project / "src").symlink_to("docs")
        return "run"

    with pytest.raises(NotGranted) as caught:
        go(Policy(read=("src",)), person=swap)

    assert caught.value.missing == ("--allow read:src",)


def test_what_holds_only_beside_a_lifted_name_is_remembered_without_it(go) -> None:
    asks = Policy(write_through=("conftest.py", ".github/workflows"))
    lifts = ("write!:conftest.py", "write!:.github/workflows")
    go(asks, *lifts, person=Person("remember"))

    assert go(asks, *lifts).complete
    with pytest.raises(NotGranted) as caught:
        go(asks)
    assert {"--allow 'write!:conftest.py'", "--allow 'write!:.github/workflows'"} < set(caught.value.missing)


def test_what_cannot_be_remembered_is_a_notice(go, memory: Memory) -> None:
    person = Person("remember")

    def spoil(question: Question) -> Answer:
        assert memory.folder is not None
        memory.folder.write_text("a file in its place")
        return person(question)

    seen = go(ASKS, person=spoil)

    assert seen.complete
    assert seen.notices[0].startswith("the answer could not be remembered: ")


def test_a_question_says_when_nothing_can_be_remembered(project: Path, places: Places, make_workflow: Make) -> None:
    person = Person("run")

    approve(make_workflow(ASKS), [], project, memory=Memory(None), ask=person, places=places)

    assert "no home folder is known" in person.questions[0].forgetful


def test_damaged_memory_is_never_ignored(go, memory: Memory) -> None:
    go(ASKS, person=Person("remember"))
    assert memory.folder is not None
    (memory.folder / "grants.json").write_text("{")

    with pytest.raises(NotGranted, match="it is not JSON"):
        go(ASKS, "read:src", "write:docs")


def test_a_project_that_forges_a_memory_grants_itself_nothing(go, project: Path, memory: Memory) -> None:
    go(ASKS, person=Person("remember"))
    assert memory.folder is not None
    forged = json.loads((memory.folder / "grants.json").read_text())
    for place in (".sage/grants.json", ".config/sage-sandbox/grants.json", "grants.json"):
        (project / place).parent.mkdir(parents=True, exist_ok=True)
        (project / place).write_text(json.dumps(forged))
    (memory.folder / "grants.json").unlink()

    with pytest.raises(NotGranted):
        go(ASKS)


def test_the_surroundings_are_looked_up_when_not_given(project: Path, memory: Memory, make_workflow: Make) -> None:
    assert approve(make_workflow(ASKS), [Grant("write", "."), Grant("read", ".")], project, memory=memory).complete


def test_ten_thousand_operations_that_ask_are_reviewed_in_a_moment(go, project: Path, places: Places) -> None:
    from sage_sandbox.grants.review import review
    from sage_sandbox.workflow.definition import Operation, Phase

    operations = tuple(Operation(f"op-{n}", "python", policy=ASKS) for n in range(10_000))
    seen = review(Workflow("w", (Phase("p", "P", operations),)), [], project, places=places)

    assert 20_000 == len(seen.rows)
    assert 2 == len(seen.missing)
